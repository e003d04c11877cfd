"""Split, fit on the training part, apply to both."""

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import GlobalGenerator


@exercise(objectives=("data.split",))
def split_and_standardize(
    X: torch.Tensor, y: torch.Tensor, val_fraction: float, generator: torch.Generator
):
    """Split a table and standardize it without a leak; X (N, d) is floating-point, y is (N,).

    The validation part has n_val = int(N * val_fraction) rows; raise ValueError unless
    1 <= n_val < N. Draw the order of the rows with a single
    torch.randperm(N, generator=generator), where generator is a CPU generator: the rows
    order[:n_val] are for validation, order[n_val:] for training, both in that order.

    mean and std, of shape (d,), are those of each feature over the training rows alone, std with
    divisor n_train. Entries of std below 1e-6 become 1. Both parts are (rows - mean) / std.

    Return (X_train, y_train, X_val, y_val, mean, std), on X's device and, but for y, in X's dtype.
    X, y and the global generator stay as they are.
    """
    n_val = int(len(X) * val_fraction)
    if not 1 <= n_val < len(X):
        raise ValueError(f"{n_val} of {len(X)} rows for validation leaves one part empty")
    order = torch.randperm(len(X), generator=generator).to(X.device)
    val, train = order[:n_val], order[n_val:]
    mean = X[train].mean(0)
    std = X[train].std(0, correction=0)
    std[std < 1e-6] = 1
    return (X[train] - mean) / std, y[train], (X[val] - mean) / std, y[val], mean, std


PARTS = "X_train", "y_train", "X_val", "y_val", "mean", "std"


def split(implementation, X, y, fraction, seed):
    """The six results by name, or the exception, and the next number of the generator."""
    generator = torch.Generator().manual_seed(seed)
    result = attempt(implementation, X, y, fraction, generator)
    if not isinstance(result, tuple) or len(result) != len(PARTS):
        return result
    after = torch.randint(1000, (1,), generator=generator).item()
    return dict(zip(PARTS, result, strict=True)) | {"the generator's next number": after}


def table(draw, rows, width, dtype=torch.float32):
    """Features with means and scales of their own, and the row numbers as labels."""
    scale = draw.uniform(width, low=0.5, high=5, dtype=dtype)
    X = draw.normal(rows, width, dtype=dtype) * scale + 10 * draw.normal(width, dtype=dtype)
    return X, torch.arange(rows, device=draw.device)


@split_and_standardize.case
def a_table_with_row_numbers_as_labels(implementation, draw):
    X, y = table(draw, draw.whole(20, 30), draw.whole(2, 5))
    return split(implementation, X, y, draw.number(0.2, 0.4), draw.whole(0, 99))


@split_and_standardize.case
def most_rows_for_validation(implementation, draw):
    rows = draw.whole(12, 20)
    X, y = table(draw, rows, draw.whole(2, 5))
    return split(implementation, X, y.double() / 7, (rows - 3.3) / rows, draw.whole(0, 99))


@split_and_standardize.case
def float64_and_integer_classes(implementation, draw):
    X, _ = table(draw, draw.whole(9, 15), 3, torch.float64)
    y = draw.integers(0, 3, len(X))
    return split(implementation, X, y, 0.3, draw.whole(0, 99))


@split_and_standardize.case
def a_feature_that_is_constant(implementation, draw):
    X, y = table(draw, draw.whole(9, 15), 3)
    X[:, 1] = 0.1
    return split(implementation, X, y, 0.4, draw.whole(0, 99))


@split_and_standardize.case
def a_feature_that_hardly_varies(implementation, draw):
    X, y = table(draw, draw.whole(9, 15), 4, torch.float64)
    X[:, 0] = 3 + 1e-8 * X[:, 0]
    # Whichever rows are drawn: the std of the first is some 3e-7, of the second some 3e-6.
    for column, width in ((2, 1e-6), (3, 1e-5)):
        X[:, column] = 3 + width * draw.permutation(len(X)).double() / (len(X) - 1)
    return split(implementation, X, y, 0.4, draw.whole(0, 99))


@split_and_standardize.case
def one_row_left_for_training(implementation, draw):
    rows = draw.whole(4, 9)
    X, y = table(draw, rows, 3)
    return split(implementation, X, y, (rows - 0.5) / rows, draw.whole(0, 99))


@split_and_standardize.case
def fractions_that_leave_a_part_empty(implementation, draw):
    X, y = table(draw, draw.whole(4, 9), 2)
    fractions = (0.0, 0.9 / len(X), 1.0, 1.5, -0.5)
    results = [split(implementation, X, y, fraction, 0) for fraction in fractions]
    return [type(result).__name__ for result in results]


@split_and_standardize.case
def the_global_generator(implementation, draw):
    X, y = table(draw, draw.whole(9, 15), 2)
    noted = GlobalGenerator()
    first = split(implementation, X, y, 0.3, 5)
    return {"generator": noted.state(), "labels of the same seed": [
        part["y_val"] if isinstance(part, dict) else part
        for part in (first, split(implementation, X, y, 0.3, 5))
    ]}  # fmt: skip


def parts(X, y, val_fraction, generator, *, order=None, n_val=None, fit=None, spread=None,
          labels=None, floor=None, check=True):  # fmt: skip
    """The split, of which a part can be exchanged."""
    count = int(len(X) * val_fraction) if n_val is None else n_val(len(X))
    if check and not 1 <= count < len(X):
        raise ValueError("one part would be empty")
    rows = (order or torch.randperm)(len(X), generator=generator).to(X.device)
    val, train = rows[:count], rows[count:]
    source = X[train] if fit is None else X[fit(train, val)]
    mean, std = source.mean(0), (spread or spread_of)(source)
    std = (floor or raised)(std)
    y_train, y_val = (y[train], y[val]) if labels is None else labels(train, val)
    return (X[train] - mean) / std, y_train, (X[val] - mean) / std, y_val, mean, std


def spread_of(rows):
    return rows.std(0, correction=0)


def raised(std):
    return torch.where(std < 1e-6, torch.ones_like(std), std)


@split_and_standardize.misconception(
    "You fit mean and std on all rows. Validation rows then take part in the fitting and the "
    "estimate is optimistic. Fit on the training rows."
)
def statistics_from_all_data(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, fit=lambda train, val: torch.cat((val, train)))


@split_and_standardize.misconception(
    "You fit mean and std on all rows, so that validation rows take part in the fitting; and "
    "torch.std divides by n - 1 unless told otherwise. Fit on the training rows, with divisor n."
)
def all_rows_and_default_std(X, y, val_fraction, generator):
    return parts(
        X, y, val_fraction, generator,
        fit=lambda train, val: torch.cat((val, train)), spread=lambda rows: rows.std(0),
    )  # fmt: skip


@split_and_standardize.misconception(
    "Your mean is that of all rows, your std that of the training rows. Both are fitted, so both "
    "come from the training rows alone."
)
def mean_from_all_data(X, y, val_fraction, generator):
    right = split_and_standardize.reference(X, y, val_fraction, generator)
    mean, std = X.mean(0), right[5]
    shift = (right[4] - mean) / std
    return right[0] + shift, right[1], right[2] + shift, right[3], mean, std


@split_and_standardize.misconception(
    "You fit mean and std on the validation rows. They are there to judge, not to fit."
)
def statistics_from_the_validation_part(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, fit=lambda train, val: val)


@split_and_standardize.misconception(
    "The validation part is standardized by its own mean and std. A single new sample will have no "
    "set to be standardized by; one fitted transform is used everywhere."
)
def validation_scaled_by_itself(X, y, val_fraction, generator):
    state = generator.get_state()
    right = split_and_standardize.reference(X, y, val_fraction, generator)
    used = torch.Generator()
    used.set_state(state)
    val = X[torch.randperm(len(X), generator=used).to(X.device)[: len(right[3])]]
    return *right[:2], (val - val.mean(0)) / raised(spread_of(val)), *right[3:]


@split_and_standardize.misconception(
    "Constant features are divided by zero: nan or infinity then runs through every later layer. "
    "Such entries of std become 1."
)
def constant_features_divide_by_zero(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, floor=lambda std: std)


@split_and_standardize.misconception(
    "Only a std of exactly 0 becomes 1. A constant column often has a tiny std from rounding; "
    "dividing by it turns noise of the last digit into a feature."
)
def only_exact_zero_counts(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 floor=lambda std: torch.where(std == 0, torch.ones_like(std), std))  # fmt: skip


@split_and_standardize.misconception(
    "You add something small to std. The contract replaces small entries by 1 and leaves the "
    "others alone; a nearly constant feature divided by 1e-8 becomes huge."
)
def something_small_added(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, floor=lambda std: std + 1e-8)


@split_and_standardize.misconception(
    "You replace too many entries of std by 1: some that are above 1e-6 as well. Small units make "
    "small numbers, and such a feature would never reach the size of the others."
)
def a_larger_bound(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 floor=lambda std: torch.where(std < 1e-5, torch.ones_like(std), std))  # fmt: skip


@split_and_standardize.misconception(
    "You replace too few entries of std by 1: some that are below 1e-6 stay, and dividing by them "
    "blows up differences that may be rounding alone."
)
def a_smaller_bound(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 floor=lambda std: torch.where(std < 1e-7, torch.ones_like(std), std))  # fmt: skip


@split_and_standardize.misconception(
    "You add the bound to std, also where std is large. The contract replaces entries below the "
    "bound by 1 and leaves the others alone."
)
def the_bound_added(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, floor=lambda std: std + 1e-6)


@split_and_standardize.misconception(
    "You lift std to a small minimum. The contract replaces small entries by 1: a feature that "
    "hardly varies should stay small, not be blown up by a million."
)
def small_std_lifted_a_little(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, floor=lambda std: std.clamp_min(1e-6))


@split_and_standardize.misconception(
    "Your std divides by n - 1, as torch.std does unless told otherwise. Here the divisor is the "
    "number of training rows."
)
def default_unbiased_std(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, spread=lambda rows: rows.std(0))


@split_and_standardize.misconception(
    "Rows and labels parted company: the rows are permuted, the labels are not. The model would "
    "learn noise."
)
def labels_not_permuted(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 labels=lambda train, val: (y[len(val):], y[: len(val)]))  # fmt: skip


@split_and_standardize.misconception(
    "Your labels come back as int64. y may hold measured numbers, and those lose their fraction; "
    "it keeps the dtype it has."
)
def labels_made_integers(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 labels=lambda train, val: (y[train].long(), y[val].long()))  # fmt: skip


@split_and_standardize.misconception(
    "Your labels come back in the dtype of X. Class numbers are integers and cannot be indices as "
    "floating-point numbers; y keeps the dtype it has."
)
def labels_in_the_dtype_of_X(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator,
                 labels=lambda train, val: (y[train].to(X.dtype), y[val].to(X.dtype)))  # fmt: skip


@split_and_standardize.misconception(
    "You draw two orders, one for the rows and one for the labels. They never match; draw one "
    "order and index both with it."
)
def an_order_for_each(X, y, val_fraction, generator):
    def labels(train, val):
        order = torch.randperm(len(X), generator=generator).to(X.device)
        return y[order[len(val) :]], y[order[: len(val)]]

    return parts(X, y, val_fraction, generator, labels=labels)


@split_and_standardize.misconception(
    "Your rows are not permuted: the split cuts the table as it lies. Tables are often sorted, and "
    "a sorted table puts whole classes into one part."
)
def no_permutation(X, y, val_fraction, generator):
    def order(count, generator):
        torch.randperm(count, generator=generator)
        return torch.arange(count)

    return parts(X, y, val_fraction, generator, order=order)


@split_and_standardize.misconception(
    "The order comes from the global generator, so the split depends on everything that ran "
    "before. Use the generator that was passed in."
)
def order_from_the_global_generator(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, order=lambda n, generator: torch.randperm(n))


@split_and_standardize.misconception(
    "Training takes the front of the order and validation the rest. The contract has it the other "
    "way round."
)
def training_rows_first(X, y, val_fraction, generator):
    def order(count, generator):
        drawn = torch.randperm(count, generator=generator)
        cut = count - int(count * val_fraction)
        return torch.cat((drawn[cut:], drawn[:cut]))

    return parts(X, y, val_fraction, generator, order=order)


@split_and_standardize.misconception(
    "You round the number of validation rows. int cuts the fraction off."
)
def rounds_the_number_of_rows(X, y, val_fraction, generator):
    def n_val(rows):
        exact = rows * val_fraction
        return max(1, round(exact)) if exact >= 1 else 0

    return parts(X, y, val_fraction, generator, n_val=lambda rows: min(n_val(rows), rows - 1)
                 if rows * val_fraction < rows else rows)  # fmt: skip


@split_and_standardize.misconception(
    "One mean and one std for the whole table. Each feature has its own unit and needs its own."
)
def one_mean_for_all_features(X, y, val_fraction, generator):
    right = split_and_standardize.reference(X, y, val_fraction, generator)
    train = right[0] * right[5] + right[4]
    mean = train.mean().expand_as(right[4]).clone()
    std = raised(train.std(correction=0).expand_as(mean).clone())
    val = right[2] * right[5] + right[4]
    return (train - mean) / std, right[1], (val - mean) / std, right[3], mean, std


@split_and_standardize.misconception(
    "You standardize X in place, so the caller's table changes. Work on the rows you picked; "
    "indexing with a tensor has copied them already."
)
def changes_the_callers_table(X, y, val_fraction, generator):
    right = split_and_standardize.reference(X, y, val_fraction, generator)
    X.sub_(right[4]).div_(right[5])
    return right


@split_and_standardize.misconception(
    "A fraction that leaves a part empty goes through. Its mean is nan, or there is nothing to "
    "validate on; raise ValueError."
)
def empty_parts_go_through(X, y, val_fraction, generator):
    return parts(X, y, val_fraction, generator, check=False)


split_and_standardize.hints(
    "Permute indices, not data: one order serves rows and labels.",
    "Keep this sequence of operations: split, fit, apply. What does each step get to see?",
    "Look up the argument of std that says by how much the divisor is corrected.",
)
