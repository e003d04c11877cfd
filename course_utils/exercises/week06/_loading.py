"""What cases of week 06 share: a stand-in for worker processes, a look at the global generator."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch.utils.data._utils import worker as _worker


@contextmanager
def worker(number: int, workers: int, dataset: object = None) -> Iterator[None]:
    """Inside, `get_worker_info()` answers as in that worker process; no process is started."""
    former = _worker._worker_info
    _worker._worker_info = _worker.WorkerInfo(
        id=number, num_workers=workers, seed=number, dataset=dataset
    )
    try:
        yield
    finally:
        _worker._worker_info = former


def some(iterable: object, most: int) -> list:
    """The first items, at most so many: an iteration need not end."""
    return list(islice(iter(iterable), most))


class GlobalGenerator:
    """Notes torch's global generator, to say later whether anybody drew from it or seeded it."""

    def __init__(self) -> None:
        torch.rand(3)  # now it is in a state that no seed sets
        self._before = torch.get_rng_state()

    def state(self) -> str:
        """What happened to it, in a word."""
        return "untouched" if torch.equal(self._before, torch.get_rng_state()) else "changed"
