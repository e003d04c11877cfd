"""A weight per sample, so that all classes are drawn equally often."""

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("data.sampler",))
def balanced_sample_weights(labels: torch.Tensor) -> torch.Tensor:
    """Weights for WeightedRandomSampler that balance the classes, shape (N,).

    labels: (N,), int64, not negative, N >= 1; some numbers below the largest may not occur.
    Every class that occurs has the same total weight, shared equally by its samples, and all
    weights sum to 1. The result is on the labels' device; it is float64 and computed in float64.
    """
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[inverse].double())


def shuffled(draw, counts):
    """Labels in random order: counts is class → how often it occurs."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return draw.tensor(labels)[draw.permutation(len(labels))]


@balanced_sample_weights.case(tolerance=(1e-12, 1e-12))
def a_common_and_two_rare_classes(implementation, draw):
    rare, rarer = draw.whole(3, 5), draw.whole(1, 2)
    return implementation(shuffled(draw, {0: draw.whole(8, 15), 1: rare, 2: rarer}))


@balanced_sample_weights.case
def numbers_that_do_not_occur(implementation, draw):
    gap = draw.whole(3, 9)
    counts = {gap: draw.whole(5, 8), gap + 4: draw.whole(1, 4), gap + 5: 2}
    return implementation(shuffled(draw, counts))


@balanced_sample_weights.case
def classes_that_are_sorted_already(implementation, draw):
    first, second, third = sorted(draw.sizes(3))
    return implementation(draw.tensor([0] * first + [1] * third + [2] * second))


@balanced_sample_weights.case
def a_single_class(implementation, draw):
    return implementation(draw.tensor([draw.whole(2, 5)] * draw.whole(3, 7)))


@balanced_sample_weights.case
def a_single_sample(implementation, draw):
    return [attempt(implementation, draw.tensor([label])) for label in (0, draw.whole(1, 5))]


@balanced_sample_weights.case
def drawn_by_a_sampler(implementation, draw):
    labels = shuffled(draw, {0: draw.whole(9, 12), 3: 2, 4: draw.whole(4, 6)})
    weights = implementation(labels)
    if not isinstance(weights, torch.Tensor):
        return weights
    generator = torch.Generator().manual_seed(draw.whole(0, 99))
    sampler = torch.utils.data.WeightedRandomSampler(weights.cpu(), 200, generator=generator)
    drawn = torch.tensor(list(sampler))
    return {
        "indices": drawn,
        "draws per class": labels.cpu()[drawn].bincount() if drawn.max() < len(labels) else None,
    }


def shares(labels, total=None, each=None):
    """Weights: a class's total divided by its count, or `each(count)` for every sample."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    counts = counts[inverse].double()
    if each is not None:
        return each(counts)
    return total / counts


@balanced_sample_weights.misconception(
    "You return one weight per class. The sampler wants one per sample: with K weights it would "
    "only ever draw the first K samples."
)
def one_weight_per_class(labels):
    counts = labels.unique(return_counts=True)[1].double()
    return 1 / (len(counts) * counts)


@balanced_sample_weights.misconception(
    "Your weights grow with the count of the class, which makes the common class even more common. "
    "They should fall with it."
)
def proportional_to_the_count(labels):
    weights = shares(labels, each=lambda counts: counts)
    return weights / weights.sum()


@balanced_sample_weights.misconception(
    "Classes without a sample take a share, so the weights sum to less than 1. Only classes that "
    "occur count."
)
def absent_classes_take_a_share(labels):
    return shares(labels, total=1 / (int(labels.max()) + 1))


@balanced_sample_weights.misconception(
    "Each class sums to 1, so all together they sum to the number of classes. The sampler would "
    "accept that, but the stated total is 1."
)
def not_normalized(labels):
    return shares(labels, total=1)


@balanced_sample_weights.misconception(
    "Your weights sum to the number of samples. That is the convention for weights in a loss; here "
    "they sum to 1."
)
def weights_of_mean_one(labels):
    return shares(labels, total=len(labels) / len(labels.unique()))


@balanced_sample_weights.misconception(
    "All samples get the same weight. That is what a sampler without weights does; a class of many "
    "samples is then drawn often."
)
def equal_weights(labels):
    return torch.full((len(labels),), 1 / len(labels), dtype=torch.float64, device=labels.device)


@balanced_sample_weights.misconception(
    "Your weights fall with the square root of the count. That is half way to balance: common "
    "classes still weigh more."
)
def half_way_to_balance(labels):
    weights = shares(labels, each=lambda counts: counts.rsqrt())
    return weights / weights.sum()


@balanced_sample_weights.misconception(
    "You subtract the share of a class from 1. Rare classes then weigh more, but not enough: half "
    "as many samples must give each of them twice the weight."
)
def one_minus_the_share(labels):
    return shares(labels, each=lambda counts: 1 - counts / len(labels))


@balanced_sample_weights.misconception(
    "Your weights stand in the order of the classes, not in that of the samples. Weight i belongs "
    "to labels[i]."
)
def in_the_order_of_the_classes(labels):
    return balanced_sample_weights.reference(labels.sort().values)


@balanced_sample_weights.misconception(
    "You use the label as a position among the classes that occur. When a number is missing, the "
    "positions no longer match the labels."
)
def label_as_position(labels):
    counts = labels.unique(return_counts=True)[1]
    return 1 / (len(counts) * counts[labels].double())


@balanced_sample_weights.misconception(
    "Your weights are float32. The sampler computes in float64; give it those."
)
def weights_in_float32(labels):
    return balanced_sample_weights.reference(labels).float()


@balanced_sample_weights.misconception(
    "Your weights are float64, but were divided in float32: integers divided by integers give "
    "float32, and the rounding stays. Convert the counts before you divide."
)
def divided_in_float32(labels):
    return balanced_sample_weights.reference(labels).float().double()


@balanced_sample_weights.misconception(
    "Your weights are a list. A float64 tensor on the labels' device is asked for."
)
def weights_as_a_list(labels):
    return balanced_sample_weights.reference(labels).tolist()


balanced_sample_weights.hints(
    "Two steps: count per class, then look up per sample.",
    "unique can return more than the values. Which of its options gives each sample's position "
    "among the classes?",
    "By how many classes do you divide, if only those that occur share the total of 1?",
)
