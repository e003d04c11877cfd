"""A collate function for sequences of different lengths."""

import torch
from torch.utils.data import DataLoader

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import some


@exercise(objectives=("data.collate",))
def pad_collate(batch, pad_value=0):
    """Make one batch of pairs (sequence, label), a list of at least one.

    The sequences are 1-D tensors of one dtype and of any lengths, 0 included (perhaps all 0); each
    label is an int, or a tensor of any integer dtype without dimensions.

    Return the tuple (padded, lengths, mask, labels), all on the sequences' device, in input order:
    padded (B, L) in the sequences' dtype, where L is the largest length, filled up on the right
    with pad_value; lengths (B,) int64; mask (B, L) bool, True at real elements; labels (B,) int64.
    The sequences are not changed.
    """
    sequences, labels = zip(*batch, strict=True)
    device = sequences[0].device
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    longest = int(lengths.max())
    padded = sequences[0].new_full((len(batch), longest), pad_value)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    mask = torch.arange(longest, device=device) < lengths[:, None]
    labels = torch.tensor([int(label) for label in labels], device=device)
    return padded, lengths, mask, labels


PARTS = "padded", "lengths", "mask", "labels"


def samples(draw, lengths, dtype=torch.float32):
    """Sequences of these lengths, each with a label of its own."""
    whole = not dtype.is_floating_point
    return [
        (draw.integers(1, 50, n, dtype=dtype) if whole else draw.normal(n, dtype=dtype), 7 * i + 3)
        for i, n in enumerate(lengths)
    ]


def collated(implementation, batch, *args, **kwargs):
    """The four results by name."""
    result = implementation(batch, *args, **kwargs)
    if not isinstance(result, tuple) or len(result) != len(PARTS):
        return result
    return dict(zip(PARTS, result, strict=True))


@pad_collate.case
def sequences_of_different_lengths(implementation, draw):
    first, second, third, fourth = draw.sizes(4)
    lengths = (first, max(second, third), min(second, third), fourth)
    return collated(implementation, samples(draw, lengths))


@pad_collate.case
def token_numbers_and_another_pad_value(implementation, draw):
    batch = samples(draw, draw.sizes(3), torch.int64)
    batch[0][0][0] = 0
    batch[1][0].add_(2**60 + 1)  # more digits than a float32 or a float64 can tell apart
    return collated(implementation, batch, draw.whole(-100, -1))


@pad_collate.case
def real_elements_equal_to_the_pad_value(implementation, draw):
    zeros = draw.tensor([0, 4, 0, 0])
    batch = [*samples(draw, (5,), torch.int64), (zeros, 1), (zeros[:1], 2)]
    return collated(implementation, batch)


@pad_collate.case(tolerance=(1e-12, 1e-12))
def an_empty_sequence_among_others(implementation, draw):
    batch = samples(draw, (draw.whole(2, 4), 0, 5), torch.float64)
    return collated(implementation, batch, pad_value=-1.5)


@pad_collate.case
def nothing_but_empty_sequences(implementation, draw):
    return attempt(collated, implementation, samples(draw, (0,) * draw.whole(2, 4), torch.int32))


@pad_collate.case
def a_single_sample(implementation, draw):
    return collated(implementation, samples(draw, (draw.whole(2, 6),)))


@pad_collate.case
def sequences_of_equal_length(implementation, draw):
    return collated(implementation, samples(draw, (draw.whole(4, 6),) * 3, torch.int32), 9)


@pad_collate.case
def labels_that_are_tensors(implementation, draw):
    batch = samples(draw, draw.sizes(3))
    narrow = [(s, draw.tensor(label).to(torch.int32)) for s, label in batch]
    large = [(s, label + 2**60) for s, label in batch[1:]]
    return {
        "1. all int32": collated(implementation, narrow),
        "2. a uint8 tensor and ints": collated(
            implementation, [(batch[0][0], draw.tensor(200).to(torch.uint8)), *large]
        ),
    }


@pad_collate.case
def through_a_DataLoader(implementation, draw):
    data = samples(draw, draw.sizes(5), torch.int64)
    loader = DataLoader(data, batch_size=2, collate_fn=lambda batch: implementation(batch))
    return some(loader, 5)


def collate(batch, pad_value, *, order=None, length=None, place=None, mask=None, fill=None,
            lengths_of=None, labels_of=None):  # fmt: skip
    """The batch, of which a part can be exchanged."""
    batch = batch if order is None else order(batch)
    sequences = [sequence for sequence, _ in batch]
    lengths = torch.tensor([len(s) for s in sequences], device=sequences[0].device)
    longest = max(map(len, sequences)) if length is None else length(sequences)
    padded = sequences[0].new_full((len(batch), longest), pad_value if fill is None else fill)
    for row, sequence in zip(padded, sequences, strict=True):
        size = min(len(sequence), longest)
        start = longest - size if place == "right" else 0
        row[start : start + size] = sequence[:size]
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    labels = torch.tensor([int(label) for _, label in batch], device=lengths.device)
    return (
        padded,
        lengths if lengths_of is None else lengths_of(lengths),
        real if mask is None else mask(real, padded),
        labels if labels_of is None else labels_of(labels),
    )


@pad_collate.misconception(
    "Time comes first in your batch: the shape is (L, B). pad_sequence does that unless told "
    "otherwise; here the first dimension counts the samples."
)
def time_first(batch, pad_value=0):
    padded, lengths, mask, labels = collate(batch, pad_value)
    return padded.T.contiguous(), lengths, mask.T.contiguous(), labels


@pad_collate.misconception(
    "Only the mask is right: your padded tensor has time first, as pad_sequence makes it unless "
    "told otherwise. Both have the shape (B, L)."
)
def padded_with_time_first(batch, pad_value=0):
    padded, lengths, mask, labels = collate(batch, pad_value)
    return padded.T.contiguous(), lengths, mask, labels


@pad_collate.misconception(
    "Your mask comes from the pad value, so real elements that happen to equal it are masked too. "
    "Compare positions with lengths."
)
def mask_from_the_pad_value(batch, pad_value=0):
    return collate(batch, pad_value, mask=lambda real, padded: padded != pad_value)


@pad_collate.misconception(
    "Your mask marks what is not 0. Real elements may be 0, and the padding need not be; compare "
    "positions with lengths."
)
def mask_where_not_zero(batch, pad_value=0):
    return collate(batch, pad_value, mask=lambda real, padded: padded != 0)


@pad_collate.misconception("Your mask is True at the padding. It should mark the real elements.")
def mask_inverted(batch, pad_value=0):
    return collate(batch, pad_value, mask=lambda real, padded: ~real)


@pad_collate.misconception(
    "Your mask holds numbers. As an index, numbers pick rows; a mask is of dtype bool."
)
def mask_of_numbers(batch, pad_value=0):
    return collate(batch, pad_value, mask=lambda real, padded: real.float())


@pad_collate.misconception(
    "Your mask has one place too many or too few in each row: the position of the last real "
    "element is its length minus 1."
)
def mask_one_too_long(batch, pad_value=0):
    def mask(real, padded):
        positions = torch.arange(padded.shape[1], device=padded.device)
        return positions <= real.sum(1, keepdim=True)

    return collate(batch, pad_value, mask=mask)


@pad_collate.misconception(
    "You cut all sequences to the shortest. That throws data away; pad up to the longest."
)
def cut_to_the_shortest(batch, pad_value=0):
    def length(sequences):
        return min(map(len, sequences))

    return collate(batch, pad_value, length=length)


@pad_collate.misconception(
    "You sort the sequences by length and leave the labels behind: every sample gets another one's "
    "label. Keep the input order."
)
def sorted_labels_left_behind(batch, pad_value=0):
    ordered = sorted(batch, key=lambda pair: -len(pair[0]))
    return *collate(ordered, pad_value)[:3], collate(batch, pad_value)[3]


@pad_collate.misconception(
    "You sort the samples by length. Labels and rows still match, but what the caller knows by "
    "position, such as the indices of a sampler, no longer does. Keep the input order."
)
def samples_sorted_by_length(batch, pad_value=0):
    return collate(batch, pad_value, order=lambda b: sorted(b, key=lambda pair: -len(pair[0])))


@pad_collate.misconception(
    "You sort the caller's list. Keep the input order, and leave the list as it is."
)
def sorts_the_callers_list(batch, pad_value=0):
    batch.sort(key=lambda pair: -len(pair[0]))
    return collate(batch, pad_value)


@pad_collate.misconception("You pad on the left. The real elements come first, the padding after.")
def padded_on_the_left(batch, pad_value=0):
    return collate(batch, pad_value, place="right", mask=lambda real, padded: real.flip(1))


@pad_collate.misconception("You always pad with 0, whatever pad_value says.")
def pads_with_zero_always(batch, pad_value=0):
    return collate(batch, pad_value, fill=0)


@pad_collate.misconception(
    "Your padded tensor is float32 whatever the sequences are. Token numbers must stay integers to "
    "index an embedding; allocate with the dtype of the sequences."
)
def padded_in_float32(batch, pad_value=0):
    padded, *others = collate(batch, pad_value)
    return padded.float(), *others


@pad_collate.misconception(
    "Your padded tensor has the right dtype but was filled as float32. That rounds whole numbers "
    "above 2 to the 24th and the digits of float64; allocate with the dtype of the sequences."
)
def padded_by_way_of_float32(batch, pad_value=0):
    padded, *others = collate(batch, pad_value)
    return padded.float().to(padded.dtype), *others


@pad_collate.misconception(
    "You pad with 0 first and then replace every 0 by pad_value. Real elements may be 0 as well, "
    "and those change too; what is padding follows from the lengths alone."
)
def zeros_replaced_by_the_pad_value(batch, pad_value=0):
    padded, *others = collate(batch, 0)
    return padded.masked_fill(padded == 0, pad_value), *others


@pad_collate.misconception(
    "Your lengths all are the width of the batch. They count the real elements of each sequence, "
    "before padding."
)
def lengths_after_padding(batch, pad_value=0):
    def width(lengths):
        return lengths.max().expand_as(lengths).clone()

    return collate(batch, pad_value, lengths_of=width)


@pad_collate.misconception(
    "Your lengths are a list. Put them into an int64 tensor, on the device of the sequences."
)
def lengths_as_a_list(batch, pad_value=0):
    return collate(batch, pad_value, lengths_of=torch.Tensor.tolist)


@pad_collate.misconception("Your labels are a list. Put them into an int64 tensor of shape (B,).")
def labels_as_a_list(batch, pad_value=0):
    return collate(batch, pad_value, labels_of=torch.Tensor.tolist)


@pad_collate.misconception(
    "Your labels have a second dimension. Losses on class indices want the shape (B,)."
)
def labels_with_a_dimension(batch, pad_value=0):
    return collate(batch, pad_value, labels_of=lambda labels: labels[:, None])


@pad_collate.misconception(
    "Your labels keep the dtype they come in, so that int32 tensors make an int32 batch. Asked for "
    "is int64."
)
def labels_keep_their_dtype(batch, pad_value=0):
    labels = torch.stack([torch.as_tensor(label) for _, label in batch]).to(batch[0][0].device)
    return collate(batch, pad_value, labels_of=lambda _: labels)


@pad_collate.misconception(
    "Your labels are int64 but were floating-point numbers on the way, as in torch.Tensor(…).long()"
    ". That rounds large numbers; convert each label as a whole number."
)
def labels_by_way_of_float32(batch, pad_value=0):
    return collate(batch, pad_value, labels_of=lambda labels: labels.float().long())


@pad_collate.misconception(
    "You look at the first label and take all others to be of its kind. One batch may hold both "
    "ints and tensors; treat each label by itself."
)
def kind_of_the_first_label_for_all(batch, pad_value=0):
    labels = [label for _, label in batch]
    if isinstance(labels[0], torch.Tensor):
        torch.stack(labels)
    return collate(batch, pad_value)


@pad_collate.misconception("Your labels are floating-point numbers. Class indices are int64.")
def labels_as_floats(batch, pad_value=0):
    return collate(batch, pad_value, labels_of=torch.Tensor.float)


@pad_collate.misconception(
    "An empty sequence is refused, or dropped. It is a row of padding alone, with length 0."
)
def drops_empty_sequences(batch, pad_value=0):
    return collate(batch, pad_value, order=lambda b: [pair for pair in b if len(pair[0])] or b[:1])


@pad_collate.misconception(
    "A batch of empty sequences has width 0 and is legal. Yours has at least one column."
)
def at_least_one_column(batch, pad_value=0):
    return collate(batch, pad_value, length=lambda sequences: max(1, *map(len, sequences))
                   if len(sequences) > 1 else len(sequences[0]))  # fmt: skip


pad_collate.hints(
    "Allocate a full tensor of the pad value first, then copy row by row.",
    "The mask compares two things of different shape: positions, and lengths as a column.",
    "What are L and the shapes if every length is 0? What is the dtype of an empty list's tensor?",
)
