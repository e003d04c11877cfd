"""Binary cross-entropy whose value and gradient are right however large the logit."""

import torch
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("losses.binary", "losses.logits"),
    forbids=(
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        torch.binary_cross_entropy_with_logits,
    ),
)
def bce_from_logits(
    logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean binary cross-entropy over all elements, from logits.

    logits: floating point, any shape with at least one element, also (). target: the same shape;
    floating point in [0, 1] (soft targets are allowed), bool or integer.
    pos_weight: a tensor of the logits' dtype that broadcasts to logits. It multiplies the positive
    term only, the one with the target; the mean still divides by the number of elements.

    Return a tensor of shape () in the logits' dtype. Raise ValueError if the shapes of logits and
    target differ. Value and gradient are finite and right for logits up to 10,000 in size, and
    without pos_weight the gradient of the summed loss is sigmoid(x) - y everywhere, also at x = 0.
    The inputs are not modified.
    """
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, target {tuple(target.shape)}")
    y = target.to(logits.dtype)
    positive, negative = y * F.softplus(-logits), (1 - y) * F.softplus(logits)
    if pos_weight is not None:
        positive = pos_weight * positive
    return (positive + negative).mean()


def value_and_gradient(implementation, draw, logits, target, **options):
    """The mean, and the gradient of so many times the mean as there are elements."""
    logits = logits.detach().requires_grad_()
    result = implementation(logits, target, **options)
    return {
        "loss": result,
        "gradient": gradients(result, logits, draw.tensor(1.0 * logits.numel())),
    }


@bce_from_logits.case
def hard_labels(implementation, draw):
    rows, columns = draw.sizes(2)
    return implementation(
        2 * draw.normal(rows, columns), draw.integers(0, 1, rows, columns).float()
    )


@bce_from_logits.case
def bool_and_whole_number_labels(implementation, draw):
    n = draw.whole(3, 6)
    logits, target = 2 * draw.normal(n), draw.integers(0, 1, n)
    return {
        "bool": attempt(implementation, logits, target.bool()),
        "int64": attempt(implementation, logits, target),
    }


@bce_from_logits.case
def soft_targets(implementation, draw):
    n = draw.whole(3, 6)
    return value_and_gradient(implementation, draw, 3 * draw.normal(n), draw.uniform(n))


@bce_from_logits.case
def logits_of_20_100_and_200(implementation, draw):
    size = draw.tensor([20.0, 20.0, 100.0, 100.0, 200.0, 200.0]) * draw.uniform(6, low=0.9)
    target = draw.tensor([0.0, 1.0] * 3)
    sign = draw.choice((-1, 1))  # with one of them every sample is right, and with the other wrong
    places = torch.cat((sign * size, -sign * size))
    return value_and_gradient(implementation, draw, places, torch.cat((target, target)))


@bce_from_logits.case
def one_confident_mistake(implementation, draw):
    label = draw.choice((0.0, 1.0))
    size = draw.choice((18, 40, 95, 150, 1e4)) * (1 - 2 * label)
    logits, target = draw.normal(4), draw.integers(0, 1, 4).float()
    logits[1], target[1] = size, label
    return value_and_gradient(implementation, draw, logits, target)


@bce_from_logits.case
def a_column_of_zeros(implementation, draw):
    n = draw.whole(3, 6)
    target = draw.integers(0, 1, n, 1).float()
    target[0], target[-1] = 0, 1
    return value_and_gradient(implementation, draw, torch.zeros_like(target), target)


@bce_from_logits.case
def a_single_number_without_axes(implementation, draw):
    return implementation(draw.normal(), draw.uniform())


@bce_from_logits.case
def one_weight_for_all_positives(implementation, draw):
    rows, columns = draw.sizes(2)
    logits, target = draw.normal(rows, columns), draw.uniform(rows, columns)
    weight = draw.tensor(draw.number(2, 5))
    return value_and_gradient(implementation, draw, logits, target, pos_weight=weight)


@bce_from_logits.case
def a_weight_for_each_column_or_row(implementation, draw):
    size = draw.whole(3, 5)
    logits, target = draw.normal(size, size), draw.integers(0, 1, size, size)
    target[0], target[-1] = 0, 1
    weight = draw.uniform(size, low=2, high=9)
    return {
        "for each column": attempt(implementation, logits, target, weight),
        "for each row": attempt(implementation, logits, target, weight.unsqueeze(1)),
    }


# The nearest numbers of float32 to the largest are 1000 and 1000.00006, both off by 3e-8 of it.
@bce_from_logits.case(tolerance=(1e-8, 4e-9))
def float64_logits(implementation, draw):
    size = draw.tensor([9, 9, 12, 12, 17, 17]) * draw.uniform(6, low=0.95, dtype=torch.float64)
    sign, target = draw.choice((-1.0, 1.0)), draw.tensor([0.0, 1.0] * 3, torch.float64)
    small, large = draw.normal(2, dtype=torch.float64), draw.tensor([1000.00003], torch.float64)
    logits = torch.cat((sign * size, -large, small))
    target = torch.cat((target, draw.tensor([1, draw.whole(0, 1), 0.5], torch.float64)))
    return value_and_gradient(implementation, draw, logits, target)


@bce_from_logits.case
def float16_logits(implementation, draw):
    n = draw.whole(4, 6)
    logits, target = 3 * draw.normal(n), draw.integers(0, 1, n).float()
    logits[0], target[0] = -200, 1
    return implementation(logits.half(), target)


@bce_from_logits.case
def shapes_that_differ(implementation, draw):
    n, m = draw.sizes(2)
    shapes = (
        ((n, 1), (n,)),
        ((n,), (n, 1)),
        ((n, m), (m,)),
        ((n,), (1,)),
        ((1,), ()),
        ((n, m), (m, n)),
    )
    return [attempt(implementation, draw.normal(*a), draw.uniform(*b)) for a, b in shapes]


# The wrong answers are the reference with one step replaced.


def checked(logits, target):
    """The target in the logits' dtype."""
    if logits.shape != target.shape:
        raise ValueError("shapes differ")
    return target.to(logits.dtype)


def put_together(y, positive, negative, pos_weight):
    """The mean of both terms."""
    factor = 1 if pos_weight is None else pos_weight
    return (factor * y * positive + (1 - y) * negative).mean()


@bce_from_logits.misconception(
    "sigmoid rounds to exactly 1 near 17 in float32, so log(1 - p) is -inf, and 0 times inf is "
    "NaN. Combine logarithm and sigmoid on paper, before you compute."
)
def sigmoid_then_log(logits, target, pos_weight=None):
    y, p = checked(logits, target), logits.sigmoid()
    return put_together(y, -p.log(), -(1 - p).log(), pos_weight)


@bce_from_logits.misconception(
    "Clamping the probabilities caps the loss near 16 and has slope 0 outside the range, so the "
    "samples that are most wrong stop teaching."
)
def probabilities_clamped_by_epsilon(logits, target, pos_weight=None):
    y, p = checked(logits, target), logits.sigmoid().clamp(1e-7, 1 - 1e-7)
    return put_together(y, -p.log(), -(1 - p).log(), pos_weight)


@bce_from_logits.misconception(
    "A small number inside the logarithms caps the loss near 16 to 18, and the saturated sigmoid "
    "in front has slope 0: the samples that are most wrong stop teaching."
)
def epsilon_inside_the_logs(logits, target, pos_weight=None):
    y, p = checked(logits, target), logits.sigmoid()
    return put_together(y, -(p + 1e-8).log(), -(1 - p + 1e-8).log(), pos_weight)


@bce_from_logits.misconception(
    "Logarithms that stop at -100, as in F.binary_cross_entropy, hide the problem: beyond 17 the "
    "value is 100 where it should be 17, and the saturated sigmoid in front has slope 0."
)
def logs_clamped_at_minus_100(logits, target, pos_weight=None):
    y, p = checked(logits, target), logits.sigmoid()
    positive, negative = p.log().clamp(min=-100), (1 - p).log().clamp(min=-100)
    return put_together(y, -positive, -negative, pos_weight)


@bce_from_logits.misconception(
    "Clamping the logits keeps exp finite, caps the loss, and has slope 0 outside the range: the "
    "samples that are most wrong stop teaching."
)
def clamps_the_logits(logits, target, pos_weight=None):
    clamped = logits.clamp(-50, 50)
    return bce_from_logits.reference(clamped, target, pos_weight)


@bce_from_logits.misconception(
    "log(1 + exp(x)), or the log of a sigmoid of either sign, is right on paper. In float32 exp "
    "overflows from 89 on, and the loss is inf. There is a library function for this expression."
)
def softplus_by_hand(logits, target, pos_weight=None):
    y = checked(logits, target)
    positive, negative = (1 + torch.exp(-logits)).log(), (1 + torch.exp(logits)).log()
    return put_together(y, positive, negative, pos_weight)


@bce_from_logits.misconception(
    "The value is right. At logit 0 clamp and abs have a kink, and autograd picks slopes that do "
    "not cancel: the gradient there is wrong by a half, and heads that start at zero sit there."
)
def clamp_and_abs(logits, target, pos_weight=None):
    y, tail = checked(logits, target), torch.log1p(torch.exp(-logits.abs()))
    return put_together(y, (-logits).clamp(min=0) + tail, logits.clamp(min=0) + tail, pos_weight)


@bce_from_logits.misconception(
    "The value is right. At logit 0 relu and abs both get slope 0 from autograd, so a head that "
    "starts at zero never leaves its start. The true slope of softplus there is a half."
)
def relu_and_abs(logits, target, pos_weight=None):
    y, tail = checked(logits, target), torch.log1p(torch.exp(-logits.abs()))
    return put_together(y, (-logits).relu() + tail, logits.relu() + tail, pos_weight)


@bce_from_logits.misconception(
    "The formula max(x, 0) − x·y + log(1 + exp(−|x|)) has the right value. At logit 0 clamp and "
    "abs have a kink, and the gradient there is 1 − y instead of 0.5 − y."
)
def clamp_and_abs_in_one_formula(logits, target, pos_weight=None):
    y, tail = checked(logits, target), torch.log1p(torch.exp(-logits.abs()))
    if pos_weight is None:
        return (logits.clamp(min=0) - logits * y + tail).mean()
    factor = 1 + (pos_weight - 1) * y
    return ((1 - y) * logits + factor * (tail + (-logits).clamp(min=0))).mean()


@bce_from_logits.misconception(
    "The formula (1 − y)·x + log(1 + exp(−|x|)) + max(−x, 0) has the right value. At logit 0 clamp "
    "and abs have a kink, and the gradient there is −y instead of 0.5 − y."
)
def clamp_and_abs_in_the_mirrored_formula(logits, target, pos_weight=None):
    y, tail = checked(logits, target), torch.log1p(torch.exp(-logits.abs()))
    factor = 1 if pos_weight is None else 1 + (pos_weight - 1) * y
    return ((1 - y) * logits + factor * (tail + (-logits).clamp(min=0))).mean()


@bce_from_logits.misconception(
    "Autograd differentiates both branches of torch.where. In the one not taken exp overflows, "
    "and 0 times inf is NaN."
)
def unstable_where(logits, target, pos_weight=None):
    def softplus(x):
        safe = torch.log1p(torch.exp(-x))
        return torch.where(x > 0, x + safe, torch.log1p(torch.exp(x)))

    y = checked(logits, target)
    return put_together(y, softplus(-logits), softplus(logits), pos_weight)


@bce_from_logits.misconception(
    "pos_weight multiplies both terms, which only rescales the loss. It belongs to the positive "
    "term alone."
)
def pos_weight_scales_everything(logits, target, pos_weight=None):
    y = checked(logits, target)
    losses = y * F.softplus(-logits) + (1 - y) * F.softplus(logits)
    return (losses if pos_weight is None else pos_weight * losses).mean()


@bce_from_logits.misconception(
    "pos_weight lost the axes it came with. Weights of shape (N, 1) belong to the rows, and "
    "without their second axis they are lined up with the columns."
)
def flattens_pos_weight(logits, target, pos_weight=None):
    flat = None if pos_weight is None else pos_weight.reshape(-1)
    return bce_from_logits.reference(logits, target, flat)


@bce_from_logits.misconception(
    "pos_weight multiplies the negative term. It is there to make rare positives count more."
)
def weighs_the_negatives(logits, target, pos_weight=None):
    y = checked(logits, target)
    factor = 1 if pos_weight is None else pos_weight
    return put_together(y, F.softplus(-logits), factor * F.softplus(logits), None)


@bce_from_logits.misconception(
    "With pos_weight you divided by the sum of the weights. That is what the class weights of "
    "cross-entropy do; here the mean divides by the number of elements."
)
def divides_by_the_weights(logits, target, pos_weight=None):
    y = checked(logits, target)
    factor = torch.ones_like(y) if pos_weight is None else 1 + (pos_weight - 1) * y
    losses = put_together(y, F.softplus(-logits), F.softplus(logits), pos_weight)
    return losses * y.numel() / factor.sum()


@bce_from_logits.misconception(
    "The sign of the logit is the wrong way round: the loss of a positive should fall when its "
    "logit rises."
)
def signs_swapped(logits, target, pos_weight=None):
    y = checked(logits, target)
    return put_together(y, F.softplus(logits), F.softplus(-logits), pos_weight)


@bce_from_logits.misconception(
    "Each target was taken for a yes or a no. A soft target of 0.3 is three tenths of one term "
    "and seven tenths of the other."
)
def hard_decisions(logits, target, pos_weight=None):
    y = (checked(logits, target) > 0.5).to(logits.dtype)
    return put_together(y, F.softplus(-logits), F.softplus(logits), pos_weight)


@bce_from_logits.misconception(
    "bool targets fail: torch does not subtract bools. Convert the target to the dtype of the "
    "logits first."
)
def target_not_converted(logits, target, pos_weight=None):
    checked(logits, target)
    loss = put_together(target, F.softplus(-logits), F.softplus(logits), pos_weight)
    return loss.to(logits.dtype)


@bce_from_logits.misconception(
    "Shapes were left to broadcasting: (N, 1) against (N,) became an (N, N) table. Compare the "
    "shapes and raise."
)
def broadcasts(logits, target, pos_weight=None):
    y = target.to(logits.dtype)
    return put_together(y, F.softplus(-logits), F.softplus(logits), pos_weight)


@bce_from_logits.misconception(
    "The losses are added up; the contract asks for their mean over all elements."
)
def sums(logits, target, pos_weight=None):
    return bce_from_logits.reference(logits, target, pos_weight) * logits.numel()


@bce_from_logits.misconception(
    "A result came out as float32 where it should not. Compute in a wider type where you like, and "
    "return the dtype of the logits."
)
def always_float32(logits, target, pos_weight=None):
    return bce_from_logits.reference(logits.float(), target, pos_weight)


@bce_from_logits.misconception(
    "The result has the right dtype and the digits of float32: float64 logits were computed with "
    "in float32. A wider type is welcome, a narrower one loses what the caller paid for."
)
def float32_inside(logits, target, pos_weight=None):
    return bce_from_logits.reference(logits.float(), target, pos_weight).to(logits.dtype)


bce_from_logits.hints(
    "Which single library function is −log sigmoid(x), up to a sign?",
    "Write the term of the positives and the term of the negatives separately.",
    "Test the gradient at 0, and at 200 and −200 with the wrong label.",
)
