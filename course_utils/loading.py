"""Small datasets for worker processes.

They stand in a module because a worker that does not begin as a fork imports the classes it is sent, and a notebook
cannot be imported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Drifting(Dataset):
    """Rows of ones; every access adds 1 to the row that is stored."""

    def __init__(self, rows: int = 4) -> None:
        self.X = torch.ones(rows, 1)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> torch.Tensor:
        x = self.X[index]
        x += 1
        return x


class Dice(Dataset):
    """One throw from each of four random streams; the fourth is a generator that the dataset owns."""

    def __init__(self, rows: int = 4) -> None:
        self.rows = rows
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[float, float, float, float]:
        return torch.rand(()).item(), random.random(), np.random.random(), self.own.random()


class EpochTag(Dataset):
    """Each item is the epoch that the dataset believes in."""

    epoch = 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return self.epoch


class SharedEpochTag(EpochTag):
    """The same with the epoch in a tensor whose memory all processes share."""

    def __init__(self) -> None:
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> int:
        return self.epoch.item()


class Fragile(Dataset):
    """Six numbers, one of which cannot be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise ValueError("record 3 is damaged")
        return index


class Slow(Dataset):
    """Rows that take a while: each item waits, then returns (worker, start, end) of its own loading."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows, self.seconds = rows, seconds

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        start = time.perf_counter()
        time.sleep(self.seconds)
        info = get_worker_info()
        worker = -1 if info is None else info.id
        return torch.tensor([worker, start, time.perf_counter()], dtype=torch.float64)


class Everything(IterableDataset):
    """A stream that hands out all its items, whoever asks."""

    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self) -> Iterator:
        yield from self.items


def reseed_own(worker: int) -> None:
    """A `worker_init_fn` for `Dice`: give this worker's copy a generator of its own."""
    get_worker_info().dataset.own = np.random.default_rng(torch.initial_seed())


def with_worker(batch: list) -> tuple[int, list]:
    """A `collate_fn` that leaves the samples as they are and adds the worker it runs in; −1 is the main process."""
    info = get_worker_info()
    return (-1 if info is None else info.id), batch
