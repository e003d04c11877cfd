"""The broadcasting rules, by hand."""

from itertools import zip_longest

import numpy as np
import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(
    objectives=("tensor.broadcasting",),
    forbids=(
        torch.broadcast_shapes,
        torch.broadcast_tensors,
        torch.broadcast_to,
        torch.Tensor.broadcast_to,
        torch.Tensor.expand,
        torch.Tensor.expand_as,
        np.broadcast,
        np.broadcast_arrays,
        np.broadcast_shapes,
        np.broadcast_to,
    ),
)
def broadcast_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that tensors of shapes `a` and `b` have when combined elementwise, by broadcasting.

    Sizes are 0 or more, ranks may differ, and () is the shape of a 0-d tensor. Size 0 is an
    ordinary size: it pairs with 0 or 1 and gives 0, and does not pair with 2 or more. Raise
    ValueError when the shapes do not broadcast.

    Work on the numbers alone: no broadcasting function of torch or NumPy, and no tensors combined
    just to read the shape of the result; the sizes may be far too large for that.
    """
    rank = max(len(a), len(b))
    a_padded = (1,) * (rank - len(a)) + tuple(a)
    b_padded = (1,) * (rank - len(b)) + tuple(b)
    shape = []
    for m, n in zip(a_padded, b_padded, strict=True):
        if m != n and 1 not in (m, n):
            raise ValueError(f"shapes {a} and {b} do not broadcast: {m} meets {n}")
        shape.append(n if m == 1 else m)
    return tuple(shape)


def each(implementation, *pairs):
    """What the implementation gives for each pair of shapes, exceptions included."""
    return [attempt(implementation, a, b) for a, b in pairs]


@broadcast_shape.case
def equal_shapes(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((p, q, r), (p, q, r)), ((q,), (q,)), ((1, 1), (1, 1)))


@broadcast_shape.case
def the_second_shape_stretches(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((p, q), (p, 1)), ((p, q, r), (1, q, 1)))


@broadcast_shape.case
def the_first_shape_stretches(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((1, q), (p, q)), ((p, 1, r), (p, q, r)))


@broadcast_shape.case
def both_shapes_stretch(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((p, 1), (1, q)), ((1, q, 1), (p, 1, r)))


@broadcast_shape.case
def different_ranks(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(
        implementation, ((p, q, r), (r,)), ((q, 1), (p, q, r)), ((1,), (p, 1, r)), ((r,), (p, 1))
    )


@broadcast_shape.case
def a_shape_without_dimensions(implementation, draw):
    p, q = draw.sizes(2)
    return each(implementation, ((), (p, q)), ((p,), ()), ((), ()))


@broadcast_shape.case
def size_zero_next_to_zero_or_one(implementation, draw):
    p, q = draw.sizes(2)
    return each(
        implementation,
        ((0,), (1,)),
        ((p, 1), (p, 0)),
        ((0, q), (0, q)),
        ((p, 0), ()),
        ((q,), (0, 1)),
    )


@broadcast_shape.case
def size_zero_next_to_a_larger_size(implementation, draw):
    p, q = draw.sizes(2)
    return each(implementation, ((0,), (q,)), ((p, q), (p, 0)))


@broadcast_shape.case
def sizes_that_clash(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((p, q), (p, r)), ((q,), (p, r)))


@broadcast_shape.case
def a_size_that_is_a_multiple_of_the_other(implementation, draw):
    p, q = draw.sizes(2)
    return each(implementation, ((2, 4), (2, 2)), ((p,), (q, 3 * p)))


@broadcast_shape.case
def shapes_that_fit_only_from_the_left(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((2, 3), (2,)), ((p, q), (p, q, r)))


@broadcast_shape.case
def a_clash_before_the_last_dimension(implementation, draw):
    p, q, r = draw.sizes(3)
    return each(implementation, ((p, r), (q, r)), ((p, 1, r), (q, p, 1)))


@broadcast_shape.case
def sizes_too_large_for_any_memory(implementation, draw):
    p, q = draw.whole(4 * 10**18, 9 * 10**18), draw.whole(3, 7)
    return each(implementation, ((p, 1), (1, q)), ((p,), (q, 1)), ((q,), (p,)))


def paired_from_the_end(a, b, rule, fill=1):
    """Both shapes lined up on the right and combined by the rule; None from the rule is a clash."""
    shape = [rule(m, n) for m, n in zip_longest(reversed(a), reversed(b), fillvalue=fill)]
    if None in shape:
        raise ValueError(f"{a} and {b} do not broadcast")
    return tuple(reversed(shape))


def by_the_rules(m, n):
    """The size that two sizes combine to, None where they clash."""
    return m if n == 1 else n if m in (1, n) else None


@broadcast_shape.misconception(
    "You lined the shapes up on the left. Broadcasting compares from the last dimension "
    "backward, so (2, 3) and (2,) do not fit."
)
def left_aligned(a, b):
    return paired_from_the_end(a[::-1], b[::-1], by_the_rules)[::-1]


@broadcast_shape.misconception(
    "Taking the larger size accepts shapes that cannot be combined: unless the two sizes are "
    "equal, one of them has to be 1. And next to a 0, size 1 gives 0, which is not the larger."
)
def maximum_without_check(a, b):
    return paired_from_the_end(a, b, max)


UNCHECKED = (
    "Where one size is 1 you take the other, and that is right. Where neither is 1 you take one "
    "of the two without a look: unless they are equal, the shapes do not broadcast."
)


@broadcast_shape.misconception(UNCHECKED)
def takes_first_unchecked(a, b):
    return paired_from_the_end(a, b, lambda m, n: n if m == 1 else m)


@broadcast_shape.misconception(UNCHECKED)
def takes_second_unchecked(a, b):
    return paired_from_the_end(a, b, lambda m, n: m if n == 1 else n)


@broadcast_shape.misconception(
    "You asked for shapes of equal length. A shorter shape is allowed: it counts as having "
    "sizes 1 in front."
)
def equal_rank_only(a, b):
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} dimensions")
    return paired_from_the_end(a, b, by_the_rules)


@broadcast_shape.misconception(
    "Next to a 0, size 1 stretches to 0 as it would to any other size, and the result is "
    "empty. The larger of 0 and 1 is the wrong answer there."
)
def zero_becomes_one(a, b):
    return paired_from_the_end(a, b, lambda m, n: max(m, n) if 1 in (m, n) or m == n else None)


@broadcast_shape.misconception(
    "A size that divides the other was repeated to fill it: 2 does not become 4. Only size 1 "
    "stretches."
)
def divisible_sizes(a, b):
    def rule(m, n):
        if 0 not in (m, n) and max(m, n) % min(m, n) == 0:
            return max(m, n)
        return by_the_rules(m, n)

    return paired_from_the_end(a, b, rule)


@broadcast_shape.misconception(
    "The sizes are there and the type is not: the answer is a tuple, as shapes are, also when "
    "you collected the sizes in a list."
)
def returns_a_list(a, b):
    return list(paired_from_the_end(a, b, by_the_rules))


@broadcast_shape.misconception(
    "You let only one of the two shapes stretch, as expand does. In broadcasting either side "
    "may stretch, and both may at once."
)
def one_sided(a, b):
    if len(b) > len(a):
        raise ValueError(f"{b} does not stretch to {a}")
    return paired_from_the_end(a, b, lambda m, n: m if n in (1, m) else None)


@broadcast_shape.misconception(
    "Dimensions of the longer shape are missing from the result: zip stops where the shorter "
    "shape ends. The dimensions in front belong to the answer too."
)
def drops_leading_dimensions(a, b):
    result = paired_from_the_end(a, b, by_the_rules)
    return result[len(result) - min(len(a), len(b)) :]


@broadcast_shape.misconception(
    "You checked the last dimension only. Every dimension has to fit, so a clash further to "
    "the left is an error as well."
)
def checks_last_dimension_only(a, b):
    if a and b and by_the_rules(a[-1], b[-1]) is None:
        raise ValueError(f"{a} and {b} do not broadcast")
    return paired_from_the_end(a, b, lambda m, n: n if m == 1 else m if n == 1 else max(m, n))


@broadcast_shape.misconception(
    "You let 0 pair with every size. It is a size like any other: next to 2 or more it is a clash."
)
def zero_always_wins(a, b):
    return paired_from_the_end(a, b, lambda m, n: 0 if 0 in (m, n) else by_the_rules(m, n))


@broadcast_shape.misconception(
    "Where the shapes clash you returned None. The task asks for a ValueError, so that the "
    "mistake is seen where it is made."
)
def returns_none(a, b):
    shape = [by_the_rules(m, n) for m, n in zip_longest(reversed(a), reversed(b), fillvalue=1)]
    return None if None in shape else tuple(reversed(shape))


@broadcast_shape.misconception(
    "The sizes are right and in the wrong order: you collected them from the last dimension "
    "to the first, and the answer runs from the first to the last."
)
def reversed_result(a, b):
    return paired_from_the_end(a, b, by_the_rules)[::-1]


@broadcast_shape.misconception(
    "You made tensors of both shapes and let them be combined. That asks the question instead "
    "of answering it, and sizes that exceed the memory stop it. The sizes are all you need."
)
def combines_tensors(a, b):
    try:
        return tuple((torch.empty(a) + torch.empty(b)).shape)
    except RuntimeError as error:
        raise ValueError(f"{a} and {b} do not broadcast") from error


broadcast_shape.hints(
    "Write one shape under the other, lined up on the right, and start at the last dimension.",
    "Where a shape has no dimension left, think of size 1.",
    "When one of the two sizes is 1, the answer is the other one, whatever it is.",
)
