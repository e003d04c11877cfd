"""A bug hunt: augmentation that harms the data, the validation and the reproducibility."""

import torch
from torch.utils.data import DataLoader

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import GlobalGenerator, some


@exercise(objectives=("data.augment", "data.worker_seeds"), forbids=(torch.manual_seed,))
class AugmentedDataset(torch.utils.data.Dataset):
    """Noise on the rows of X: new in each epoch, the same whoever asks in whatever order.

    X (N, d) is a floating-point tensor, y (N,) a tensor of any dtype. set_epoch(e) says which epoch
    it is; at first it is 0. ds[i] is the tuple (x, label) for -N <= i < N, where a negative i means
    i + N; any other i raises IndexError. label is a tensor, equal to y[i] and of y's dtype.

    When train is True, x = X[i] + noise_std * z, with
    z = torch.randn(d, generator=G, dtype=X.dtype) and G a CPU generator seeded with
    seed + epoch * N + i, so that the order of access does not matter. Otherwise x equals X[i].
    x is on X's device.

    Changing the returned x or label never changes X or y. torch's global generator stays as it is:
    no torch.manual_seed. (A generator of your own has a method manual_seed; that one is yours.)
    """

    def __init__(self, X, y, noise_std, train=True, seed=0):
        self.X, self.y, self.noise_std = X, y, noise_std
        self.train, self.seed, self.epoch = train, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for {n} samples")
        i %= n
        x, label = self.X[i].clone(), self.y[i].clone()
        if self.train:
            generator = torch.Generator().manual_seed(self.seed + self.epoch * n + i)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x += self.noise_std * noise.to(x.device)
        return x, label


@AugmentedDataset.broken
class broken_augmented_dataset(torch.utils.data.Dataset):
    def __init__(self, X, y, noise_std, train=True, seed=0):
        self.X, self.y, self.noise_std = X, y, noise_std
        self.g = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        x = self.X[i]
        x += self.noise_std * torch.randn(x.shape, generator=self.g)
        return x, self.y[i]


def table(draw, dtype=torch.float32, low=3):
    """Rows and labels, with N and d that differ."""
    rows, width = draw.sizes(2, low, 7)
    return draw.normal(rows, width, dtype=dtype), draw.integers(0, 9, rows)


@AugmentedDataset.case
def forward_backward_and_again(implementation, draw):
    X, y = table(draw)
    dataset = implementation(X, y, draw.number(0.2, 0.9), seed=draw.whole(1, 50))
    forward = [dataset[i] for i in range(len(X))]
    backward = [dataset[i] for i in reversed(range(len(X)))]
    twice = [dataset[1], dataset[1]]
    return {"1. forward": forward, "2. backward": backward, "3. one item twice": twice}


@AugmentedDataset.case
def the_data_after_an_epoch(implementation, draw):
    X, y = table(draw)
    dataset = implementation(X, y, 0.5)
    items = [dataset[i] for i in range(len(X))]
    return {"1. first item": items[0], "2. X and y": [X, y]}


@AugmentedDataset.case
def four_epochs(implementation, draw):
    X, y = table(draw)
    dataset = implementation(X, y, draw.number(0.2, 0.9), seed=draw.whole(1, 50))
    seen = {"before set_epoch": dataset[1]}
    for epoch in (3, 1, 0, 3):
        attempt(lambda epoch=epoch: dataset.set_epoch(epoch))
        seen[f"epoch {epoch}"] = [dataset[0], dataset[len(X) - 1]]
    return seen


@AugmentedDataset.case(tolerance=(1e-9, 1e-9))
def float64_rows(implementation, draw):
    X, y = draw.normal(3, 17, dtype=torch.float64), draw.integers(0, 9, 3)
    dataset = implementation(X, y, 0.5, True, 7)
    return [dataset[2], dataset[0]]


@AugmentedDataset.case
def labels_of_other_dtypes(implementation, draw):
    X, y = table(draw)
    real = implementation(X, y + draw.normal(len(X), dtype=torch.float64), 0.5)
    plain = implementation(X, y.to(torch.int32), 0.5, train=False)
    return [real[1], plain[0]]


@AugmentedDataset.case
def validation(implementation, draw):
    X, y = table(draw)
    dataset = implementation(X, y, 0.5, train=False)
    attempt(lambda: dataset.set_epoch(2))
    x, label = dataset[1]
    x.mul_(3)
    label.add_(3)
    return [dataset[1], dataset[-1], dataset[0]]


@AugmentedDataset.case
def what_was_returned_is_changed(implementation, draw):
    X, y = table(draw)
    dataset = implementation(X, y, 0.5, seed=3)
    x, label = dataset[2]
    x.mul_(3)
    label.add_(3)
    return [dataset[2], X, y]


@AugmentedDataset.case
def indices_from_both_ends_and_beyond(implementation, draw):
    X, y = table(draw)
    dataset, rows = implementation(X, y, 0.5, seed=20), len(X)
    return {
        "the last one, twice": [dataset[-1], dataset[rows - 1]],
        "the first one, twice": [dataset[-rows], dataset[0]],
        "beyond": [attempt(lambda i=i: dataset[i]) for i in (rows, -rows - 1)],
        "items in a for loop": len(some(dataset, rows + 3)),
    }


@AugmentedDataset.case
def a_lot_of_noise(implementation, draw):
    X, y = table(draw)
    return implementation(X, y, 30.0, seed=4)[1]


@AugmentedDataset.case
def the_global_generator(implementation, draw):
    X, y = table(draw)
    noted = GlobalGenerator()
    dataset = implementation(X, y, 0.5)
    first = dataset[0]
    seen = [first, noted.state()]
    torch.randn(3)  # somebody else draws from it
    return [*seen, dataset[0]]


@AugmentedDataset.case
def through_a_shuffling_DataLoader(implementation, draw):
    X, y = table(draw, low=4)
    dataset = implementation(X, y, 0.5, seed=draw.whole(1, 50))
    generator = torch.Generator().manual_seed(draw.whole(0, 99))
    loader = DataLoader(dataset, batch_size=3, shuffle=True, generator=generator)
    return [some(loader, 5), some(loader, 5)]


class Parts(torch.utils.data.Dataset):
    """The dataset in parts that can be exchanged."""

    def __init__(self, X, y, noise_std, train=True, seed=0):
        self.X, self.y, self.noise_std = X, y, noise_std
        self.train, self.seed, self.epoch = train, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.X)

    def position(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return i % len(self)

    def __getitem__(self, i):
        i = self.position(i)
        x = self.X[i].clone()
        if self.train:
            x = x + self.noise_std * self.noise(i, x).to(x)
        return x, self.y[i].clone()

    def noise(self, i, x):
        generator = torch.Generator().manual_seed(self.seed_of(i))
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def seed_of(self, i):
        return self.seed + self.epoch * len(self) + i


@AugmentedDataset.misconception(
    "The noise is written into the data. X[i] is a view of X, so each access in place adds more "
    "noise to the source itself."
)
class noise_written_into_the_data(Parts):
    def __getitem__(self, i):
        i = self.position(i)
        x = self.X[i]
        if self.train:
            x += self.noise_std * self.noise(i, x).to(x)
        return x, self.y[i].clone()


@AugmentedDataset.misconception(
    "One generator, made in the constructor, serves all items. What an item looks like then "
    "depends on which were asked for before, and every worker starts from the same copy."
)
class one_generator_from_the_constructor(Parts):
    def __init__(self, X, y, noise_std, train=True, seed=0):
        super().__init__(X, y, noise_std, train, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def noise(self, i, x):
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


@AugmentedDataset.misconception(
    "The noise comes from torch's global generator. It differs at every access, nobody can "
    "reproduce it, and every other user of that generator is shifted."
)
class noise_from_the_global_generator(Parts):
    def noise(self, i, x):
        return torch.randn(x.shape, dtype=x.dtype)


@AugmentedDataset.misconception(
    "You seed torch's global generator for each item. Dropout and initialization elsewhere then "
    "start from your seed too; make a generator of your own."
)
class seeds_the_global_generator(Parts):
    def noise(self, i, x):
        torch.default_generator.manual_seed(self.seed_of(i))
        return torch.randn(x.shape, dtype=x.dtype)


@AugmentedDataset.misconception(
    "Validation rows get noise too. The metric becomes noisy and pessimistic; respect the flag."
)
class augments_validation_data(Parts):
    def __init__(self, X, y, noise_std, train=True, seed=0):
        super().__init__(X, y, noise_std, True, seed)


@AugmentedDataset.misconception(
    "The epoch plays no part: each sample gets the same noise for ever. That is just different "
    "data, not augmentation."
)
class the_epoch_plays_no_part(Parts):
    def seed_of(self, i):
        return self.seed + i


@AugmentedDataset.misconception(
    "All samples of an epoch get the same noise, so the whole epoch is shifted by one vector. What "
    "tells the samples apart?"
)
class same_noise_for_every_sample(Parts):
    def seed_of(self, i):
        return self.seed + self.epoch * len(self)


@AugmentedDataset.misconception(
    "You add epoch and index as they are. Sample 1 of epoch 0 then has the noise of sample 0 of "
    "epoch 1, and so on; an epoch needs N seeds of its own."
)
class epochs_overlap(Parts):
    def seed_of(self, i):
        return self.seed + self.epoch + i


@AugmentedDataset.misconception(
    "The seed that was passed in plays no part, so two runs with different seeds see the same "
    "noise."
)
class ignores_the_seed(Parts):
    def seed_of(self, i):
        return self.epoch * len(self) + i


@AugmentedDataset.misconception(
    "ds[-1] and ds[N - 1] are the same sample but get different noise. A negative index means "
    "i + N; use that for the seed too."
)
class negative_index_in_the_seed(Parts):
    def __getitem__(self, i):
        position = self.position(i)
        x = self.X[position].clone()
        if self.train:
            x = x + self.noise_std * self.noise(i, x).to(x)
        return x, self.y[position].clone()


@AugmentedDataset.misconception(
    "An index beyond the end starts again at the front. A for loop over the dataset stops at the "
    "IndexError; without one it never ends."
)
class wraps_around(Parts):
    def position(self, i):
        return i % len(self)


@AugmentedDataset.misconception(
    "You add N to every negative index and look no further, so that ds[-N - 1] is the last sample "
    "once more. Check the range before you change the index."
)
class negative_index_too_far(Parts):
    def position(self, i):
        i = i + len(self) if i < 0 else i
        if i >= len(self):
            raise IndexError(i)
        return i


@AugmentedDataset.misconception(
    "Negative indices are refused. ds[-1] is the last sample, as in any Python sequence."
)
class refuses_negative_indices(Parts):
    def position(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return i


@AugmentedDataset.misconception(
    "Without noise you hand out the row itself, a view of X. Whoever edits it edits the data."
)
class validation_hands_out_views(Parts):
    def __getitem__(self, i):
        i = self.position(i)
        x, label = super().__getitem__(i)
        return x if self.train else self.X[i], label


@AugmentedDataset.misconception(
    "The label is a view of y. An edit in place of what you returned changes the labels."
)
class label_is_a_view(Parts):
    def __getitem__(self, i):
        return super().__getitem__(i)[0], self.y[self.position(i)]


@AugmentedDataset.misconception(
    "Your label is a Python number. Asked for is a tensor: a copy of y[i], in y's dtype."
)
class labels_as_python_numbers(Parts):
    def __getitem__(self, i):
        x, label = super().__getitem__(i)
        return x, label.item()


@AugmentedDataset.misconception(
    "Your label is made from a Python number, so its dtype is torch's choice: float64 becomes "
    "float32, int32 becomes int64. Copy the tensor y[i] itself."
)
class labels_by_way_of_python_numbers(Parts):
    def __getitem__(self, i):
        x, label = super().__getitem__(i)
        return x, torch.tensor(label.item(), device=label.device)


@AugmentedDataset.misconception(
    "The noise is drawn in float32 whatever the dtype of X. Float64 rows then get noise of another "
    "precision, and long rows get quite other numbers; say which dtype you want."
)
class noise_in_float32(Parts):
    def noise(self, i, x):
        generator = torch.Generator().manual_seed(self.seed_of(i))
        return torch.randn(x.shape, generator=generator)


@AugmentedDataset.misconception(
    "You draw one number for a sample and add it to all of its features. Each feature gets noise "
    "of its own."
)
class one_number_for_all_features(Parts):
    def noise(self, i, x):
        return super().noise(i, x[:1]).expand_as(x)


@AugmentedDataset.misconception(
    "The noise is uniform, from 0 to 1: it shifts all features upwards. Draw from the normal "
    "distribution."
)
class uniform_noise(Parts):
    def noise(self, i, x):
        generator = torch.Generator().manual_seed(self.seed_of(i))
        return torch.rand(x.shape, generator=generator, dtype=x.dtype)


AugmentedDataset.hints(
    "Whose memory does X[i] show? Look at X before and after an epoch.",
    "Ask for the same item twice, then for two items in both orders. What identifies the noise of "
    "an item, and is all of it known inside __getitem__?",
    "A generator is cheap: a fresh one per item remembers nothing.",
)
