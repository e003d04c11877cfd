"""A normalization layer: two modes, statistics in buffers, gradients through the batch."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week03._modules import dtypes, named_part, place, registered


@exercise(
    objectives=("module.running_statistics", "module.train_eval", "module.parameters_buffers"),
    forbids=(
        F.batch_norm,
        torch.batch_norm,
        torch.native_batch_norm,
        F.instance_norm,
        torch.instance_norm,
    ),
)
class RunningNorm(nn.Module):
    """Normalize the columns of x (N, num_features). There are no trainable parameters.

    Buffers: running_mean, starting at 0, and running_var, starting at 1, both of shape
    (num_features,), and num_batches, a 0-d int64 tensor starting at 0.

    Training mode: return (x - mean) / sqrt(var + eps) with mean and population variance (divided by
    N) of the batch; gradients flow through both. Fewer than 2 rows raise ValueError before anything
    changes. Then running_mean and running_var become
    (1 - momentum) * old + momentum * value of the batch, for running_var with the unbiased variance
    (divided by N - 1), and num_batches grows by 1: without a graph, and also under no_grad.

    Eval mode: the same formula with running_mean and running_var as they are then, also when no
    batch has been seen; for any N; nothing changes.
    x is not modified. Do it without batch_norm, instance_norm and the layers built on them.
    """

    def __init__(self, num_features: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return (x - self.running_mean) / torch.sqrt(self.running_var + self.eps)
        if len(x) < 2:
            raise ValueError(f"training mode needs at least 2 rows, got {len(x)}")
        with torch.no_grad():
            self.running_mean.lerp_(x.mean(0), self.momentum)
            self.running_var.lerp_(x.var(0), self.momentum)
            self.num_batches += 1
        mean, var = x.mean(0), x.var(0, correction=0)
        return (x - mean) / torch.sqrt(var + self.eps)


BUFFERS = "running_mean", "running_var", "num_batches"


def layer(implementation, draw, features, dtype=torch.float32, **options):
    """A layer that has seen some batches already."""
    model = implementation(features, **options).to(draw.device, dtype)
    values = {
        "running_mean": draw.normal(features, dtype=dtype),
        "running_var": draw.uniform(features, low=0.5, high=2, dtype=dtype),
        "num_batches": draw.integers(3, 9),
    }
    return place(model, values)


def buffers(model):
    """The three buffers, or what stands in their place, at this time."""
    values = {name: named_part(model, name) for name in BUFFERS}
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in values.items()}


def batch(draw, rows, features, dtype=torch.float32):
    """Rows whose columns have means and scales of their own."""
    scale = draw.uniform(features, low=0.5, high=3, dtype=dtype)
    return draw.normal(rows, features, dtype=dtype) * scale + draw.normal(features, dtype=dtype)


@RunningNorm.case
def what_is_registered_and_how_it_starts(implementation, draw):
    model = implementation(draw.whole(2, 7))
    return registered(model) | {"start": buffers(model)}


@RunningNorm.case
def three_batches_of_different_size(implementation, draw):
    features, *sizes = draw.sizes(4)
    model = layer(implementation, draw, features)
    seen = {}
    for step, rows in enumerate(sizes, start=1):
        seen[f"{step}. output"] = model(batch(draw, rows, features))
        seen[f"{step}. buffers after it"] = buffers(model)
    return seen


@RunningNorm.case
def the_first_two_batches_of_a_fresh_layer(implementation, draw):
    features, *sizes = draw.sizes(3)
    model = implementation(features).to(draw.device)
    seen = {}
    for step, rows in enumerate(sizes, start=1):
        seen[f"{step}. output"] = model(batch(draw, rows, features))
        seen[f"{step}. buffers after it"] = buffers(model)
    return seen | {"start of another layer": buffers(implementation(features))}


@RunningNorm.case
def another_momentum_and_eps(implementation, draw):
    features, rows = draw.sizes(2)
    momentum, eps = draw.number(0.2, 0.4), draw.number(0.05, 0.2)
    model = layer(implementation, draw, features, momentum=momentum, eps=eps)
    training = model(batch(draw, rows, features) * 0.1)
    after = buffers(model)
    evaluation = model.eval()(batch(draw, rows, features))
    return {"output in training": training, "then": after, "output in evaluation": evaluation}


@RunningNorm.case
def a_constant_column(implementation, draw):
    features, rows = draw.sizes(2)
    x = batch(draw, rows, features)
    x[:, 0] = 2
    return layer(implementation, draw, features)(x)


@RunningNorm.case
def columns_far_from_zero(implementation, draw):
    features = draw.whole(2, 7)
    x = batch(draw, 16, features) + 3e4
    spread = layer(implementation, draw, features)(x).std(0, correction=0)
    near = ((spread - 1).abs() < 0.02).tolist()
    return {"spread of each column": ["about 1" if yes else "not 1" for yes in near]}


@RunningNorm.case
def evaluation_mode(implementation, draw):
    features, rows = draw.sizes(2)
    model = layer(implementation, draw, features).eval()
    x = batch(draw, rows, features)
    return {"output": model(x), "the input afterwards": x, "then": buffers(model)}


@RunningNorm.case
def gradients_in_training_mode(implementation, draw):
    features, rows = draw.sizes(2)
    x = batch(draw, rows, features).requires_grad_()
    model = layer(implementation, draw, features)
    gradient = gradients(model(x), x, draw.normal(rows, features))
    return {"gradient of x": gradient, "the input afterwards": x, "then": buffers(model)}


@RunningNorm.case
def gradients_in_evaluation_mode(implementation, draw):
    features, rows = draw.sizes(2)
    x = batch(draw, rows, features).requires_grad_()
    output = layer(implementation, draw, features).eval()(x)
    return {"gradient of x": gradients(output, x, draw.normal(rows, features))}


@RunningNorm.case
def one_row_and_none(implementation, draw):
    features = draw.whole(2, 7)
    model = layer(implementation, draw, features)
    one, none = draw.normal(1, features), draw.normal(0, features)
    seen = {
        "1. in training": [attempt(model, one), attempt(model, none)],
        "2. then": buffers(model),
    }
    model.eval()
    return seen | {"3. in evaluation": [attempt(model, one), attempt(model, none)]}


@RunningNorm.case
def training_mode_under_no_grad(implementation, draw):
    features, rows = draw.sizes(2)
    model = layer(implementation, draw, features)
    with torch.no_grad():
        output = model(batch(draw, rows, features))
    return {"output": output, "then": buffers(model)}


@RunningNorm.case
def saved_and_loaded_into_a_fresh_layer(implementation, draw):
    features, rows = draw.sizes(2)
    state = layer(implementation, draw, features).state_dict()
    fresh = implementation(features, eps=0.5).to(draw.device).eval()
    x = batch(draw, rows, features)
    before = fresh(x)
    error = attempt(fresh.load_state_dict, state)
    return {
        "1. evaluated before loading": before,
        "2. error while loading": error if isinstance(error, Exception) else None,
        "3. evaluated after loading": fresh(x),
    }


@RunningNorm.case
def after_a_cast_to_float64(implementation, draw):
    features, rows = draw.sizes(2)
    model = layer(implementation, draw, features).double()
    output = model(batch(draw, rows, features, torch.float64))
    return {"dtypes": dtypes(model), "output": output, "then": buffers(model)}


class Parts(nn.Module):
    """The layer in parts that can be exchanged."""

    def __init__(self, num_features, momentum=0.1, eps=1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.make_statistics(num_features)

    def make_statistics(self, num_features):
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches", torch.tensor(0))

    def forward(self, x):
        if not self.training:
            return self.normalize(x, self.running_mean, self.running_var)
        self.check(x)
        output = self.normalize(x, x.mean(0), x.var(0, correction=0))
        self.update(x)
        return output

    def check(self, x):
        if len(x) < 2:
            raise ValueError("training mode needs at least 2 rows")

    def normalize(self, x, mean, var):
        return (x - mean) / torch.sqrt(var + self.eps)

    def update(self, x):
        with torch.no_grad():
            self.move(x.mean(0), x.var(0))

    def move(self, mean, var):
        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
        self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        self.num_batches += 1


@RunningNorm.misconception(
    "The statistics are plain tensors: not saved, not moved, not cast. A loaded copy starts from 0 "
    "and 1 again. Register them."
)
class plain_tensors(Parts):
    def make_statistics(self, num_features):
        self.running_mean = torch.zeros(num_features)
        self.running_var = torch.ones(num_features)
        self.num_batches = torch.tensor(0)


@RunningNorm.misconception(
    "The statistics are Parameters. Even with requires_grad off, parameters() hands them to every "
    "optimizer. They are measured, not trained."
)
class statistics_as_parameters(Parts):
    def make_statistics(self, num_features):
        self.running_mean = nn.Parameter(torch.zeros(num_features), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(num_features), requires_grad=False)
        self.register_buffer("num_batches", torch.tensor(0))

    def move(self, mean, var):
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches += 1


@RunningNorm.misconception(
    "The counter is a floating-point tensor. It counts, so it should hold whole numbers; and a "
    "cast of the model would change its type."
)
class floating_counter(Parts):
    def make_statistics(self, num_features):
        super().make_statistics(num_features)
        self.num_batches = torch.tensor(0.0)


@RunningNorm.misconception(
    "Evaluation changed the statistics. They move in training mode only, else what you measure "
    "depends on what was measured before."
)
class updates_in_eval(Parts):
    def forward(self, x):
        if self.training:
            return super().forward(x)
        output = self.normalize(x, self.running_mean, self.running_var)
        self.update(x)
        return output


@RunningNorm.misconception(
    "Evaluation uses the statistics of the batch it gets, so the answer for one row depends on the "
    "rows beside it. What were the running values collected for?"
)
class batch_statistics_in_eval(Parts):
    def forward(self, x):
        if self.training:
            return super().forward(x)
        return self.normalize(x, x.mean(0), x.var(0, correction=0))


@RunningNorm.misconception(
    "Evaluation treats a layer that has seen no batch in a way of its own. The values that it "
    "starts with are statistics like any others: there is one formula for evaluation."
)
class fresh_layer_as_an_exception(Parts):
    def forward(self, x):
        if self.training or self.num_batches:
            return super().forward(x)
        return self.normalize(x, x.mean(0), x.var(0, correction=0))


@RunningNorm.misconception(
    "Training uses the running values. There the batch is normalized with its own mean and "
    "variance; the running values are for evaluation."
)
class running_statistics_in_training(Parts):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self.check(x)
        self.update(x)
        return self.normalize(x, self.running_mean, self.running_var)


@RunningNorm.misconception(
    "The output uses the population variance, and so does your running_var. The running value "
    "takes the unbiased one; they differ by the factor N / (N - 1)."
)
class population_in_running(Parts):
    def update(self, x):
        with torch.no_grad():
            self.move(x.mean(0), x.var(0, correction=0))


@RunningNorm.misconception(
    "The output is divided by the unbiased standard deviation, which var and std compute unless "
    "told otherwise. The batch is normalized with the population variance; only the running value "
    "takes the other."
)
class unbiased_in_output(Parts):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self.check(x)
        self.update(x)
        return self.normalize(x, x.mean(0), x.var(0))


@RunningNorm.misconception(
    "The variance is the mean of the squares minus the square of the mean. Where the mean is large "
    "beside the spread, two nearly equal numbers are subtracted and few digits are left. In "
    "float32 the rest may even be negative, and its root NaN."
)
class difference_of_squares(Parts):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        self.check(x)
        self.update(x)
        return self.normalize(x, x.mean(0), (x * x).mean(0) - x.mean(0) ** 2)


@RunningNorm.misconception(
    "Momentum is the wrong way round: here it weighs the new batch, and 1 - momentum the old value."
)
class momentum_reversed(Parts):
    def move(self, mean, var):
        self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mean
        self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        self.num_batches += 1


@RunningNorm.misconception(
    "The first batch replaces the starting values 0 and 1. They count as old values like any "
    "others: momentum weighs the first batch too."
)
class first_batch_as_it_is(Parts):
    def move(self, mean, var):
        if self.num_batches == 0:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
            self.num_batches += 1
        else:
            super().move(mean, var)


@RunningNorm.misconception(
    "Mean and variance depend on x. You cut them from the graph, so the gradient for x lacks what "
    "flows through them."
)
class detached_statistics(Parts):
    def normalize(self, x, mean, var):
        return super().normalize(x, mean.detach(), var.detach())


@RunningNorm.misconception(
    "The running values carry a graph: each batch would hang on all batches before it, and memory "
    "grows with every step. They are a record and need no history."
)
class graph_in_buffers(Parts):
    def update(self, x):
        self.move(x.mean(0), x.var(0))


@RunningNorm.misconception(
    "Under no_grad nothing was counted. Whether gradients are recorded and which mode the layer is "
    "in are two questions; only the mode decides here."
)
class looks_at_grad_mode(Parts):
    def update(self, x):
        if torch.is_grad_enabled():
            super().update(x)


@RunningNorm.misconception(
    "eps was added to the standard deviation. It belongs to the variance, under the root."
)
class eps_beside_the_root(Parts):
    def normalize(self, x, mean, var):
        return (x - mean) / (torch.sqrt(var) + self.eps)


@RunningNorm.misconception(
    "eps is missing: a column whose values are all equal is divided by 0 and becomes NaN."
)
class without_eps(Parts):
    def normalize(self, x, mean, var):
        return (x - mean) / torch.sqrt(var)


@RunningNorm.misconception("momentum and eps have their default values whatever is passed in.")
class ignores_the_options(Parts):
    def __init__(self, num_features, momentum=0.1, eps=1e-5):
        super().__init__(num_features)


@RunningNorm.misconception(
    "A single row went through in training mode. Its variance is 0 and the unbiased one is not "
    "defined, so NaN settles in running_var for good. Raise ValueError first."
)
class one_row_goes_through(Parts):
    def check(self, x):
        pass


@RunningNorm.misconception(
    "A single row is refused, but only after the statistics have moved. Check before anything "
    "changes."
)
class refuses_too_late(Parts):
    def forward(self, x):
        if self.training:
            self.update(x)
            self.check(x)
            return self.normalize(x, x.mean(0), x.var(0, correction=0))
        return super().forward(x)


@RunningNorm.misconception(
    "A single row is refused in evaluation too. There the batch is not measured, so any number of "
    "rows will do."
)
class refuses_in_eval(Parts):
    def forward(self, x):
        self.check(x)
        return super().forward(x)


@RunningNorm.misconception(
    "Each row was normalized over its features, as LayerNorm does. The task asks for the columns: "
    "each feature over the batch."
)
class normalizes_rows(Parts):
    def normalize(self, x, mean, var):
        if not self.training:
            return super().normalize(x, mean, var)
        return super().normalize(x, x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0))


RunningNorm.hints(
    "There are two branches, and one flag that every module has decides between them.",
    "What must not enter the graph, and what must stay in it?",
    "Compare one training step with nn.BatchNorm1d(n, affine=False): output, then both statistics.",
)
