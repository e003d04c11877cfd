"""Worker processes, really started: what the demonstrations of week 06 say about them is true here too."""

import functools
import gc
import multiprocessing
import traceback
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from course_utils import loading
from course_utils.exercises.week06.ShardedStream import ShardedStream

START_METHODS = multiprocessing.get_all_start_methods()

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process")


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    assert not multiprocessing.active_children()


def by(method):
    return pytest.param(method, marks=pytest.mark.skipif(method not in START_METHODS, reason=f"no {method} here"))


def drift(method, persistent):
    dataset = loading.Drifting()
    loader = DataLoader(
        dataset, batch_size=4, num_workers=1, multiprocessing_context=method, persistent_workers=persistent
    )
    return [int(batch.max()) for _ in range(2) for batch in loader], int(dataset.X.max())


@pytest.mark.parametrize(
    ("method", "persistent", "epochs", "main"),
    [("fork", False, [2, 2], 1), ("fork", True, [2, 3], 1), ("spawn", True, [2, 3], 3)],
)
def test_what_a_worker_writes_into_its_dataset(method, persistent, epochs, main):
    if method not in START_METHODS:
        pytest.skip(f"no {method} here")
    assert drift(method, persistent) == (epochs, main)


def throws(**options):
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(loading.Dice(), batch_size=1, num_workers=2, generator=generator, **options)
    return torch.tensor([[stream.item() for stream in batch] for _ in range(2) for batch in loader])


def test_global_streams_differ_between_workers_and_epochs_and_repeat_with_the_seed():
    table = throws()
    assert all(len(table[:, stream].unique()) == 8 for stream in range(3))
    assert torch.equal(table, throws())


def test_a_generator_of_the_dataset_is_the_same_in_every_worker_and_epoch():
    own = throws()[:, 3].reshape(2, 2, 2)  # epoch, throw, worker
    assert torch.equal(own[:, :, 0], own[:, :, 1]) and torch.equal(own[0], own[1])


def test_reseeding_in_the_worker_repairs_it():
    own = throws(worker_init_fn=loading.reseed_own)[:, 3]
    assert len(own.unique()) == 8


@pytest.mark.parametrize(("persistent", "seen"), [(False, [[0, 0], [1, 1]]), (True, [[0, 0], [0, 0]])])
def test_persistent_workers_keep_the_dataset_they_began_with(persistent, seen):
    dataset = loading.EpochTag()
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=persistent)
    found = []
    for dataset.epoch in range(2):
        found += [batch.tolist() for batch in loader]
    assert found == seen


def test_an_epoch_in_shared_memory_reaches_persistent_workers():
    dataset = loading.SharedEpochTag()
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    found = []
    for epoch in range(2):
        dataset.epoch.fill_(epoch)
        found += [batch.tolist() for batch in loader]
    assert found == [[0, 0], [1, 1]]


def orders(**options):
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(range(8), batch_size=3, shuffle=True, generator=generator, **options)
    return [[index for batch in loader for index in batch.tolist()] for _ in range(2)]


def test_the_order_is_that_of_no_workers_until_persistent_ones_reach_epoch_2():
    plain = orders()
    assert orders(num_workers=2) == plain
    kept = orders(num_workers=2, persistent_workers=True)
    assert kept[0] == plain[0] and kept[1] != plain[1] and sorted(kept[1]) == sorted(plain[1])


def test_an_error_in_a_worker_keeps_its_type_and_names_the_worker():
    with pytest.raises(
        ValueError, match=r"Caught ValueError in DataLoader worker process 1[\s\S]*record 3 is damaged"
    ) as caught:
        for _ in DataLoader(loading.Fragile(), batch_size=2, num_workers=2):
            pass
    traceback.clear_frames(caught.tb)  # else the workers wait for the garbage collector
    del caught
    gc.collect()


def delivered(stream, method=None):
    options = {"num_workers": 2, "multiprocessing_context": method}
    return list(DataLoader(stream, batch_size=4, collate_fn=loading.with_worker, **options))


def test_two_workers_deliver_an_unsharded_stream_twice():
    batches = delivered(loading.Everything(range(10)))
    assert {worker for worker, _ in batches} == {0, 1}
    assert Counter(item for _, batch in batches for item in batch) == dict.fromkeys(range(10), 2)


@pytest.mark.parametrize("method", [by("fork")])
@pytest.mark.parametrize("size", [0, 1, 10, 13])
def test_two_workers_share_a_sharded_stream(method, size):
    batches = delivered(ShardedStream.reference(range(size)), method)
    assert Counter(item for _, batch in batches for item in batch) == dict.fromkeys(range(size), 1)


class DefinedInAScript(loading.Everything):
    """Stands in `__main__` below, as a class of a notebook does."""


@pytest.mark.parametrize("method", [by("spawn")])
def test_a_class_that_the_worker_cannot_import_ends_a_spawned_worker(method, monkeypatch, capfd):
    import __main__

    monkeypatch.setattr(__main__, "DefinedInAScript", DefinedInAScript, raising=False)
    monkeypatch.setattr(DefinedInAScript, "__module__", "__main__")
    with pytest.raises(RuntimeError, match="exited unexpectedly") as caught:
        list(DataLoader(DefinedInAScript(range(4)), num_workers=1, multiprocessing_context=method))
    traceback.clear_frames(caught.tb)
    assert "Can't get attribute 'DefinedInAScript'" in capfd.readouterr().err


def test_a_slow_row_says_who_loaded_it_and_when():
    rows = torch.cat(list(DataLoader(loading.Slow(4, 0.001), batch_size=2, num_workers=2)))
    assert rows[:, 0].tolist() == [0, 0, 1, 1]
    assert (rows[:, 2] - rows[:, 1] >= 0.001).all()
    assert next(iter(DataLoader(loading.Slow(1, 0.0))))[0, 0] == -1


def test_pairs_name_the_main_process_without_workers():
    loader = functools.partial(DataLoader, batch_size=3, collate_fn=loading.with_worker)
    assert list(loader(loading.Everything("abcd"))) == [(-1, ["a", "b", "c"]), (-1, ["d"])]
