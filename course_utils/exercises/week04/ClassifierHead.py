"""A classifier whose training loss and reported probabilities both suffer from one softmax."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(objectives=("losses.double_softmax", "losses.logits"))
class ClassifierHead(nn.Module):
    """A linear classifier, with the attribute linear = nn.Linear(in_features, num_classes).

    forward(x): x of shape (N, in_features) -> logits of shape (N, num_classes), not normalized.
    loss(x, y): y of shape (N,), int64 -> the mean cross-entropy, of shape (). It is right for
    logits of magnitude 10,000, and differentiable.
    predict_proba(x): probabilities of shape (N, num_classes). Each row sums to 1, and the result
    has requires_grad False. predict(x): class indices of shape (N,), int64.

    N may be 1. No method changes the training flag, the parameters or grad mode.
    """

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(x), y)

    @torch.no_grad()
    def predict_proba(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self(x), dim=-1)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).argmax(dim=-1)


def head(implementation, draw, features, classes, dtype=torch.float32):
    """A head with known weights that are far from 0; the bias favors the last class a little."""
    model = implementation(features, classes).to(draw.device, dtype)
    values = {
        "weight": 2 * draw.normal(classes, features, dtype=dtype),
        "bias": draw.uniform(classes, low=-0.3, high=0.3, dtype=dtype).sort().values,
    }
    with torch.no_grad():
        for name, parameter in model.linear.named_parameters():
            parameter.copy_(values[name])
    return model


def loss_gradients(model, x, y, *upstream):
    """The gradients of the parameters of the layer, by their names."""
    names, parameters = zip(*model.linear.named_parameters(), strict=True)
    found = gradients(model.loss(x, y), parameters, *upstream)
    return found if isinstance(found, str) else dict(zip(names, found, strict=True))


def everything(model, x, y):
    """What the four methods return, by their names."""
    return {
        "forward(x)": attempt(model, x),
        "loss(x, y)": attempt(model.loss, x, y),
        "predict_proba(x)": attempt(model.predict_proba, x),
        "predict(x)": attempt(model.predict, x),
    }


def batch(draw, n, features, classes):
    """Inputs, and a label for each. The second sample is 0, so no class is far ahead there."""
    x = draw.normal(n, features)
    x[1:2] = 0
    return x, draw.integers(0, classes - 1, n)


@ClassifierHead.case
def a_batch(implementation, draw):
    features, classes, n = draw.sizes(3, low=3)
    model = head(implementation, draw, features, classes)
    names = [name for name, _ in model.named_parameters()]
    return {"all parameters": names} | everything(model, *batch(draw, n, features, classes))


@ClassifierHead.case
def a_batch_of_one(implementation, draw):
    features, classes = draw.sizes(2, low=3)
    model = head(implementation, draw, features, classes)
    return everything(model, *batch(draw, 1, features, classes))


@ClassifierHead.case
def as_many_samples_as_classes(implementation, draw):
    features, classes = draw.sizes(2, low=3)
    model = head(implementation, draw, features, classes)
    return everything(model, *batch(draw, classes, features, classes))


@ClassifierHead.case
def two_classes_in_float64(implementation, draw):
    features, n = draw.sizes(2, low=3)
    model = head(implementation, draw, features, 2, torch.float64)
    x, y = batch(draw, n, features, 2)
    return everything(model, x.double(), y)


@ClassifierHead.case(tolerance=(1e-4, 4e-3))  # logits of 10,000 are known to 0.001
def logits_in_the_thousands(implementation, draw):
    features, classes, n = draw.sizes(3, low=3)
    model = head(implementation, draw, features, classes)
    x, y = batch(draw, n, features, classes)
    return everything(model, draw.number(1000, 3000) * x, y)


@ClassifierHead.case
def the_gradients_of_the_loss(implementation, draw):
    features, classes, n = draw.sizes(3, low=3)
    model = head(implementation, draw, features, classes)
    x, y = batch(draw, n, features, classes)
    return loss_gradients(model, x, y, draw.uniform(low=0.5, high=2))


@ClassifierHead.case(tolerance=(4e-3, 4e-3))  # logits of about 1,000, differently rounded
def the_gradients_of_confident_mistakes(implementation, draw):
    features, classes, n = draw.sizes(3, low=3)
    model = head(implementation, draw, features, classes)
    x = 300 * draw.normal(n, features)
    y = attempt(lambda: model.linear(x).argmin(dim=1))
    return loss_gradients(model, x, y)


@ClassifierHead.case
def what_a_prediction_leaves_behind(implementation, draw):
    features, classes, n = draw.sizes(3, low=3)
    model = head(implementation, draw, features, classes)
    x, y = batch(draw, n, features, classes)
    with torch.no_grad():
        model.predict_proba(x), model.predict(x), model.loss(x, y)
        flags = {"grad mode under no_grad": torch.is_grad_enabled()}
    for mode in (True, False):
        model.train(mode)
        model.predict_proba(x), model.predict(x)
        flags[f"training after train({mode})"] = [model.training, model.linear.training]
    return flags | {
        "grad mode is on": torch.is_grad_enabled(),
        "parameters require grad": [p.requires_grad for p in model.parameters()],
        "the loss requires grad": model.loss(x, y).requires_grad,
        "names in the state dict": list(model.state_dict()),
    }


# The wrong answers are the reference with one method replaced.


class Right(nn.Module):
    """What the wrong answers have in common."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.linear(x)

    def loss(self, x, y):
        return F.cross_entropy(self(x), y)

    @torch.no_grad()
    def predict_proba(self, x):
        return self(x).softmax(dim=-1)

    def predict(self, x):
        return self(x).argmax(dim=-1)


@ClassifierHead.misconception(
    "forward ends in a softmax and the loss normalizes again, so it cannot fall below "
    "log(e + C − 1) − 1, and confident mistakes get almost no gradient. Let forward return logits."
)
class softmax_in_forward(Right):
    def forward(self, x):
        return self.linear(x).softmax(dim=-1)

    @torch.no_grad()
    def predict_proba(self, x):
        return self(x)


@ClassifierHead.misconception(
    "The probabilities are normalized twice, so no row gets far from uniform, and the loss has a "
    "floor. One softmax belongs in the report and none in forward."
)
class softmax_in_forward_and_in_predict_proba(Right):
    def forward(self, x):
        return self.linear(x).softmax(dim=-1)


@ClassifierHead.misconception(
    "The loss works on logits now, and predict_proba returns them too. A report needs "
    "probabilities: this is where the softmax belongs."
)
class reports_logits(Right):
    @torch.no_grad()
    def predict_proba(self, x):
        return self(x)


@ClassifierHead.misconception(
    "The right objective, computed where it breaks: a probability that rounds to 0 gives an "
    "infinite loss and NaN gradients. The loss should start from logits."
)
class log_of_probabilities(Right):
    def loss(self, x, y):
        return F.nll_loss(self(x).softmax(dim=-1).log(), y)


@ClassifierHead.misconception(
    "A small number inside the logarithm keeps the loss finite and caps it: the samples that are "
    "most wrong get almost no gradient. The loss should start from logits."
)
class log_of_probabilities_with_epsilon(Right):
    def loss(self, x, y):
        return F.nll_loss((self(x).softmax(dim=-1) + 1e-8).log(), y)


@ClassifierHead.misconception(
    "nll_loss only picks an entry and flips its sign. Fed with raw logits it is unbounded below."
)
class nll_of_raw_logits(Right):
    def loss(self, x, y):
        return F.nll_loss(self(x), y)


@ClassifierHead.misconception(
    "The loss applies softmax to the logits and hands the result to cross_entropy, which "
    "normalizes again. It expects the logits as they are."
)
class softmax_in_the_loss(Right):
    def loss(self, x, y):
        return F.cross_entropy(self(x).softmax(dim=-1), y)


@ClassifierHead.misconception(
    "The losses of the samples are added up; the contract asks for their mean. With the sum the "
    "gradient grows with the batch."
)
class adds_the_losses_up(Right):
    def loss(self, x, y):
        return F.cross_entropy(self(x), y, reduction="sum")


@ClassifierHead.misconception(
    "forward returns log-probabilities. Loss and predictions come out right, but the contract "
    "promises logits, not normalized; whoever adds a temperature or a bias needs them raw."
)
class log_probabilities_in_forward(Right):
    def forward(self, x):
        return self.linear(x).log_softmax(dim=-1)


@ClassifierHead.misconception(
    "With dim=0 the probabilities of each class sum to 1 over the batch. What one sample gets must "
    "not depend on its neighbors."
)
class probabilities_over_the_batch(Right):
    @torch.no_grad()
    def predict_proba(self, x):
        return self(x).softmax(dim=0)


@ClassifierHead.misconception(
    "sigmoid treats every class as a question of its own, and the rows do not sum to 1. Classes "
    "that exclude each other share one unit of probability."
)
class sigmoid_probabilities(Right):
    @torch.no_grad()
    def predict_proba(self, x):
        return self(x).sigmoid()


@ClassifierHead.misconception(
    "The reported probabilities still carry a graph. A number for a report needs none: it keeps "
    "memory alive and invites training on it."
)
class probabilities_with_a_graph(Right):
    def predict_proba(self, x):
        return self(x).softmax(dim=-1)


@ClassifierHead.misconception(
    "A prediction switches the model to evaluation mode and leaves it there. The training flag "
    "belongs to the caller."
)
class leaves_evaluation_mode_on(Right):
    @torch.no_grad()
    def predict_proba(self, x):
        self.eval()
        return self(x).softmax(dim=-1)


@ClassifierHead.misconception(
    "After a prediction grad mode is off for everybody: set_grad_enabled(False) was never taken "
    "back. Use no_grad as a block or a decorator, or detach the result."
)
class leaves_grad_mode_off(Right):
    def predict_proba(self, x):
        torch.set_grad_enabled(False)
        return self(x).softmax(dim=-1)


@ClassifierHead.misconception(
    "Inside the caller's no_grad block a method turns grad mode on again. What was off before "
    "should be off afterwards: use no_grad as a block or a decorator, or detach the result."
)
class turns_grad_mode_on(Right):
    def predict_proba(self, x):
        torch.set_grad_enabled(False)
        result = self(x).softmax(dim=-1)
        torch.set_grad_enabled(True)
        return result


@ClassifierHead.misconception(
    "linear has no bias. With the defaults of nn.Linear it has one, and the contract names just "
    "the two sizes."
)
class without_a_bias(Right):
    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes)
        self.linear = nn.Linear(in_features, num_classes, bias=False)


@ClassifierHead.misconception(
    "predict asks which probability is above a half. With more than two classes there may be none: "
    "the predicted class is the largest of them, however small."
)
class predicts_above_a_half(Right):
    def predict(self, x):
        return (self.predict_proba(x) > 0.5).long().argmax(dim=-1)


@ClassifierHead.misconception(
    "predict returns the largest score, not the class that has it. argmax gives the position."
)
class predicts_the_score(Right):
    def predict(self, x):
        return self(x).max(dim=-1).values.detach()


@ClassifierHead.misconception(
    "The class is looked for along the batch: dim=0 gives one sample per class. Each row has to "
    "name its own class."
)
class predicts_over_the_batch(Right):
    def predict(self, x):
        return self(x).argmax(dim=0)


@ClassifierHead.misconception(
    "squeeze() without a dimension removes the batch axis too when there is one sample. Print the "
    "shapes for N = 1."
)
class squeezes_predictions(Right):
    @torch.no_grad()
    def predict_proba(self, x):
        return self(x).softmax(dim=-1).squeeze()

    def predict(self, x):
        return self(x).argmax(dim=-1).squeeze()


@ClassifierHead.broken
class BrokenClassifierHead(nn.Module):
    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), dim=-1)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(x), y)

    def predict_proba(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self(x), dim=-1)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).argmax(dim=-1)


ClassifierHead.hints(
    "Which of logits, log-probabilities and probabilities does cross_entropy expect?",
    "Training and reporting want different things. In which method should the softmax live?",
    "A number that is only reported needs no graph. What else should it leave as it was?",
)
