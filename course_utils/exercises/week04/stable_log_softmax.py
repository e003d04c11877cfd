"""Log-softmax along any dimension, without overflow, underflow or NaN."""

from functools import reduce

import torch
from torch.nn import functional as F

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("losses.logsumexp", "losses.logits"),
    forbids=(
        torch.log_softmax,
        torch.Tensor.log_softmax,
        torch.special.log_softmax,
        F.log_softmax,
        torch.logsumexp,
        torch.Tensor.logsumexp,
        torch.special.logsumexp,
        F.cross_entropy,
    ),
)
def stable_log_softmax(logits: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Logarithm of the softmax of logits along dim, which counts from the end where it is negative.

    logits: floating point, any shape with at least one dimension. The size along dim is at least
    1; other sizes may be 0. Return a tensor of the same shape, dtype and device.

    It has to be right for all finite logits whose differences the dtype can hold, up to the
    rounding of the logits themselves, and for slices where some entries, but not all, are -inf:
    those entries give -inf. It is differentiable, with d out_i / d logits_j = [i == j] - softmax_j.
    logits is not modified.
    """
    shifted = logits - logits.amax(dim=dim, keepdim=True).detach()
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


# A logit near 10,000 is itself known to about 0.001 in float32; answers that add the maximum back
# round there.
COARSE = (1e-4, 4e-3)


@stable_log_softmax.case
def a_square_table_along_each_dimension(implementation, draw):
    side = draw.whole(3, 5)
    table = 2 * draw.normal(side, side)
    return [implementation(table, dim) for dim in (0, 1, -1)]


@stable_log_softmax.case
def a_permuted_block_along_each_dimension(implementation, draw):
    block = (2 * draw.normal(*draw.sizes(3, high=4))).permute(2, 0, 1)
    return [implementation(block, dim=dim) for dim in (0, 1, -1, -2)]


@stable_log_softmax.case
def one_row_without_other_dimensions(implementation, draw):
    return implementation(draw.normal(draw.whole(3, 7)) + draw.number(-3, 3))


@stable_log_softmax.case(tolerance=(1e-4, 2e-4))
def logits_of_several_hundred(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(300 * draw.normal(rows, columns))


@stable_log_softmax.case(tolerance=COARSE)
def rows_at_opposite_ends_of_the_scale(implementation, draw):
    columns = draw.whole(3, 6)
    levels = draw.tensor([[1e4], [1000.0], [0.0], [-1000.0], [-1e4]])
    return implementation(levels + 2 * draw.normal(5, columns))


@stable_log_softmax.case(tolerance=COARSE)
def columns_at_opposite_ends_of_the_scale(implementation, draw):
    rows = draw.whole(3, 6)
    levels = draw.tensor([1e4, 0.0, -1e4])
    return implementation(levels + 2 * draw.normal(rows, 3), dim=0)


@stable_log_softmax.case
def one_logit_far_above_the_others(implementation, draw):
    columns = draw.whole(3, 6)
    table = draw.uniform(3, columns, low=-1e4, high=-5e3)
    table[draw.permutation(3), draw.integers(0, columns - 1, 3)] = draw.number(5e3, 1e4)
    return implementation(table)


# Fine enough to see the digits that float32 does not have, and a small number in a sum.
@stable_log_softmax.case(tolerance=(1e-10, 2e-11))
def float64_logits(implementation, draw):
    rows, columns = draw.sizes(2)
    table = draw.normal(rows, columns, dtype=torch.float64)
    return implementation(torch.cat((table, 2000 * table)), dim=1)


@stable_log_softmax.case(tolerance=(1e-2, 2e-2))
def float16_logits(implementation, draw):
    columns = draw.whole(4, 7)
    tame, wild = 3 * draw.normal(2, columns), draw.uniform(1, columns, low=-3e4, high=1e4)
    wild[0, draw.whole(0, columns - 1)] = 3e4
    return implementation(torch.cat((tame, tame + 15, wild)).half())


@stable_log_softmax.case
def some_entries_minus_infinity(implementation, draw):
    columns = draw.whole(4, 6)
    logits = draw.normal(3, columns)
    masked = torch.zeros(3, columns, dtype=torch.bool, device=draw.device)
    masked[0, :2] = masked[1, -2:] = masked[2, draw.whole(1, columns - 2)] = True
    logits = logits.masked_fill(masked, -torch.inf).requires_grad_()
    result = implementation(logits)
    upstream = draw.normal(3, columns).masked_fill(masked, 0)
    return {"result": result, "gradient": gradients(result, logits, upstream)}


@stable_log_softmax.case
def sizes_one_and_zero(implementation, draw):
    n = draw.whole(3, 6)
    return [
        implementation(draw.normal(n, 1)),
        implementation(draw.normal(0, n)),
        implementation(draw.normal(n, 0), dim=0),
    ]


@stable_log_softmax.case
def the_gradient_of_a_weighted_sum(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    logits = draw.normal(rows, columns, requires_grad=True)
    result = implementation(logits, 0)
    return {"gradient": gradients(result, logits, draw.normal(rows, columns))}


@stable_log_softmax.case
def the_gradient_where_one_logit_leads_by_far(implementation, draw):
    columns = draw.whole(3, 6)
    logits = draw.normal(2, columns)
    logits[:, 1] += draw.tensor([200.0, 1e4])
    logits.requires_grad_()
    return {"gradient": gradients(implementation(logits), logits, draw.normal(2, columns))}


@stable_log_softmax.misconception(
    "Softmax has already rounded tiny probabilities to 0. The log of 0 is -inf, and its gradient "
    "is NaN: the logarithm comes too late. Stay in log space."
)
def log_of_softmax(logits, dim=-1):
    return logits.softmax(dim=dim).log()


@stable_log_softmax.misconception(
    "Computing the softmax in float64 only moves the edge: exp underflows there from a difference "
    "of 745 on instead of 103. The logarithm still comes too late; stay in log space."
)
def log_of_softmax_in_float64(logits, dim=-1):
    return logits.double().softmax(dim=dim).log().to(logits.dtype)


@stable_log_softmax.misconception(
    "exp overflows float32 above 88.7. The sum is inf then, and every log-probability of the slice "
    "is lost. Use that a constant may be subtracted from a whole slice."
)
def no_shift(logits, dim=-1):
    return logits - logits.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "One shift for the whole tensor leaves other slices far below zero, where every exp underflows "
    "and the log of 0 appears. Each slice needs a maximum of its own."
)
def shift_by_the_global_maximum(logits, dim=-1):
    if logits.numel() == 0:
        return logits.clone()
    shifted = logits - logits.max()
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "The shift is the mean of a slice. A logit far above the mean still overflows, and one -inf "
    "makes the mean -inf. Which constant leaves no exponent above 0?"
)
def shift_by_the_mean(logits, dim=-1):
    shifted = logits - logits.mean(dim=dim, keepdim=True)
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "Adding a small number to the softmax keeps its logarithm above about -18 and biases every "
    "value and gradient. None is needed once the largest term is exp(0)."
)
def epsilon_inside_the_log(logits, dim=-1):
    return (logits.softmax(dim=dim) + 1e-8).log()


@stable_log_softmax.misconception(
    "The softmax was kept away from 0 by a clamp. Below it every log-probability is the same "
    "number, and the gradient is 0. None is needed if you stay in log space."
)
def clamps_the_softmax(logits, dim=-1):
    return logits.softmax(dim=dim).clamp(min=torch.finfo(logits.dtype).tiny).log()


@stable_log_softmax.misconception(
    "Clamping the logits keeps exp finite and changes the answer: logits of 300 and 200 become "
    "equal. A shift keeps their difference."
)
def clamps_the_logits(logits, dim=-1):
    clamped = logits.clamp(-80, 80)
    return clamped - clamped.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "The normalization ran over the last axis, whatever was asked for. Every reduction has to "
    "get `dim`."
)
def ignores_dim(logits, dim=-1):
    return stable_log_softmax.reference(logits, -1)


@stable_log_softmax.misconception(
    "Every negative dim was taken for the last axis. -2 is the last but one. torch's reductions "
    "understand negative numbers."
)
def any_negative_dim_is_the_last(logits, dim=-1):
    return stable_log_softmax.reference(logits, max(dim, -1))


@stable_log_softmax.misconception(
    "The sum ran along `dim`, and the maximum along the last axis. A shift changes nothing only "
    "where it is the same for all logits of one softmax: both have to run along `dim`."
)
def maximum_along_the_last_axis(logits, dim=-1):
    if not logits.shape[-1]:
        return logits.clone()
    shifted = logits - logits.amax(dim=-1, keepdim=True).detach()
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "The maximum lost its axis, so it was lined up with the wrong axis of the logits, or with "
    "none. Keep the reduced axis."
)
def maximum_without_its_axis(logits, dim=-1):
    shifted = logits - logits.amax(dim=dim)
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "Maximum and sum lost their axis, so both were lined up with the wrong axis of the logits, or "
    "with none. Keep the reduced axis."
)
def reductions_without_their_axis(logits, dim=-1):
    shifted = logits - logits.amax(dim=dim)
    return shifted - shifted.exp().sum(dim=dim).log()


@stable_log_softmax.misconception(
    "The values are right and the gradient is not: the log of the sum was cut from the graph, and "
    "with it the softmax in the gradient. Only the shift may be a constant."
)
def constant_normalizer(logits, dim=-1):
    shifted = logits - logits.detach().amax(dim=dim, keepdim=True)
    return shifted - shifted.detach().exp().sum(dim=dim, keepdim=True).log()


@stable_log_softmax.misconception(
    "The slice was added up entry by entry, as with logaddexp. The values are right; where a slice "
    "starts with two entries of -inf, the gradient is NaN. Take the whole slice at once."
)
def folds_with_logaddexp(logits, dim=-1):
    return logits - reduce(torch.logaddexp, logits.unbind(dim)).unsqueeze(dim)


@stable_log_softmax.misconception(
    "The result is the logarithm's argument: probabilities. Log-probabilities are at most 0."
)
def returns_probabilities(logits, dim=-1):
    return logits.softmax(dim=dim)


@stable_log_softmax.misconception(
    "A result came out as float32 where it should not. Compute in a wider type where you like, and "
    "return the dtype that came in."
)
def always_float32(logits, dim=-1):
    return stable_log_softmax.reference(logits.float(), dim)


@stable_log_softmax.misconception(
    "The result has the right dtype and the digits of float32: float64 logits were computed with "
    "in float32. A wider type is welcome, a narrower one loses what the caller paid for."
)
def float32_inside(logits, dim=-1):
    return stable_log_softmax.reference(logits.float(), dim).to(logits.dtype)


@stable_log_softmax.misconception(
    "The sum was already at least 1, and a small number was added to it. That only moves the "
    "result: with float64 logits it shows. Which term of the sum is never below 1?"
)
def epsilon_in_the_sum(logits, dim=-1):
    shifted = logits - logits.amax(dim=dim, keepdim=True).detach()
    return shifted - (shifted.exp().sum(dim=dim, keepdim=True) + 1e-8).log()


@stable_log_softmax.misconception(
    "You changed the tensor you were given: -= and functions whose name ends in _ write into it. "
    "Subtract into a new one."
)
def edits_the_input(logits, dim=-1):
    result = stable_log_softmax.reference(logits, dim)
    with torch.no_grad():
        logits -= logits.amax(dim=dim, keepdim=True)
    return result


stable_log_softmax.hints(
    "What can you add to all logits of a slice without changing its softmax?",
    "Which constant leaves no exponent above 0, and at least one equal to 0?",
    "A reduction that keeps its axis lines up with the logits again, whatever `dim` is.",
)
