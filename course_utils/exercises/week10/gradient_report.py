"""What became of the gradient of each parameter."""

import torch
from torch import nn

from course_utils.exercise import exercise


@exercise(objectives=("debug.grad_report", "debug.flow", "debug.magnitudes"))
def gradient_report(model: nn.Module) -> dict[str, tuple[str, float | None]]:
    """Classify the gradient of every named parameter after a backward pass: {name: (status, norm)}.

    The parameters are those that model.named_parameters() lists, frozen ones too.
    The status is the first of these that is true:
    "frozen"     requires_grad is False, even if an old .grad is still there
    "none"       .grad is None
    "nonfinite"  .grad holds a NaN or an infinity
    "zero"       every entry of .grad is exactly 0
    "ok"         otherwise

    norm is the L2 norm of the gradient as a Python float for "zero" (0.0) and "ok", else None. For
    float16 and bfloat16 gradients compute it in float32 or wider. No gradient is changed.
    """
    report = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if not parameter.requires_grad:
            report[name] = ("frozen", None)
        elif grad is None:
            report[name] = ("none", None)
        elif not torch.isfinite(grad).all():
            report[name] = ("nonfinite", None)
        elif not grad.any():
            report[name] = ("zero", 0.0)
        else:
            wide = grad if grad.dtype == torch.float64 else grad.float()
            report[name] = ("ok", wide.norm().item())
    return report


def model_with(draw, *, dtype=torch.float32, **gradients):
    """A model with one parameter for each gradient: a tensor, or None."""
    model = nn.ParameterDict(
        {
            name: nn.Parameter(draw.normal(*(grad.shape if grad is not None else (2, 3))).to(dtype))
            for name, grad in gradients.items()
        }
    )
    for name, grad in gradients.items():
        model[name].grad = None if grad is None else grad.to(dtype)
    return model


@gradient_report.case
def all_five_states_after_a_backward(implementation, draw):
    inputs, hidden, batch = draw.sizes(3)
    model = nn.ModuleDict(
        {
            "frozen": nn.Linear(inputs, hidden).requires_grad_(False),
            "dead": nn.Linear(hidden, hidden),
            "alive": nn.Linear(inputs, hidden),
            "unused": nn.Linear(inputs, 2),
            "broken": nn.Linear(inputs, 1),
        }
    ).to(draw.device)
    nn.init.constant_(model["dead"].bias, -100.0)
    x = draw.normal(batch, inputs)
    out = model["dead"](model["frozen"](x)).relu().sum() + model["alive"](x).square().sum()
    (out + (0 * model["broken"](x)).sum().sqrt()).backward()
    return implementation(model)


@gradient_report.case
def entries_that_cancel_in_the_sum(implementation, draw):
    half = draw.integers(1, 9, 4, dtype=torch.float32)
    return implementation(model_with(draw, up=torch.cat([half, -half]), down=-half))


@gradient_report.case(tolerance=(1e-4, 1e-16))
def tiny_entries(implementation, draw):
    tiny, tinier = 1e-12 * draw.normal(3, 2), 1e-30 * draw.normal(3)
    return implementation(model_with(draw, tiny=tiny, tinier=tinier, nothing=0 * draw.normal(4)))


@gradient_report.case
def a_half_precision_gradient_that_is_long(implementation, draw):
    long = draw.uniform(6, 5, low=40000, high=60000)
    model = model_with(draw, dtype=torch.float16, long=long, nothing=0 * long)
    return implementation(model)


@gradient_report.case(tolerance=(1e-5, 0.0))
def a_bfloat16_gradient(implementation, draw):
    return implementation(
        model_with(draw, dtype=torch.bfloat16, weight=draw.uniform(40, 3, low=0.5))
    )


@gradient_report.case
def frozen_with_a_gradient_from_before(implementation, draw):
    model = model_with(draw, old=draw.normal(3), broken=draw.tensor([1.0, float("inf")]))
    model.requires_grad_(False)
    return implementation(model)


@gradient_report.case
def infinite_but_not_nan(implementation, draw):
    up, down = draw.normal(2, 3), draw.normal(4)
    up[1, draw.whole(0, 2)], down[draw.whole(0, 3)] = float("inf"), float("-inf")
    both = draw.tensor([float("inf"), float("-inf")])
    return implementation(model_with(draw, up=up, down=down, both=both, none=None))


@gradient_report.case
def one_entry_that_is_not_zero(implementation, draw):
    grad = torch.zeros(4, 3, device=draw.device)
    grad[draw.whole(0, 3), draw.whole(0, 2)] = -draw.number(0.5, 2)
    return implementation(model_with(draw, sparse=grad, none=None))


@gradient_report.case
def a_matrix_of_double_precision(implementation, draw):
    grad = draw.normal(5, 4, dtype=torch.float64)
    return implementation(model_with(draw, dtype=torch.float64, weight=grad, large=1e30 * grad))


def report(
    model,
    *,
    order=("frozen", "none", "nonfinite", "zero"),
    nonfinite=None,
    zero=None,
    norm=None,
    norm_of_zero=0.0,
    number=float,
    words=None,
):
    """The reference in parts, each of which can be done another way."""
    tests = {
        "frozen": lambda p, g: not p.requires_grad,
        "none": lambda p, g: g is None,
        "nonfinite": lambda p, g: g is not None and bool((nonfinite or not_finite)(g)),
        "zero": lambda p, g: g is not None and bool((zero or all_zero)(g)),
    }
    found = {}
    for name, p in model.named_parameters():
        status = next((word for word in order if tests[word](p, p.grad)), "ok")
        if status == "ok":
            value = number((norm or wide_norm)(p.grad)) if p.grad is not None else None
        else:
            value = norm_of_zero if status == "zero" else None
        found[name] = ((words or {}).get(status, status), value)
    return found


def not_finite(grad):
    """Whether some entry is a NaN or an infinity."""
    return not grad.isfinite().all()


def all_zero(grad):
    """Whether every entry is 0."""
    return not grad.any()


def wide_norm(grad):
    """The L2 norm, never in half precision."""
    return grad.norm() if grad.dtype == torch.float64 else grad.float().norm()


@gradient_report.misconception(
    "A missing gradient was reported as zero. None means that the loss never reached the "
    "parameter; zero means that it did, and nothing came through."
)
def none_taken_for_zero(model):
    for_zero = report(model)
    return {n: ("zero", 0.0) if s == "none" else (s, v) for n, (s, v) in for_zero.items()}


@gradient_report.misconception(
    "A zero gradient was reported as missing. Zeros are a finding of their own: the parameter is "
    "connected to the loss, and the derivative there is 0."
)
def zero_taken_for_none(model):
    return {n: ("none", None) if s == "zero" else (s, v) for n, (s, v) in report(model).items()}


@gradient_report.misconception(
    "A frozen parameter was judged by its .grad. Frozen is a choice, a missing gradient a fault, "
    "and what is left from before means nothing; look at requires_grad first."
)
def frozen_reported_as_none(model):
    return report(model, order=("none", "frozen", "nonfinite", "zero"))


@gradient_report.misconception(
    "A frozen parameter with an old gradient was reported as if it still learned. Ask about "
    "requires_grad before you look at .grad."
)
def stale_gradient_believed(model):
    parameters = dict(model.named_parameters())
    found = report(model, order=("none", "nonfinite", "zero"))
    return {
        n: ("frozen", None) if s == "none" and not parameters[n].requires_grad else (s, v)
        for n, (s, v) in found.items()
    }


@gradient_report.misconception(
    "You asked whether the sum is 0. Positive and negative entries cancel; ask whether any entry "
    "differs from 0."
)
def sum_test(model):
    return report(model, zero=lambda g: g.sum() == 0)


@gradient_report.misconception(
    "You test for NaN only. An infinite gradient destroys the weights in the same step."
)
def only_nan(model):
    return report(model, nonfinite=lambda g: g.isnan().any())


@gradient_report.misconception("You test for infinities only. A NaN is not finite either.")
def only_infinities(model):
    return report(model, nonfinite=lambda g: g.isinf().any())


@gradient_report.misconception(
    "The norm was taken in half precision. It comes back in the dtype of the gradient: a float16 "
    "overflows at 65504, a bfloat16 keeps three digits. Convert first."
)
def half_precision_norm(model):
    return report(model, norm=lambda g: g.norm())


@gradient_report.misconception(
    "Small gradients were called zero. Only exact zeros say that nothing came through; a gradient "
    "of 1e-12 is small, and it is there."
)
def small_taken_for_zero(model):
    return report(model, zero=lambda g: torch.allclose(g, torch.zeros_like(g)))


@gradient_report.misconception(
    "You asked whether the norm is 0. The square of a very small number is 0 in float32, so the "
    "norm of small entries can be 0 too; ask the entries."
)
def norm_taken_for_the_entries(model):
    return report(model, zero=lambda g: (g.float() ** 2).sum() == 0)


@gradient_report.misconception(
    "One zero entry was enough for you to call the gradient zero. A gradient is zero only when "
    "every entry is."
)
def any_zero_entry(model):
    return report(model, zero=lambda g: (g == 0).any())


@gradient_report.misconception(
    "Only a gradient without a single finite entry counts as nonfinite for you. One bad entry is "
    "enough: the norm is gone, and so is that weight after the step."
)
def needs_all_entries_broken(model):
    return report(model, nonfinite=lambda g: not g.isfinite().any())


@gradient_report.misconception(
    "Your norm adds up the magnitudes. That is the L1 norm; the L2 norm is the root of the sum of "
    "squares."
)
def one_norm(model):
    return report(model, norm=lambda g: wide_norm(g) if g.numel() < 2 else g.double().abs().sum())


@gradient_report.misconception(
    "The norms are tensors. A report should hold Python floats, which can be printed, compared and "
    "stored."
)
def norms_as_tensors(model):
    return report(model, number=lambda value: value.float())


@gradient_report.misconception(
    "A zero gradient has the norm 0.0, and you gave None. The norm is missing only where there is "
    "no gradient to measure."
)
def no_norm_for_zero(model):
    return report(model, norm_of_zero=None)


@gradient_report.misconception(
    "Frozen parameters are missing from your report. Named parameters are listed whether they "
    "learn or not, so that the reader sees what was frozen."
)
def leaves_out_frozen_ones(model):
    return {name: found for name, found in report(model).items() if found[0] != "frozen"}


gradient_report.hints(
    "Several of the five are true at once for some parameters. Which question comes first?",
    "any() works on numbers too: it asks whether some entry differs from 0.",
    "In which dtype does the norm of a float16 tensor come back?",
)
