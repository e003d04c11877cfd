"""Class weights and label smoothing together, with torch's denominator."""

import torch
from torch.nn import functional as F

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("losses.weights_smoothing",),
    forbids=(F.cross_entropy, F.nll_loss),
)
def weighted_smoothed_ce(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Class-weighted, label-smoothed cross-entropy with torch's mean reduction.

    logits: (N, C), floating point and finite, N >= 1, C >= 2. target: (N,), int64, in [0, C).
    weight: (C,), not negative, of the logits' dtype. label_smoothing is called eps here, and
    0 <= eps <= 1.

    With lp = log_softmax(logits, 1) and q[i, c] = (1 - eps) * [c == target[i]] + eps / C:
    numerator = -(sum over i and c of q[i, c] * weight[c] * lp[i, c]);
    return numerator / (sum over i of weight[target[i]]), of shape () and in the logits' dtype.

    If all targets have weight 0, the result is nan for eps = 0; for eps > 0 that does not occur.
    Stay right for logits of magnitude 10,000. The inputs are not modified.
    """
    classes = logits.shape[1]
    lp = logits.log_softmax(dim=1)
    one_hot = F.one_hot(target, classes).to(logits.dtype)
    q = (1 - label_smoothing) * one_hot + label_smoothing / classes
    return -(q * weight * lp).sum() / weight[target].sum()


def batch(draw, n, classes, dtype=torch.float32):
    """Logits, targets of at least two classes where n allows it, and weights that all differ."""
    target = draw.integers(0, classes - 1, n)
    target[0] = (target[-1] + 1) % classes
    weight = draw.uniform(classes, low=0.5, high=1.5, dtype=dtype)
    weight = weight * (1 + torch.arange(classes, device=draw.device)[draw.permutation(classes)])
    return 2 * draw.normal(n, classes, dtype=dtype), target, weight.to(dtype)


@weighted_smoothed_ce.case
def weights_alone(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    return implementation(*batch(draw, n, classes))


@weighted_smoothed_ce.case
def a_little_smoothing(implementation, draw):
    n = draw.choice((3, 4, 6, 7))
    return implementation(*batch(draw, n, 5), label_smoothing=0.1)


@weighted_smoothed_ce.case
def two_classes_and_more_smoothing(implementation, draw):
    return implementation(*batch(draw, draw.whole(3, 6), 2), draw.number(0.2, 0.4))


@weighted_smoothed_ce.case
def nothing_but_smoothing(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    return implementation(*batch(draw, n, classes), 1.0)


@weighted_smoothed_ce.case
def a_batch_of_one(implementation, draw):
    return implementation(*batch(draw, 1, draw.whole(3, 6)), 0.2)


@weighted_smoothed_ce.case(tolerance=(1e-9, 1e-10))
def float64_logits(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target, weight = batch(draw, n, classes, torch.float64)
    result = implementation(logits.requires_grad_(), target, weight, draw.number(0.05, 0.3))
    return {"loss": result, "gradient": gradients(result, logits)}


@weighted_smoothed_ce.case
def float16_logits(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target, weight = batch(draw, n, classes)
    return implementation(logits.half(), target, weight.half(), 0.1)


# Near 10,000 a logit is itself known to about 0.001 in float32, and so is exp of it, relatively.
@weighted_smoothed_ce.case(tolerance=(2e-3, 2e-3))
def logits_from_1000_to_10_000(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target, weight = batch(draw, n, classes)
    logits = draw.uniform(n, classes, low=-1000) + draw.tensor([[1e4]])
    logits[-1] = draw.uniform(classes, low=-1e4, high=1e4)
    logits.requires_grad_()
    result = implementation(logits, target, weight, 0.1)
    return {"loss": result, "gradient": gradients(result, logits, draw.normal())}


@weighted_smoothed_ce.case
def classes_of_weight_0(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target, weight = batch(draw, n, classes)
    weight[target[0]] = 0
    alone = target[:1].expand(n)
    return [
        implementation(logits, target, weight, 0.1),
        implementation(logits, alone, weight),
    ]


@weighted_smoothed_ce.case
def the_gradient(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target, weight = batch(draw, n, classes)
    logits.requires_grad_()
    result = implementation(logits, target, weight, 0.3)
    return {"gradient": gradients(result, logits, draw.uniform(low=1, high=3))}


# The wrong answers are the reference with one step replaced.


def smoothed(logits, target, eps):
    """The smoothed target matrix."""
    classes = logits.shape[1]
    return (1 - eps) * F.one_hot(target, classes).to(logits.dtype) + eps / classes


def total(logits, target, weight, eps):
    """The numerator."""
    return -(smoothed(logits, target, eps) * weight * logits.log_softmax(1)).sum()


@weighted_smoothed_ce.misconception(
    "You divided by the batch size. The weighted mean divides by the weights of the targets; "
    "otherwise scaling all weights scales the learning rate."
)
def divides_by_the_batch_size(logits, target, weight, label_smoothing=0.0):
    return total(logits, target, weight, label_smoothing) / len(target)


@weighted_smoothed_ce.misconception(
    "mean() over the whole table divides by N · C and takes no notice of the weights. The weighted "
    "mean divides by the weights of the targets."
)
def averages_over_the_table(logits, target, weight, label_smoothing=0.0):
    return total(logits, target, weight, label_smoothing) / logits.numel()


@weighted_smoothed_ce.misconception(
    "You divided by the sum of all class weights. The denominator depends on which classes occur "
    "in this batch, and how often."
)
def divides_by_the_sum_of_all_class_weights(logits, target, weight, label_smoothing=0.0):
    return total(logits, target, weight, label_smoothing) / weight.sum()


@weighted_smoothed_ce.misconception(
    "You divided by the weights that the smoothed target adds up to. torch looks up one weight for "
    "each target index, with smoothing as without."
)
def divides_by_the_smoothed_weights(logits, target, weight, label_smoothing=0.0):
    q = smoothed(logits, target, label_smoothing)
    return total(logits, target, weight, label_smoothing) / (q * weight).sum()


@weighted_smoothed_ce.misconception(
    "The uniform part covers all C classes, the true one included: it gets eps / C back. You "
    "spread eps over the other classes only."
)
def smoothing_only_over_the_other_classes(logits, target, weight, label_smoothing=0.0):
    classes = logits.shape[1]
    one_hot = F.one_hot(target, classes).to(logits.dtype)
    q = (1 - label_smoothing) * one_hot + label_smoothing / (classes - 1) * (1 - one_hot)
    return -(q * weight * logits.log_softmax(1)).sum() / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "The other classes get eps / C, and the true one only 1 - eps, so the smoothed target does not "
    "sum to 1. The uniform part belongs to all C classes."
)
def true_class_without_its_share(logits, target, weight, label_smoothing=0.0):
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    q = (1 - label_smoothing) * one_hot + label_smoothing / logits.shape[1] * (1 - one_hot)
    return -(q * weight * logits.log_softmax(1)).sum() / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "The true class keeps its full 1 and eps / C comes on top, so the smoothed target sums to more "
    "than 1. What the uniform part gets is taken from the one-hot part."
)
def adds_smoothing_on_top(logits, target, weight, label_smoothing=0.0):
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    q = one_hot + label_smoothing / logits.shape[1]
    return -(q * weight * logits.log_softmax(1)).sum() / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "The two shares are the wrong way round: eps is what the uniform part gets, and the one-hot "
    "part keeps the rest."
)
def swaps_the_shares(logits, target, weight, label_smoothing=0.0):
    return total(logits, target, weight, 1 - label_smoothing) / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "The smoothing term carries no weights. Each class's share of the smoothed target is "
    "multiplied by that class's weight."
)
def smoothing_term_unweighted(logits, target, weight, label_smoothing=0.0):
    lp = logits.log_softmax(1)
    hard = (weight[target] * lp.gather(1, target[:, None])[:, 0]).sum()
    numerator = (1 - label_smoothing) * hard + label_smoothing / logits.shape[1] * lp.sum()
    return -numerator / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "Each sample's whole loss is multiplied by the weight of its target. The weights belong to the "
    "columns: every class's share of the smoothed target carries its own."
)
def weighs_samples_instead_of_classes(logits, target, weight, label_smoothing=0.0):
    losses = -(smoothed(logits, target, label_smoothing) * logits.log_softmax(1)).sum(1)
    return (losses * weight[target]).sum() / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "Without smoothing the weights have no effect: the plain mean comes out. Either they are left "
    "out there, or every sample is divided by its own weight, so that it cancels. The weighted "
    "mean is one sum divided by another."
)
def divides_sample_by_sample(logits, target, weight, label_smoothing=0.0):
    q = smoothed(logits, target, label_smoothing)
    return (-(q * weight * logits.log_softmax(1)).sum(1) / weight[target]).mean()


@weighted_smoothed_ce.misconception(
    "The weights appear nowhere in the numerator. A rare class with a large weight should pull "
    "harder than the others."
)
def forgets_the_weights(logits, target, weight, label_smoothing=0.0):
    return total(logits, target, torch.ones_like(weight), label_smoothing) / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "label_smoothing has no effect: the target matrix is plain one-hot."
)
def ignores_the_smoothing(logits, target, weight, label_smoothing=0.0):
    return weighted_smoothed_ce.reference(logits, target, weight)


@weighted_smoothed_ce.misconception(
    "The softmax was taken first and its logarithm afterwards. Large differences round to the "
    "probability 0, whose log is -inf; stay in log space."
)
def log_of_softmax(logits, target, weight, label_smoothing=0.0):
    q = smoothed(logits, target, label_smoothing)
    return -(q * weight * logits.softmax(1).log()).sum() / weight[target].sum()


@weighted_smoothed_ce.misconception(
    "The loss came out as float32 for other logits too. If that is from .float(), on the one-hot "
    "matrix for instance: convert to the dtype of the logits instead."
)
def float32_one_hot(logits, target, weight, label_smoothing=0.0):
    return weighted_smoothed_ce.reference(logits.float(), target, weight.float(), label_smoothing)


@weighted_smoothed_ce.misconception(
    "A batch whose targets all have weight 0 gives a finite number. The contract asks for 0 / 0, "
    "which is nan: no lower limit on the denominator, nothing added to it, no 0 returned instead."
)
def epsilon_in_the_denominator(logits, target, weight, label_smoothing=0.0):
    denominator = weight[target].sum().clamp(min=1e-2)
    return total(logits, target, weight, label_smoothing) / denominator


@weighted_smoothed_ce.misconception(
    "You scaled the weights you were given, in place. The caller will use them for the next batch; "
    "work on a tensor of your own."
)
def edits_the_weights(logits, target, weight, label_smoothing=0.0):
    result = weighted_smoothed_ce.reference(logits, target, weight, label_smoothing)
    weight /= weight.sum()
    return result


weighted_smoothed_ce.hints(
    "Write the smoothed target matrix q first. What does each of its rows sum to?",
    "The class weights belong to the columns of q.",
    "Take eps = 0 and two samples, and work the denominator out by hand: which weights are in it?",
)
