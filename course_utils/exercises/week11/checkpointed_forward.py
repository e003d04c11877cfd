"""Activation checkpointing of a stack, in segments."""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week11._recomputing import trained


@exercise(objectives=("ckpt.apply", "ckpt.cost", "ckpt.hazards"))
def checkpointed_forward(
    blocks: nn.ModuleList | list[nn.Module], x: torch.Tensor, segment: int | None = None
) -> torch.Tensor:
    """Apply the blocks in order; every `segment` consecutive blocks are one activation checkpoint.

    The last group may be shorter and is a checkpoint as well. Checkpoints are of the non-reentrant
    kind, and the random state is preserved. segment=None means ceil(sqrt(len(blocks))). A segment
    below 1 always raises ValueError. Otherwise, without blocks, the answer is x.

    Output, gradients and the use of random numbers equal those of the plain loop, also where x does
    not require grad. In eval mode all this holds as well; it also works under no_grad. blocks is
    left as it is.
    """
    if segment is None:
        segment = max(1, math.ceil(math.sqrt(len(blocks))))
    if segment < 1:
        raise ValueError(f"a segment of {segment} blocks is impossible")

    def run(group, x):
        for block in group:
            x = block(x)
        return x

    for start in range(0, len(blocks), segment):
        x = checkpoint(run, blocks[start : start + segment], x, use_reentrant=False)
    return x


def stack(draw, count, width, dropout=0.0):
    """Blocks that all differ, with weights large enough for gradients to be far from 0."""
    blocks = nn.ModuleList()
    for _ in range(count):
        layers = [nn.Linear(width, width), nn.Tanh()] + [nn.Dropout(dropout)] * bool(dropout)
        blocks.append(nn.Sequential(*layers))
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.copy_(draw.normal(*parameter.shape) / 2)
    return blocks.to(draw.device)


def run(
    implementation, draw, count, segment, *,
    dropout=0.0, requires_grad=False, plain_list=False, training=True, frozen=0,
):  # fmt: skip
    """One forward and backward pass through a stack of so many blocks."""
    width, batch = draw.sizes(2)
    blocks = stack(draw, count, width, dropout).train(training)
    blocks[:frozen].requires_grad_(False)
    x = draw.normal(batch, width, requires_grad=requires_grad)
    options = () if segment is None else (segment,)
    given = list(blocks) if plain_list else blocks
    return trained(
        lambda: implementation(given, x, *options),
        blocks,
        {**dict(blocks.named_parameters()), "x": x},
        draw.normal(batch, width),
    )


@checkpointed_forward.case
def seven_blocks_in_threes(implementation, draw):
    return run(implementation, draw, 7, 3, requires_grad=True)


@checkpointed_forward.case
def data_that_do_not_require_grad(implementation, draw):
    return run(implementation, draw, 4, 1)


@checkpointed_forward.case
def data_and_a_first_block_that_do_not_require_grad(implementation, draw):
    return run(implementation, draw, 3, 1, frozen=1)


@checkpointed_forward.case
def a_segment_longer_than_the_stack(implementation, draw):
    return run(implementation, draw, 3, 8, requires_grad=True, plain_list=True)


@checkpointed_forward.case
def five_blocks_and_no_segment_given(implementation, draw):
    return run(implementation, draw, 5, None)


@checkpointed_forward.case
def four_blocks_and_no_segment_given(implementation, draw):
    return run(implementation, draw, 4, None)


@checkpointed_forward.case
def ten_blocks_and_no_segment_given(implementation, draw):
    return run(implementation, draw, 10, None)


@checkpointed_forward.case
def dropout(implementation, draw):
    return run(implementation, draw, 4, 2, dropout=0.4)


@checkpointed_forward.case
def no_blocks(implementation, draw):
    x = draw.normal(*draw.sizes(2), requires_grad=True)
    results = [attempt(implementation, nn.ModuleList(), x, *rest) for rest in ((), (2,), (0,))]
    return {"results": results, "the result is x itself": [result is x for result in results]}


@checkpointed_forward.case
def evaluation_mode_with_gradients(implementation, draw):
    return run(implementation, draw, 3, 2, dropout=0.4, training=False)


@checkpointed_forward.case
def evaluation_mode_under_no_grad(implementation, draw):
    width, batch = draw.sizes(2)
    blocks = stack(draw, 3, width, dropout=0.4).eval()
    with torch.no_grad():
        output = implementation(blocks, draw.normal(batch, width), 2)
    return {"output": output, "training": [block.training for block in blocks.modules()]}


@checkpointed_forward.case
def segments_below_one(implementation, draw):
    width, batch = draw.sizes(2)
    blocks, x = stack(draw, 2, width), draw.normal(batch, width)
    lengths = (0, -draw.whole(1, 5), 1)
    return [attempt(implementation, blocks, x, length) for length in lengths]


def in_groups(blocks, x, segment, group=None, length=None, **options):
    """The reference in parts: how a `group` is run, the default `length`, options of checkpoint."""
    if segment is None:
        segment = max(1, (length or (lambda n: math.ceil(math.sqrt(n))))(len(blocks)))
    if segment < 1:
        raise ValueError(segment)
    group = group or (lambda part, x: checkpoint(nn.Sequential(*part), x, **options))
    options.setdefault("use_reentrant", False)
    for start in range(0, len(blocks), segment):
        x = group(blocks[start : start + segment], x)
    return x


@checkpointed_forward.misconception(
    "You use the reentrant variant. It looks at the inputs of a segment alone: data do not require "
    "grad, so neither does what comes out, and the parameters get no gradient."
)
def reentrant(blocks, x, segment=None):
    return in_groups(blocks, x, segment, use_reentrant=True)


@checkpointed_forward.misconception(
    "The function that you hand over reads a loop variable. It is called again in the backward "
    "pass, and by then the loop is over: every segment is recomputed with the last blocks."
)
def late_binding(blocks, x, segment=None):
    if segment is None:
        segment = max(1, math.ceil(math.sqrt(len(blocks))))
    if segment < 1:
        raise ValueError(segment)
    for start in range(0, len(blocks), segment):
        part = nn.Sequential(*blocks[start : start + segment])
        x = checkpoint(lambda t: part(t), x, use_reentrant=False)  # noqa: B023
    return x


@checkpointed_forward.misconception(
    "The random state is not restored for the recomputation. Dropout then draws another mask than "
    "the one that made the output, and the gradients belong to neither."
)
def random_state_not_restored(blocks, x, segment=None):
    return in_groups(blocks, x, segment, preserve_rng_state=False)


@checkpointed_forward.misconception(
    "The values are right, and no memory is saved: autograd keeps every activation as in the plain "
    "loop, and nothing is recomputed."
)
def nothing_checkpointed(blocks, x, segment=None):
    return in_groups(blocks, x, segment, group=lambda part, x: nn.Sequential(*part)(x))


@checkpointed_forward.misconception(
    "In eval mode nothing is checkpointed. Eval mode is about dropout and batch norm; gradients "
    "may be wanted there too, and then autograd keeps every activation."
)
def plain_in_evaluation_mode(blocks, x, segment=None):
    if len(blocks) and not blocks[0].training:
        return in_groups(blocks, x, segment, group=lambda part, x: nn.Sequential(*part)(x))
    return in_groups(blocks, x, segment)


@checkpointed_forward.misconception(
    "The last group runs plainly. checkpoint_sequential does that, since its backward pass comes "
    "first anyway; here all groups are checkpoints."
)
def last_segment_plain(blocks, x, segment=None):
    ends = [len(blocks)]

    def group(part, x):
        ends[0] -= len(part)
        module = nn.Sequential(*part)
        return checkpoint(module, x, use_reentrant=False) if ends[0] else module(x)

    return in_groups(blocks, x, segment, group=group)


@checkpointed_forward.misconception(
    "You gave segment to checkpoint_sequential. Its second argument is the number of segments, not "
    "their length, and it leaves the last one unchecked."
)
def segment_taken_for_a_number_of_segments(blocks, x, segment=None):
    if not len(blocks):
        return x
    if segment is None:
        segment = math.ceil(math.sqrt(len(blocks)))
    if segment < 1:
        raise ValueError(segment)
    parts = min(segment, len(blocks))
    return checkpoint_sequential(nn.Sequential(*blocks), parts, x, use_reentrant=False)


@checkpointed_forward.misconception(
    "Blocks are missing: those of the last, shorter group never run."
)
def shorter_group_dropped(blocks, x, segment=None):
    length = segment if segment is not None else max(1, math.ceil(math.sqrt(len(blocks))))
    if length < 1:
        raise ValueError(length)
    whole = len(blocks) // length * length
    return in_groups(blocks[:whole], x, length)


@checkpointed_forward.misconception(
    "Each block is a checkpoint of its own. Then the input of every block stays in memory; of a "
    "segment only the input of its first block does."
)
def every_block_by_itself(blocks, x, segment=None):
    if segment is not None and segment < 1:
        raise ValueError(segment)
    return in_groups(blocks, x, 1)


@checkpointed_forward.misconception(
    "Your default length is the square root, rounded down or to the nearest number. Five blocks "
    "make segments of three: round up."
)
def square_root_rounded_down(blocks, x, segment=None):
    return in_groups(blocks, x, segment, length=math.isqrt)


@checkpointed_forward.misconception(
    "Where the number of blocks is a square, your default length is one too long: the root of 4 "
    "is 2 as it is."
)
def one_more_than_the_root(blocks, x, segment=None):
    return in_groups(blocks, x, segment, length=lambda n: math.isqrt(n) + (n > 0))


@checkpointed_forward.misconception(
    "Without a segment you make the whole stack one checkpoint. Its recomputation holds all "
    "activations at once; about the square root of the number of blocks is a good length."
)
def one_checkpoint_for_everything(blocks, x, segment=None):
    return in_groups(blocks, x, segment, length=lambda n: n)


@checkpointed_forward.misconception(
    "A segment below 1 went through or failed in some other way. Say so with ValueError before any "
    "block runs."
)
def segment_not_checked(blocks, x, segment=None):
    if segment is not None and segment < 1:
        return x
    return checkpointed_forward.reference(blocks, x, segment)


@checkpointed_forward.misconception(
    "Without blocks x comes back before segment is looked at. A segment below 1 is refused in any "
    "case: check the arguments first."
)
def segment_not_checked_without_blocks(blocks, x, segment=None):
    return checkpointed_forward.reference(blocks, x, segment) if len(blocks) else x


@checkpointed_forward.misconception(
    "segment=0 was taken for no segment, since 0 counts as false. Compare with None."
)
def zero_taken_for_none(blocks, x, segment=None):
    return checkpointed_forward.reference(blocks, x, segment or None)


@checkpointed_forward.misconception(
    "You set requires_grad on x so that the checkpoints work. x now collects a gradient that "
    "nobody asked for; the non-reentrant variant does without."
)
def makes_x_require_grad(blocks, x, segment=None):
    return checkpointed_forward.reference(blocks, x.requires_grad_(), segment)


@checkpointed_forward.misconception(
    "A copy of x that requires grad takes its place. Gradients are then worked out as far back as "
    "the input, through blocks that are frozen; the non-reentrant variant does without."
)
def copy_that_requires_grad(blocks, x, segment=None):
    if len(blocks) and torch.is_grad_enabled() and not x.requires_grad:
        x = x.detach().requires_grad_()
    return checkpointed_forward.reference(blocks, x, segment)


@checkpointed_forward.misconception(
    "The blocks are in training mode afterwards, and dropout acts where it should not. Run them in "
    "the mode they are in."
)
def switches_to_train(blocks, x, segment=None):
    for block in blocks:
        block.train()
    return checkpointed_forward.reference(blocks, x, segment)


@checkpointed_forward.misconception(
    "Without blocks your default length is 0, and that is refused. There is nothing to do then: "
    "the answer is x."
)
def no_length_without_blocks(blocks, x, segment=None):
    return in_groups(blocks, x, math.isqrt(len(blocks)) if not len(blocks) else segment)


checkpointed_forward.hints(
    "checkpoint(function, *args) calls function(*args) now, and once more in the backward pass.",
    "What the function needs should come in as an argument, the blocks of its group included.",
    "For the default length: math has a function that rounds up. And the square root of 0 is 0.",
)
