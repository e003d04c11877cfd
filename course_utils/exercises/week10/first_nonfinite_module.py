"""Who made the first NaN or infinity of a forward pass."""

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week10._debugging import Backwards, hooks_on


@exercise(objectives=("debug.nonfinite", "debug.hook_semantics"))
def first_nonfinite_module(model: nn.Module, x: torch.Tensor) -> str | None:
    """Name the first module whose output holds a NaN or an infinity.

    If x itself is not finite, return "<input>" without running the model. Otherwise run model(x)
    under torch.no_grad(), in the mode it is in (you may stop early), and return the name of the
    module, leaf or container, whose forward was the first to return something non-finite. The name
    is that of model.named_modules(); the model itself is called "<model>". None if all outputs are
    finite. Huge values that are finite are finite.

    All outputs are floating-point tensors. None of your hooks may remain, also when the forward
    raises; the exception passes on.
    """
    if not torch.isfinite(x).all():
        return "<input>"
    found = []

    def watch(name):
        def hook(module, inputs, output):
            if not torch.isfinite(output).all():
                found.append(name or "<model>")

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


class Power(nn.Module):
    """Ten to the power of x times `factor`; the result is infinite beyond 38."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return 10.0 ** (self.factor * x)


class Scale(nn.Module):
    """x times `factor`."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class SumOfBranches(nn.Module):
    """Adds two finite outputs; the sum may overflow."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) + self.right(x)


class Difference(nn.Module):
    """x minus x, which is NaN where x is infinite."""

    def forward(self, x):
        return x - x


def positive(draw, *shape):
    """Numbers between 1 and 2."""
    return draw.uniform(*shape, low=1.0, high=2.0)


def seen(implementation, model, x):
    """The answer, how often the model ran, and which hooks are left."""
    runs = []
    model.register_forward_pre_hook(lambda m, i: runs.append(torch.is_grad_enabled()))
    name = attempt(implementation, model, x)
    return {"the first": name, "recording in each run": runs, "left": hooks_on(model)}


@first_nonfinite_module.case
def an_overflow_inside_a_nest(implementation, draw):
    inner = nn.Sequential(Scale(draw.number(2, 3)), Power(60.0), Difference(), nn.Tanh())
    model = nn.Sequential(nn.Identity(), inner, Scale(2.0))
    return seen(implementation, model, positive(draw, 3, 2))


@first_nonfinite_module.case
def call_order_is_not_registration_order(implementation, draw):
    model = Backwards(last=Difference(), middle=Scale(draw.number(1, 2)), first=Power(50.0))
    return seen(implementation, model, positive(draw, 2, 3))


@first_nonfinite_module.case
def an_overflow_between_the_modules_of_a_container(implementation, draw):
    body = SumOfBranches(Scale(1e38), Scale(3e38))
    model = nn.Sequential(Scale(draw.number(1.0, 1.1)), body, Difference())
    return seen(implementation, model, draw.uniform(2, 3, low=0.87, high=0.99))


@first_nonfinite_module.case
def an_overflow_in_the_model_itself(implementation, draw):
    model = SumOfBranches(Scale(draw.number(2e38, 2.5e38)), Scale(2e38))
    return seen(implementation, model, draw.uniform(2, 3, low=0.97, high=1.0))


@first_nonfinite_module.case
def huge_values_that_are_finite(implementation, draw):
    factors = draw.number(1e38, 1.5e38), draw.number(1e33, 2e33)
    models = [nn.Sequential(Scale(f), nn.Sequential(Scale(1.0)), Scale(1e-30)) for f in factors]
    return [seen(implementation, model, positive(draw, 4, 2)) for model in models]


@first_nonfinite_module.case
def an_infinity_in_one_entry_that_does_not_last(implementation, draw):
    model = nn.Sequential(Scale(1.0), Power(25.0), nn.Tanh(), Scale(2.0))
    x = draw.uniform(3, 4, low=0.5, high=1.0)
    x[draw.whole(0, 2), draw.whole(0, 3)] = 1.9
    return seen(implementation, model, x)


@first_nonfinite_module.case
def a_nan_in_the_input(implementation, draw):
    x = draw.normal(3, 2)
    x[draw.whole(0, 2), 1] = float("nan")
    return seen(implementation, nn.Sequential(Scale(2.0), Power(90.0)), x)


@first_nonfinite_module.case
def an_infinity_in_the_input(implementation, draw):
    x = draw.normal(3, 2)
    x[1, draw.whole(0, 1)] = float("-inf")
    return seen(implementation, nn.Sequential(nn.Tanh(), Scale(2.0)), x)


@first_nonfinite_module.case
def batch_norm_in_training_mode(implementation, draw):
    model = nn.Sequential(nn.BatchNorm1d(3), Power(400.0)).to(draw.device)
    result = seen(implementation, model, draw.normal(5, 3))
    return result | {"batches that were counted": model[0].num_batches_tracked}


@first_nonfinite_module.case
def a_single_layer(implementation, draw):
    return seen(implementation, Power(draw.number(80, 90)), positive(draw, 2, 2))


@first_nonfinite_module.case
def a_forward_that_raises(implementation, draw):
    model = nn.Sequential(Scale(draw.number(1, 2)), nn.Linear(4, 2).to(draw.device))
    return seen(implementation, model, draw.normal(2, 3))


def search(
    model,
    x,
    *,
    bad=None,
    choose=0,
    chosen=None,
    clean=True,
    mode=None,
    check_input=True,
    root="<model>",
):
    """The reference in parts, each of which can be done another way."""
    bad = bad or (lambda t: not torch.isfinite(t).all())
    if check_input and bad(x):
        return "<input>"
    found = []

    def watch(name):
        def hook(module, inputs, output):
            if bad(output):
                found.append(name or root)

        return hook

    modules = [(name, m) for name, m in model.named_modules() if chosen is None or chosen(m)]
    handles = [m.register_forward_hook(watch(name)) for name, m in modules]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles if clean else []:
            handle.remove()
    if mode == "registration":
        names = [name for name, _ in modules if name] + [root]
        found = [name for name in names if name in found]
    return found[choose] if found else None


@first_nonfinite_module.misconception(
    "You look for NaN only. An overflow is an infinity first and becomes NaN a few layers later, "
    "if at all. Test whether all is finite."
)
def only_isnan(model, x):
    return search(model, x, bad=lambda t: t.isnan().any())


@first_nonfinite_module.misconception(
    "You report the last module. What is not finite spreads, so all later modules look guilty; "
    "keep the first."
)
def reports_the_last_module(model, x):
    return search(model, x, choose=-1)


@first_nonfinite_module.misconception(
    "You report the first in the order of named_modules(). That order follows __init__, the data "
    "follow forward."
)
def registration_order(model, x):
    return search(model, x, mode="registration")


@first_nonfinite_module.misconception(
    "You watch leaves only. An operation that a container's own forward does has no module of its "
    "own; the output of the container shows it."
)
def leaves_only(model, x):
    return search(model, x, chosen=lambda m: not list(m.children()))


@first_nonfinite_module.misconception(
    "You asked anomaly mode. It looks at the gradients of a backward pass, not at values of the "
    "forward, and it does not mind infinities."
)
def anomaly_mode(model, x):
    if not torch.isfinite(x).all():
        return "<input>"
    try:
        with torch.autograd.detect_anomaly(), torch.no_grad():
            model(x)
    except RuntimeError:
        return "<model>"
    return None


@first_nonfinite_module.misconception(
    "The input was not looked at. Then the first layer is blamed for what the data brought in."
)
def input_not_tested(model, x):
    return search(model, x, check_input=False)


@first_nonfinite_module.misconception(
    "Your hooks are still on the model and will run in every forward from now on."
)
def hooks_left(model, x):
    return search(model, x, clean=False)


@first_nonfinite_module.misconception(
    "The hooks are removed after a forward that works. When the forward raises, those lines are "
    "skipped and the hooks stay."
)
def removed_only_on_success(model, x):
    try:
        return search(model, x)
    except RuntimeError:
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
        raise


@first_nonfinite_module.misconception(
    "You asked whether the sum is finite. Finite numbers can have a sum that is not; look at each "
    "element."
)
def tests_the_sum(model, x):
    return search(model, x, bad=lambda t: not t.sum().isfinite())


@first_nonfinite_module.misconception(
    "Huge values were taken for infinite ones. A float32 reaches 3.4e38; ask the tensor itself "
    "rather than comparing with a limit of your own."
)
def limit_of_its_own(model, x):
    return search(model, x, bad=lambda t: not bool((t.abs() < 1e30).all()))


@first_nonfinite_module.misconception(
    "A module counts as guilty only when its whole output is broken. One entry is enough."
)
def whole_output_broken(model, x):
    return search(model, x, bad=lambda t: not t.isfinite().any())


@first_nonfinite_module.misconception(
    "You look at the final output first, and stop when it is finite. tanh turns an infinity into "
    "1, so a clean end says nothing about the middle."
)
def trusts_the_final_output(model, x):
    name = search(model, x)
    if name in (None, "<input>", "<model>"):
        return name
    with torch.no_grad():
        value, finite = x, False
        if isinstance(model, nn.Sequential):
            for part in model:
                value = part(value)
            finite = bool(value.isfinite().all())
    return None if finite else name


@first_nonfinite_module.misconception(
    "The model itself was reported with an empty name. The task calls it <model>."
)
def empty_name_for_the_model(model, x):
    return search(model, x, root="")


@first_nonfinite_module.misconception(
    "The forward ran with gradient recording on. Nothing here needs a graph; look under no_grad."
)
def records_gradients(model, x):
    if not torch.isfinite(x).all():
        return "<input>"
    found, handles = [], []
    for name, m in model.named_modules():
        handles.append(
            m.register_forward_hook(
                lambda m, i, output, name=name: (
                    None if output.isfinite().all() else found.append(name or "<model>")
                )
            )
        )
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@first_nonfinite_module.misconception(
    "You put the model into evaluation mode, so BatchNorm ran with other statistics than those "
    "that made the trouble. Look at the model as it is."
)
def evaluation_mode(model, x):
    training = model.training
    model.eval()
    try:
        return search(model, x)
    finally:
        model.train(training)


first_nonfinite_module.hints(
    "You want a hook on every module, containers too.",
    "Inner modules return before the container that called them. In which order do hooks fire?",
    "isfinite says no to NaN and to both infinities; one bad element is enough.",
)
