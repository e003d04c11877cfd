"""The answers of week 06 against torch's own loaders, samplers and plain loops, some with real worker processes."""

import gc
import itertools
import multiprocessing
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from course_utils.exercise import load_exercise
from course_utils.exercises.week06._loading import GlobalGenerator, some, worker

SEEDS = range(6)
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # what Python 3.12 says about fork
]
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


def forked(dataset, workers=2, **options):
    """A loader with real, forked worker processes."""
    return DataLoader(dataset, num_workers=workers, multiprocessing_context="fork", **options)


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Whatever a test starts is gone at its end."""
    before = set(multiprocessing.active_children())
    yield
    if set(multiprocessing.active_children()) - before:
        gc.collect()  # an exception holds on to the iterator it came from
    assert set(multiprocessing.active_children()) <= before


# --- each answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
def test_epoch_plan_counts_what_a_loader_delivers(drop_last):
    """The batches of a real loader, counted and measured, for all small sizes."""
    for samples, size in itertools.product(range(10), range(1, 8)):
        loader = DataLoader(range(samples), batch_size=size, drop_last=drop_last) if samples else []
        batches = [len(batch) for batch in loader]
        expected = (len(batches), batches[-1] if batches else 0, sum(batches))
        assert reference("epoch_plan")(samples, size, drop_last) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_tabular_dataset_gives_the_rows_of_the_array(seed):
    """Every row against plain indexing of the array, for random layouts and dtypes."""
    rng = np.random.default_rng(seed)
    rows, width = (int(n) for n in rng.integers(2, 8, 2))
    dtype = [np.float16, np.float32, np.float64, np.int8, np.uint16, np.dtype(">f8")][seed]
    X = (rng.standard_normal((2 * rows, width)) * 10).astype(np.int64).astype(dtype)[:: (-1) ** seed * 2]
    y = rng.integers(0, 100, 2 * rows).astype(np.uint8)[::-2]
    if seed % 2:
        X = np.asfortranarray(X)
    X.flags.writeable = y.flags.writeable = False
    dataset = reference("TabularDataset")(X, y)
    assert len(dataset) == rows
    for i in (*range(-rows, rows),):
        x, label = dataset[i]
        assert (x.dtype, x.shape, label.dtype, label.shape) == (torch.float32, (width,), torch.int64, ())
        assert x.tolist() == [float(value) for value in X[i]] and label.item() == y[i]
    assert len(list(dataset)) == rows


def test_tabular_dataset_keeps_large_labels_and_single_columns():
    """Labels beyond what float32 tells apart, in a table of one column."""
    y = 2**53 + np.arange(3)
    items = list(reference("TabularDataset")(np.zeros((3, 1)), y))
    assert [label.item() for _, label in items] == y.tolist()
    assert all(type(item) is tuple and item[0].shape == (1,) for item in items)


@pytest.mark.parametrize("seed", SEEDS)
def test_split_and_standardize_against_numpy(seed):
    """The same split and statistics with NumPy in float64; every row is in exactly one part."""
    draw = torch.Generator().manual_seed(seed)
    rows, width = 7 + 5 * seed, 2 + seed
    X = 3 * torch.randn(rows, width, generator=draw, dtype=torch.float64) + 5
    X[:, 1] = 0.1
    y = torch.arange(rows)
    X_train, y_train, X_val, y_val, mean, std = reference("split_and_standardize")(
        X, y, 0.3, torch.Generator().manual_seed(seed)
    )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
    val, train = order[: int(rows * 0.3)], order[int(rows * 0.3) :]
    table = X.numpy()
    center, spread = np.mean(table[train], axis=0), np.std(table[train], axis=0)
    spread[spread < 1e-6] = 1
    assert y_train.tolist() == train.tolist() and y_val.tolist() == val.tolist()
    assert sorted([*train, *val]) == list(range(rows))
    for mine, expected in (
        (X_train, (table[train] - center) / spread), (X_val, (table[val] - center) / spread), (mean, center),
        (std, spread),
    ):  # fmt: skip
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_pad_collate_pads_as_pad_sequence_does(seed, dtype):
    """pad_sequence for the values, counting for the rest."""
    draw = random.Random(seed)
    sequences = [torch.randint(0, 3, (draw.randint(0, 6),)).to(dtype) for _ in range(draw.randint(1, 5))]
    labels = [draw.randint(0, 9) for _ in sequences]
    padded, lengths, mask, classes = reference("pad_collate")(list(zip(sequences, labels, strict=True)), 2)
    assert torch.equal(padded, pad_sequence(sequences, batch_first=True, padding_value=2))
    assert padded.dtype is dtype and (lengths.dtype, classes.dtype) == (torch.int64, torch.int64)
    assert lengths.tolist() == list(map(len, sequences)) and classes.tolist() == labels
    for row, sequence in zip(range(len(sequences)), sequences, strict=True):
        assert mask[row].tolist() == [k < len(sequence) for k in range(padded.shape[1])]
        assert torch.equal(padded[row][mask[row]], sequence)


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_sample_weights_balance_a_real_sampler(seed):
    """Plain counting, exactly; and 6000 draws come out even."""
    draw = random.Random(seed)
    labels = [draw.choice((0, 0, 0, 0, 3, 3, 7)) for _ in range(60)] + [0, 3, 7]
    weights = reference("balanced_sample_weights")(torch.tensor(labels))
    assert weights.tolist() == pytest.approx([1 / (3 * labels.count(label)) for label in labels])
    assert weights.sum().item() == pytest.approx(1) and weights.dtype is torch.float64
    drawn = WeightedRandomSampler(weights, 6000, generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor(labels)[list(drawn)].bincount()
    assert all(1800 < counts[label] < 2200 for label in (0, 3, 7))


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (3, 1), (0, 2), (3, 2), (2, 5)])
def test_sharded_stream_deals_like_cards(workers, ranks):
    """Dealt round by round to one player per shard; together every item comes once."""
    stream_class = reference("ShardedStream")
    for count in (0, 1, 10, 13, 40):
        items = [f"item {k}" for k in range(count)]
        players = max(workers, 1) * ranks
        hands = [[] for _ in range(players)]
        for position, item in enumerate(items):
            hands[position % players].append(item)
        got = []
        for rank in range(ranks):
            stream = stream_class(items, rank, ranks)
            for number in range(max(workers, 1)):
                if workers:
                    with worker(number, workers, stream):
                        got.append(list(stream))
                else:
                    got.append(list(stream))
        assert got == hands
        assert sorted(itertools.chain(*got)) == sorted(items)


def test_sharded_stream_reads_its_own_items_from_a_source_without_end():
    """A source that answers any index, so that only its length says where to stop; each item is read once."""

    class Endless:
        def __len__(self):
            return 11

        def __getitem__(self, position):
            read.append(position)
            return 10 * position

    read, stream = [], reference("ShardedStream")(Endless(), 1, 2)
    with worker(0, 2, stream):
        assert list(stream) == [20, 60, 100]
    assert read == [2, 6, 10]


@pytest.mark.parametrize("seed", SEEDS)
def test_resumable_sampler_goes_on_wherever_it_was_stopped(seed):
    """The uninterrupted order over three epochs, and the rest of it from every position."""
    sampler_class = reference("ResumableSampler")
    count = 1 + seed
    whole = []
    for epoch in range(3):
        whole += torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    for stop in range(2 * count):
        first = sampler_class(count, seed)
        handed = list(itertools.islice(itertools.chain.from_iterable(iter(first) for _ in range(3)), stop))
        second = sampler_class(count, seed=99)
        second.load_state_dict(first.state_dict())
        rest = list(itertools.chain.from_iterable(list(second) for _ in range(3)))
        assert handed == whole[:stop]
        assert rest[: 3 * count - stop] == whole[stop:]


@pytest.mark.parametrize("seed", SEEDS)
def test_augmented_dataset_adds_standard_normal_noise(seed):
    """Each item against the formula; the noise over many epochs has mean 0 and standard deviation 1."""
    X = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    original = X.clone()
    dataset = reference("AugmentedDataset")(X, torch.arange(5), 0.5, seed=seed)
    noise = []
    for epoch in range(80):
        dataset.set_epoch(epoch)
        for i in range(5):
            x, label = dataset[i]
            generator = torch.Generator().manual_seed(seed + 5 * epoch + i)
            torch.testing.assert_close(x, original[i] + 0.5 * torch.randn(3, generator=generator))
            assert label == i
            noise.append((x - original[i]) / 0.5)
    assert torch.equal(X, original)
    assert abs(torch.stack(noise).mean()) < 0.12 and abs(torch.stack(noise).std() - 1) < 0.12


# --- the stand-in for workers -----------------------------------------------------------------------------------------


def test_the_stand_in_answers_like_a_worker_and_leaves_no_trace():
    with worker(1, 3, dataset="a dataset"):
        info = torch.utils.data.get_worker_info()
        assert (info.id, info.num_workers, info.dataset) == (1, 3, "a dataset")
    assert torch.utils.data.get_worker_info() is None
    with pytest.raises(KeyError), worker(0, 2):
        raise KeyError
    assert torch.utils.data.get_worker_info() is None


def test_the_look_at_the_global_generator_sees_draws_and_seeds():
    for touch, word in (
        (lambda: None, "untouched"),
        (lambda: torch.rand(1, generator=torch.Generator()), "untouched"),
        (lambda: torch.rand(1), "changed"),
        (lambda: torch.manual_seed(5), "changed"),
        (lambda: iter(DataLoader(range(3))), "changed"),
    ):
        torch.manual_seed(4)
        noted = GlobalGenerator()
        touch()
        assert noted.state() == word
    assert some(itertools.count(), 3) == [0, 1, 2]


# --- real workers -----------------------------------------------------------------------------------------------------


class Everything(IterableDataset):
    """A stream that does not ask in which worker it runs."""

    def __iter__(self):
        yield from range(6)


@needs_fork
def test_two_workers_share_a_sharded_stream_and_double_another():
    assert sorted(forked(Everything(), batch_size=None)) == sorted([*range(6)] * 2)
    stream = reference("ShardedStream")(range(13))
    for loader in (forked(stream, batch_size=None), forked(stream, batch_size=4)):
        delivered = [int(k) for batch in loader for k in torch.as_tensor(batch).reshape(-1)]
        assert sorted(delivered) == list(range(13))
    ranks = [reference("ShardedStream")(range(13), rank, 2) for rank in range(2)]
    shares = [sorted(int(k) for k in forked(stream, batch_size=None)) for stream in ranks]
    assert shares == [[k for k in range(13) if k % 4 in pair] for pair in ((0, 1), (2, 3))]


class Draws(Dataset):
    """One number from each stream of random numbers that a dataset may use, and the worker's number."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.rand(()).item(), random.random(), np.random.random(), self.own.random()


@needs_fork
def test_global_streams_differ_between_workers_and_a_dataset_s_own_does_not():
    def epochs(seed):
        loader = forked(Draws(), batch_size=None, generator=torch.Generator().manual_seed(seed))
        return [[tuple(map(float, item)) for item in loader] for _ in range(2)]

    first, second = epochs(0)
    for stream in range(3):  # torch, random, np.random
        assert len({item[stream] for item in first + second}) == 8
    assert [round(item[3], 3) for item in first] == [0.637, 0.637, 0.27, 0.27]
    assert [item[3] for item in second] == [item[3] for item in first]
    assert epochs(0) == [first, second]


def reseed(worker_id):
    """What a worker_init_fn does to repair a generator that the dataset holds."""
    torch.utils.data.get_worker_info().dataset.own = np.random.default_rng(torch.initial_seed())


@needs_fork
def test_a_worker_init_fn_repairs_the_dataset_s_own_stream():
    generator = torch.Generator().manual_seed(0)
    loader = forked(Draws(), batch_size=None, worker_init_fn=reseed, generator=generator)
    assert len({float(item[3]) for _ in range(2) for item in loader}) == 8


@needs_fork
def test_augmentation_from_seed_epoch_and_index_is_the_same_with_any_number_of_workers():
    X = torch.randn(7, 3)
    dataset = reference("AugmentedDataset")(X, torch.arange(7), 0.5, seed=11)
    for epoch in (0, 2):
        dataset.set_epoch(epoch)
        alone = list(DataLoader(dataset, batch_size=3))
        for mine, theirs in zip(forked(dataset, batch_size=3), alone, strict=True):
            assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


class Epoch(Dataset):
    """Says which epoch it believes it is."""

    epoch = 0

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.epoch


@needs_fork
@pytest.mark.parametrize(("persistent", "seen"), [(True, [[0, 0], [0, 0]]), (False, [[0, 0], [1, 1]])])
def test_persistent_workers_keep_the_dataset_they_were_given(persistent, seen):
    dataset = Epoch()
    loader = forked(dataset, batch_size=None, persistent_workers=persistent)
    epochs = []
    for epoch in range(2):
        dataset.epoch = epoch
        epochs.append([int(item) for item in loader])
    assert epochs == seen
    del loader


def orders(dataset_order, epochs=3, **options):
    """The indices of some epochs, of a loader with two real workers unless told otherwise."""
    settings = {"num_workers": 2, "multiprocessing_context": "fork", "batch_size": None} | options
    loader = DataLoader(range(9), **dataset_order, **settings)
    return [[int(item) for item in loader] for _ in range(epochs)]


def shuffled():
    """Shuffling from a generator with a known seed."""
    return {"shuffle": True, "generator": torch.Generator().manual_seed(3)}


@needs_fork
def test_persistent_workers_change_the_order_of_later_epochs():
    """Each new iterator first draws a base seed for its workers; persistent workers make no new one."""
    alone = orders(shuffled(), num_workers=0, multiprocessing_context=None)
    anew, stayed = (orders(shuffled(), persistent_workers=persistent) for persistent in (False, True))
    assert anew == alone
    assert stayed == orders(shuffled(), persistent_workers=True)
    assert stayed[0] == alone[0]
    assert stayed[1] != alone[1] and stayed[2] != alone[2]


@needs_fork
def test_a_sampler_that_derives_its_order_gives_the_same_with_all_kinds_of_workers():
    seen = [
        orders({"sampler": reference("ResumableSampler")(9, seed=3)}, **options)
        for options in (
            {"num_workers": 0, "multiprocessing_context": None},
            {"persistent_workers": False},
            {"persistent_workers": True},
        )
    ]
    assert seen[0] == seen[1] == seen[2]
    assert len(set(map(tuple, seen[0]))) == 3


@needs_fork
def test_a_sampler_s_cursor_runs_ahead_of_the_loop_by_the_prefetched_batches():
    """Two workers and prefetch 2: after one batch of the loop, five are handed out. Count what was consumed."""
    sampler_class = reference("ResumableSampler")
    data, sampler = range(20), sampler_class(20, seed=5)
    iterator = iter(forked(data, batch_size=2, sampler=sampler, prefetch_factor=2))
    assert sampler.state_dict()["cursor"] == 8
    consumed = next(iterator).tolist()
    assert sampler.state_dict()["cursor"] == 10
    del iterator
    again = sampler_class(20)
    again.load_state_dict({"seed": 5, "epoch": 0, "cursor": len(consumed)})
    assert consumed + list(again) == list(sampler_class(20, seed=5))


class Drifting(Dataset):
    """The week's silent bug: what is handed out is a view, and something works on it in place."""

    def __init__(self):
        self.rows = torch.ones(1)

    def __len__(self):
        return 1

    def __getitem__(self, i):
        x = self.rows[i]
        x += 1
        return x.item()


@needs_fork
@pytest.mark.parametrize(("persistent", "seen"), [(False, [2, 2]), (True, [2, 3])])
def test_a_forked_worker_s_copy_drifts_and_the_original_does_not(persistent, seen):
    dataset = Drifting()
    loader = forked(dataset, workers=1, batch_size=None, persistent_workers=persistent)
    assert [int(item) for _ in range(2) for item in loader] == seen
    assert dataset.rows.item() == 1
    del loader


def test_a_view_of_a_tensor_dataset_can_be_written_through():
    dataset = TensorDataset(torch.ones(2, 2))
    (x,) = dataset[0]
    x.mul_(5)
    assert dataset.tensors[0].tolist() == [[5, 5], [1, 1]]


CLASS = """
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return i * i
"""
USE = """
import squares
spawned = {"batch_size": None, "num_workers": 1, "multiprocessing_context": "spawn"}
for kind in (Squares, squares.Squares):
    try:
        print([int(x) for x in DataLoader(kind(), **spawned)])
    except RuntimeError as error:
        print(error)
"""


def test_a_dataset_defined_in_a_notebook_does_not_reach_a_spawned_worker(tmp_path):
    """The worker looks the class up by name, and its own __main__ has none of that name. An imported one it finds."""
    (tmp_path / "squares.py").write_text(CLASS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLASS + USE],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    defined_here, imported = done.stdout.strip().split("\n")
    assert "Can't get attribute 'Squares' on <module '__main__'" in done.stderr
    assert "DataLoader worker" in defined_here and "exited unexpectedly" in defined_here
    assert imported == "[0, 1, 4, 9]", done.stderr


class Broken(Dataset):
    """An item that cannot be made."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise ValueError("no such file")


@needs_fork
def test_an_error_in_a_worker_keeps_its_type_and_names_the_worker(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # else it takes 5 s to end
    iterator = iter(forked(Broken(), workers=1))
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process 0"):
        next(iterator)
    del iterator
    gc.collect()
