"""One number for a padded corpus: a sum and a count, divided once, exponentiated once."""

import math
from collections.abc import Iterable

import torch
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("losses.perplexity", "losses.ignore_index", "losses.cross_entropy"))
def corpus_perplexity(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], ignore_index: int = -100
) -> float:
    """Perplexity of a padded corpus: exp(total negative log-likelihood / counted tokens), with the
    natural logarithm, as a Python float.

    batches: an iterable, possibly a generator, so read it once. Its items are (logits, target):
    logits (B, T, C), floating point, float16 too; target (B, T), int64. B and T may differ from
    batch to batch. A position where target == ignore_index is padding; ignore_index may be a valid
    class too.

    A batch may be nothing but padding. Return float("nan") if no token is counted in all. Build no
    graph, leave grad mode as it was, and do not modify the batches.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for logits, target in batches:
            kept = target != ignore_index
            total += F.cross_entropy(logits[kept].double(), target[kept], reduction="sum").item()
            count += kept.sum().item()
    return math.exp(total / count) if count else math.nan


def batch(draw, rows, steps, classes, pad=-100, dtype=torch.float32):
    """Logits and targets; in every row but the first the last few positions are padding."""
    target = draw.integers(0, classes - 1, rows, steps)
    for row in range(1, rows):
        target[row, steps - draw.whole(1, steps - 1) :] = pad
    return draw.normal(rows, steps, classes, dtype=dtype) * 2, target


def corpus(draw, classes, **options):
    """Three batches of different sizes."""
    rows = draw.sizes(3, high=5)
    return [batch(draw, b, t, classes, **options) for b, t in zip(rows, (3, 9, 5), strict=True)]


@corpus_perplexity.case
def batches_of_different_sizes(implementation, draw):
    return implementation(corpus(draw, draw.choice((4, 7))))


@corpus_perplexity.case
def as_many_positions_as_classes(implementation, draw):
    size = draw.whole(4, 6)
    return implementation([batch(draw, rows, size, size) for rows in (2, 3)])


@corpus_perplexity.case
def next_tokens_with_padding_of_minus_1(implementation, draw):
    whole = corpus(draw, 6, pad=-1)
    return implementation([(logits[:, :-1], target[:, 1:]) for logits, target in whole], -1)


@corpus_perplexity.case
def padding_with_class_0(implementation, draw):
    return implementation(corpus(draw, 6, pad=0), ignore_index=0)


@corpus_perplexity.case
def a_batch_of_nothing_but_padding(implementation, draw):
    batches = corpus(draw, 6)
    batches[1][1].fill_(-100)
    return implementation(batches)


@corpus_perplexity.case
def no_token_at_all(implementation, draw):
    batches = corpus(draw, 6)[:2]
    for _, target in batches:
        target.fill_(-100)
    return {
        "no batches": attempt(implementation, []),
        "nothing but padding": attempt(implementation, batches),
    }


@corpus_perplexity.case
def a_generator(implementation, draw):
    return implementation(pair for pair in corpus(draw, 6))


# Near 10,000 float32 knows a logit to about 0.001, and so perplexity to a thousandth of itself.
@corpus_perplexity.case(tolerance=(2e-3, 0.0))
def confident_logits_of_10_000(implementation, draw):
    logits, target = batch(draw, 2, 6, 4)
    likely = target.clamp(min=0).unsqueeze(2)
    logits = logits - 1e4 * draw.uniform(2, 6, 4, low=0.1)
    logits.scatter_(2, likely, 1e4)
    wrong = target[0, 2].item()  # the one position where the model was confident and wrong
    logits[0, 2] = 1e4
    logits[0, 2, wrong] = 1e4 - draw.number(110, 160)
    return implementation([(logits, target), batch(draw, 2, 3, 4)])


@corpus_perplexity.case(tolerance=(2e-2, 0.0))
def float16_logits_with_a_large_total(implementation, draw):
    steps = draw.whole(900, 1000)
    target = draw.integers(0, 2, 3, steps)
    logits = draw.normal(3, steps, 3).scatter(2, target.unsqueeze(2), -draw.number(38, 45))
    return implementation([(logits.half(), target)])


@corpus_perplexity.case(tolerance=(1e-4, 1e-5))
def what_is_kept_for_a_backward_pass(implementation, draw):
    saved = []
    logits, target = batch(draw, 2, 4, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = implementation([(logits.requires_grad_(), target)])
    seen = {
        "perplexity": result,
        "something saved for backward": bool(saved),
        "grad mode afterwards": torch.is_grad_enabled(),
    }
    with torch.no_grad():
        implementation([(logits, target)])
        return seen | {"grad mode after a call under no_grad": torch.is_grad_enabled()}


# The wrong answers walk through the corpus like the reference.


def counted(batches, ignore_index):
    """The losses of the counted tokens, and the number of all positions, batch by batch."""
    with torch.no_grad():
        for logits, target in batches:
            kept = target != ignore_index
            losses = F.cross_entropy(logits[kept].double(), target[kept], reduction="none")
            yield losses, target.numel()


def exponential(total, count):
    """exp of the mean, nan where there is nothing to divide by."""
    return math.exp(total / count) if count else math.nan


@corpus_perplexity.misconception(
    "Perplexities of batches were averaged. exp is convex and batches differ in size, so the mean "
    "comes out too large: average the log-loss over tokens first, exponentiate once."
)
def mean_of_batch_perplexities(batches, ignore_index=-100):
    values = [
        losses.mean().exp().item() for losses, _ in counted(batches, ignore_index) if len(losses)
    ]
    return sum(values) / len(values) if values else math.nan


@corpus_perplexity.misconception(
    "The means of the batches were averaged, so a batch of three tokens got the same say as one of "
    "three hundred. Carry a sum and a count."
)
def mean_of_batch_means(batches, ignore_index=-100):
    means = [losses.mean().item() for losses, _ in counted(batches, ignore_index) if len(losses)]
    return exponential(sum(means), len(means))


@corpus_perplexity.misconception(
    "The means of the batches were averaged, also those of batches that are nothing but padding: "
    "such a mean is NaN, and one NaN spoils the sum. Carry a sum and a count instead."
)
def mean_of_batch_means_with_nan(batches, ignore_index=-100):
    means = [losses.mean().item() for losses, _ in counted(batches, ignore_index)]
    return exponential(sum(means), len(means))


@corpus_perplexity.misconception(
    "One batch of nothing but padding makes the whole result nan. If you take its mean, that is "
    "NaN, and NaN times a count of 0 is NaN too; its sum is 0, and so is its count."
)
def mean_times_count(batches, ignore_index=-100):
    pairs = [(losses.mean().item(), len(losses)) for losses, _ in counted(batches, ignore_index)]
    return exponential(sum(mean * n for mean, n in pairs), sum(n for _, n in pairs))


@corpus_perplexity.misconception(
    "Padding was counted in the denominator. It adds nothing to the sum, so the perplexity looks "
    "better the more you pad."
)
def padding_counted_in_the_denominator(batches, ignore_index=-100):
    pairs = [(losses.sum().item(), size) for losses, size in counted(batches, ignore_index)]
    kept = any(total for total, _ in pairs)
    return exponential(sum(total for total, _ in pairs), sum(n for _, n in pairs) * kept)


@corpus_perplexity.misconception(
    "cross_entropy takes classes from axis 1. Given (B, T, C) it read time as classes, in silence "
    "where T == C, and with an error elsewhere."
)
def time_axis_read_as_classes(batches, ignore_index=-100):
    total, count = 0.0, 0
    for logits, target in batches:
        loss = F.cross_entropy(
            logits.detach().double(), target, ignore_index=ignore_index, reduction="sum"
        )
        total, count = total + loss.item(), count + (target != ignore_index).sum().item()
    return exponential(total, count)


@corpus_perplexity.misconception(
    "The class axis was moved by reshape, which regroups memory: logits of different positions get "
    "mixed. Transpose the axes, or flatten the positions."
)
def reshapes_instead_of_transposing(batches, ignore_index=-100):
    mixed = [
        (logits.reshape(len(logits), logits.shape[2], -1).transpose(1, 2), target)
        for logits, target in batches
    ]
    return corpus_perplexity.reference(mixed, ignore_index)


@corpus_perplexity.misconception(
    "The batches are read twice, and a generator is empty the second time. Collect the sum and the "
    "count in one pass."
)
def reads_the_batches_twice(batches, ignore_index=-100):
    count = sum((target != ignore_index).sum().item() for _, target in batches)
    total = sum(losses.sum().item() for losses, _ in counted(batches, ignore_index))
    return exponential(total, count)


@corpus_perplexity.misconception(
    "Where no token is counted you divide by 0. There is no perplexity of nothing; the contract "
    "asks for nan."
)
def divides_by_zero(batches, ignore_index=-100):
    sums = [(losses.sum().item(), len(losses)) for losses, _ in counted(batches, ignore_index)]
    return math.exp(sum(total for total, _ in sums) / sum(n for _, n in sums))


@corpus_perplexity.misconception(
    "Where no token is counted you return exp(0) = 1, the score of a perfect model. There is no "
    "perplexity of nothing; the contract asks for nan."
)
def perfect_score_for_nothing(batches, ignore_index=-100):
    result = corpus_perplexity.reference(batches, ignore_index)
    return 1.0 if math.isnan(result) else result


@corpus_perplexity.misconception("This is the loss per token. Perplexity is exp of it.")
def forgets_the_exponential(batches, ignore_index=-100):
    return math.log(corpus_perplexity.reference(batches, ignore_index))


@corpus_perplexity.misconception(
    "What is ignored does not follow the argument: the number is fixed, as a rule at -100. The "
    "caller's padding may be any other value."
)
def fixed_ignore_index(batches, ignore_index=-100):
    total, count = 0.0, 0
    for logits, target in batches:
        kept = target >= 0
        losses = F.cross_entropy(logits[kept].detach().double(), target[kept], reduction="sum")
        total, count = total + losses.item(), count + kept.sum().item()
    return exponential(total, count)


@corpus_perplexity.misconception(
    "The result is a tensor. A report wants a plain number; the contract asks for a Python float."
)
def returns_a_tensor(batches, ignore_index=-100):
    return torch.tensor(corpus_perplexity.reference(batches, ignore_index))


@corpus_perplexity.misconception(
    "Every batch builds a graph that nobody needs: memory is kept for a backward pass that never "
    "comes. A report runs without one."
)
def builds_a_graph(batches, ignore_index=-100):
    total, count = 0.0, 0
    for logits, target in batches:
        kept = target != ignore_index
        loss = F.cross_entropy(logits[kept].double(), target[kept], reduction="sum")
        total, count = total + loss.item(), count + kept.sum().item()
    return exponential(total, count)


@corpus_perplexity.misconception(
    "Afterwards grad mode is off for everybody: it was switched and never switched back. Use "
    "no_grad as a block or a decorator."
)
def leaves_grad_mode_off(batches, ignore_index=-100):
    torch.set_grad_enabled(False)
    return corpus_perplexity.reference(batches, ignore_index)


@corpus_perplexity.misconception(
    "Inside the caller's no_grad block grad mode is on after the call. What was off before should "
    "be off afterwards: use no_grad as a block or a decorator."
)
def turns_grad_mode_on(batches, ignore_index=-100):
    result = corpus_perplexity.reference(batches, ignore_index)
    torch.set_grad_enabled(True)
    return result


@corpus_perplexity.misconception(
    "view refuses logits that were cut from larger ones, such as logits[:, :-1]: their rows no "
    "longer lie one after the other in memory. Week 1 has a function that copies where it must."
)
def views_what_was_cut(batches, ignore_index=-100):
    flat = ((logits.view(-1, logits.shape[-1]), target.view(-1)) for logits, target in batches)
    return corpus_perplexity.reference(flat, ignore_index)


@corpus_perplexity.misconception(
    "A few thousand tokens give inf: a sum in float16 ends at 65504, and a product of so many "
    "probabilities rounds to 0. Add up log-probabilities, in float32 or wider."
)
def sums_in_float16(batches, ignore_index=-100):
    total, count = 0.0, 0
    with torch.no_grad():
        for logits, target in batches:
            kept = target != ignore_index
            total += F.cross_entropy(logits[kept], target[kept], reduction="sum").item()
            count += kept.sum().item()
    return exponential(total, count)


@corpus_perplexity.misconception(
    "The probability of the token was computed first and its logarithm afterwards. Where the model "
    "is confident and wrong it rounds to 0, and the perplexity is inf; stay in log space."
)
def log_of_softmax(batches, ignore_index=-100):
    total, count = 0.0, 0
    for logits, target in batches:
        kept = target != ignore_index
        p = logits[kept].detach().float().softmax(-1).gather(1, target[kept].unsqueeze(1))
        total, count = total - p.log().sum().item(), count + kept.sum().item()
    return exponential(total, count)


@corpus_perplexity.misconception(
    "Softmax was taken before cross_entropy, which takes it again. The model then never looks "
    "confident, and the perplexity is far too high."
)
def softmax_twice(batches, ignore_index=-100):
    soft = ((logits.double().softmax(-1), target) for logits, target in batches)
    with torch.no_grad():
        return corpus_perplexity.reference(soft, ignore_index)


@corpus_perplexity.misconception(
    "The padding in the targets you were given was overwritten. The caller's batches should come "
    "back as they were."
)
def edits_the_targets(batches, ignore_index=-100):
    batches = list(batches)
    result = corpus_perplexity.reference(batches, ignore_index)
    for _, target in batches:
        target[target == ignore_index] = 1
    return result


corpus_perplexity.hints(
    'reduction="sum" and a counter: what has to be carried from batch to batch?',
    "Turn (B, T, C) and (B, T) into a long list of tokens. Which of them count?",
    "What does a batch of nothing but padding add to the sum, and what to the count?",
)
