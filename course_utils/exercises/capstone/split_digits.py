"""Split before you look."""

import torch

from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import GlobalGenerator


@exercise(objectives=("cap.data",))
def split_digits(rows: torch.Tensor, val_fraction: float, generator: torch.Generator) -> dict:
    """Split the digits and normalize both parts without leakage.

    rows is (N, 65), int64: 64 pixels from 0 to 16 in row-major order, then the label. Draw
    perm = torch.randperm(N, generator=generator) once, with a CPU generator. The first
    int(N * val_fraction) of perm are the validation part, the rest (at least one) the training
    part, both in perm's order.

    Pixels are divided by 16, as float32 of shape (n, 1, 8, 8). Then both parts are
    (pixels - mean) / std, with two numbers for the whole run: mean and population standard
    deviation (divisor: the number of values, not one less) over all pixels of the training part.
    A std below 1e-8 becomes 1e-8.

    Return a dict with x_train, y_train, x_val, y_val (labels int64), on the device of rows, and
    mean, std as Python floats. rows and torch's global generator stay as they are.
    """
    n_val = int(len(rows) * val_fraction)
    perm = torch.randperm(len(rows), generator=generator).to(rows.device)
    val, train = rows[perm[:n_val]], rows[perm[n_val:]]
    x_val, x_train = (part[:, :64].reshape(-1, 1, 8, 8) / 16 for part in (val, train))
    mean = x_train.mean().item()
    std = max(x_train.std(correction=0).item(), 1e-8)
    return {
        "x_train": (x_train - mean) / std,
        "y_train": train[:, 64],
        "x_val": (x_val - mean) / std,
        "y_val": val[:, 64],
        "mean": mean,
        "std": std,
    }


def digits(draw, count):
    """Rows with pixels that differ, and labels that tell the rows apart."""
    labels = 100 + draw.permutation(count)
    return torch.cat([draw.integers(0, 16, count, 64), labels[:, None]], dim=1)


def order_of(count, seed):
    """The order of the rows that a generator of this seed will draw."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@split_digits.case
def thirty_seven_rows(implementation, draw):
    generator = torch.Generator().manual_seed(draw.whole(0, 10**6))
    return implementation(digits(draw, 37), 0.3, generator)


@split_digits.case
def fractions_that_do_not_come_out_even(implementation, draw):
    rows, seed = digits(draw, 10), draw.whole(0, 10**6)
    parts = [
        implementation(rows, fraction, torch.Generator().manual_seed(seed))
        for fraction in (0.29, 0.71, 0.09)
    ]
    return [(part["y_train"], part["y_val"], part["mean"], part["std"]) for part in parts]


@split_digits.case
def a_validation_part_that_is_brighter(implementation, draw):
    rows, seed = digits(draw, 50), draw.whole(0, 10**6)
    val = order_of(50, seed)[:10].to(rows.device)
    rows[:, :64] //= 3
    rows[val, :64] += 11
    part = implementation(rows, 0.2, torch.Generator().manual_seed(seed))
    return [part["x_train"].mean(), part["x_val"], part["mean"], part["std"]]


@split_digits.case
def training_pixels_that_are_all_the_same(implementation, draw):
    rows, seed = digits(draw, 10), draw.whole(0, 10**6)
    train = order_of(10, seed)[3:].to(rows.device)
    rows[train, :64] = draw.whole(1, 15)
    return implementation(rows, 0.3, torch.Generator().manual_seed(seed))


@split_digits.case
def two_splits_with_one_generator(implementation, draw):
    rows = digits(draw, 9)
    generator = torch.Generator().manual_seed(draw.whole(0, 10**6))
    labels = [implementation(rows, 0.4, generator)["y_val"] for _ in range(2)]
    return labels, torch.randint(1000, (3,), generator=generator)


@split_digits.case
def the_global_generator(implementation, draw):
    noted = GlobalGenerator()
    implementation(digits(draw, 6), 0.5, torch.Generator().manual_seed(draw.whole(0, 10**6)))
    return noted.state()


def order(rows, generator):
    return torch.randperm(len(rows), generator=generator).to(rows.device)


def images(part):
    return part[:, :64].reshape(-1, 1, 8, 8) / 16


def statistics(pixels):
    return pixels.mean().item(), max(pixels.std(correction=0).item(), 1e-8)


def split(rows, val_fraction, generator, *, count=int, order=order, images=images, fit=None,
          statistics=statistics, train_first=False):  # fmt: skip
    """The reference in parts that can be exchanged; fit(train, val): pixels for mean and std."""
    n_val = count(len(rows) * val_fraction)
    perm = order(rows, generator)
    first, rest = rows[perm[:n_val]], rows[perm[n_val:]]
    if train_first:
        rest, first = rows[perm[: len(rows) - n_val]], rows[perm[len(rows) - n_val :]]
    x_train, x_val = images(rest), images(first)
    mean, std = statistics(x_train if fit is None else fit(x_train, x_val))
    x_train, x_val = (x_train - mean) / std, (x_val - mean) / std
    return {"x_train": x_train, "y_train": rest[:, 64], "x_val": x_val, "y_val": first[:, 64],
            "mean": mean, "std": std}  # fmt: skip


@split_digits.misconception(
    "Validation pixels took part in the normalization: leakage. mean and std are numbers that the "
    "model learned from data, so they come from the training part, after the split."
)
def statistics_of_all_rows(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, fit=lambda train, val: torch.cat([train, val]))


@split_digits.misconception(
    "The validation part is normalized by its own statistics. The model then sees two different "
    "scales, and at inference, with one image, there is no set to compute them from."
)
def own_statistics_for_validation(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    pixels = found["x_val"] * found["std"] + found["mean"]
    mean, std = statistics(pixels) if len(pixels) else (0.0, 1.0)
    return found | {"x_val": (pixels - mean) / std}


@split_digits.misconception(
    "The rows are split as they stand in the file. Files are often ordered by label, by date or by "
    "writer; the split must be random."
)
def no_shuffle(rows, val_fraction, generator):
    def as_it_stands(rows, generator):
        torch.randperm(len(rows), generator=generator)
        return torch.arange(len(rows), device=rows.device)

    return split(rows, val_fraction, generator, order=as_it_stands)


@split_digits.misconception(
    "Your labels come in another order than the images. Inputs and labels must go through the same "
    "index; a run trains on such pairs without an error, and learns nothing."
)
def labels_from_another_order(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    n_val = len(found["y_val"])
    return found | {"y_val": rows[:n_val, 64], "y_train": rows[n_val:, 64]}


@split_digits.misconception(
    "The two parts are exchanged: you take the training part from the front of perm. Here the "
    "first rows of the order are for validation."
)
def training_part_first(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, train_first=True)


@split_digits.misconception(
    "The number of validation rows is rounded to the nearest whole number. int cuts off."
)
def count_rounded(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, count=round)


@split_digits.misconception(
    "The number of validation rows is rounded up, or is at least one. int cuts off, and a small "
    "fraction of few rows leaves none."
)
def count_rounded_up(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, count=lambda number: -int(-number // 1))


@split_digits.misconception(
    "Your std is the sample standard deviation, divided by one less than the number of values. "
    "That is torch's default; the task asks for that of the population."
)
def sample_standard_deviation(rows, val_fraction, generator):
    def sample(pixels):
        return pixels.mean().item(), max(pixels.std().item(), 1e-8)

    return split(rows, val_fraction, generator, statistics=sample)


@split_digits.misconception(
    "Each pixel position has a mean and a std of its own in your code. The task wants two numbers "
    "for the whole run; pixels in a corner, which hardly vary, would be blown up."
)
def statistics_per_pixel(rows, val_fraction, generator):
    def each(pixels):
        return pixels.mean(0), pixels.std(0, correction=0).clamp(min=1e-8)

    return split(rows, val_fraction, generator, statistics=each)


@split_digits.misconception(
    "The images are float64: somewhere a number in double precision came in. The task asks for "
    "float32, which the weights of a model are."
)
def images_in_float64(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, images=lambda part: images(part).double())


@split_digits.misconception(
    "Nothing keeps std away from zero. With training pixels that are all the same you divide 0 by "
    "0, and every image is NaN."
)
def std_of_zero(rows, val_fraction, generator):
    def bare(pixels):
        return pixels.mean().item(), pixels.std(correction=0).item()

    return split(rows, val_fraction, generator, statistics=bare)


@split_digits.misconception(
    "A std that is too small becomes 1 in your code. That is a sound choice too, but the task says "
    "at least 1e-8."
)
def std_of_one_for_constant_pixels(rows, val_fraction, generator):
    def replaced(pixels):
        mean, std = pixels.mean().item(), pixels.std(correction=0).item()
        return mean, std if std >= 1e-8 else 1.0

    return split(rows, val_fraction, generator, statistics=replaced)


@split_digits.misconception(
    "mean and std belong to pixels from 0 to 16. The images come out right, and whoever divides "
    "new ones by 16 and then uses the two stored numbers gets something else."
)
def statistics_in_raw_units(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    return found | {"mean": 16 * found["mean"], "std": 16 * found["std"]}


@split_digits.misconception(
    "The pixels are not divided by 16. Normalizing hides it in the images, but not in the stored "
    "mean and std, nor where std is held at its smallest value."
)
def not_divided_by_16(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, images=lambda part: 16 * images(part))


@split_digits.misconception(
    "The images lie on their side: the pixels are in row-major order, so the last dimension runs "
    "along a row."
)
def columns_for_rows(rows, val_fraction, generator):
    def turned(part):
        return images(part).transpose(2, 3).contiguous()

    return split(rows, val_fraction, generator, images=turned)


@split_digits.misconception(
    "The dimension for channels is missing. A convolution wants (n, 1, 8, 8), one channel here."
)
def no_channel(rows, val_fraction, generator):
    return split(rows, val_fraction, generator, images=lambda part: images(part)[:, 0])


@split_digits.misconception(
    "mean and std are tensors. They are stored with the model and printed in the report as plain "
    "numbers: turn them into Python floats."
)
def statistics_as_tensors(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    both = {name: torch.tensor(found[name], device=rows.device) for name in ("mean", "std")}
    return found | both


@split_digits.misconception(
    "Labels come out as floating-point numbers, as the pixels do. Cross-entropy wants int64 class "
    "numbers: take the labels before anything is converted."
)
def labels_converted(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    return found | {name: found[name].float() for name in ("y_train", "y_val")}


@split_digits.misconception(
    "The order is drawn from torch's global generator. The split then depends on everything that "
    "drew numbers before; use the generator that is passed."
)
def global_generator(rows, val_fraction, generator):
    return split(
        rows, val_fraction, generator,
        order=lambda rows, generator: torch.randperm(len(rows)).to(rows.device),
    )  # fmt: skip


@split_digits.misconception(
    "You draw more than once from the generator, or draw the two parts each on its own. One "
    "permutation decides on all rows; a second draw moves the generator on."
)
def drawn_twice(rows, val_fraction, generator):
    found = split(rows, val_fraction, generator)
    torch.randperm(len(rows), generator=generator)
    return found


@split_digits.misconception(
    "Your split sets the generator back to a seed of its own. The caller has chosen the seed, and "
    "a second split with the same generator must be another one."
)
def generator_seeded_again(rows, val_fraction, generator):
    generator.manual_seed(generator.initial_seed())
    return split(rows, val_fraction, generator)


@split_digits.misconception(
    "Shuffling, scaling or splitting is done in the table that you were given. The caller's rows "
    "are changed afterwards; index makes a copy, assignment into rows does not."
)
def shuffles_in_place(rows, val_fraction, generator):
    perm = order(rows, generator)
    rows[:] = rows[perm]
    return split(
        rows, val_fraction, generator,
        order=lambda rows, generator: torch.arange(len(rows), device=rows.device),
    )  # fmt: skip


split_digits.hints(
    "Split row numbers first, and look at pixels afterwards. Which rows may mean and std see?",
    "torch's std divides by one less than the number of values unless its correction says so.",
    "Which Python function keeps a float from falling below a bound? And which method turns a "
    "tensor of one element into a float?",
)
