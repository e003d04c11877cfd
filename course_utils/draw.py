"""Fresh seeded inputs for a case."""

from __future__ import annotations

import random
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Draw:
    """Inputs for one run of one case: the same for the answer and the reference, new for each seed.

    Tensors are drawn on the CPU and moved to `device`, so that both devices see the same numbers.
    """

    def __init__(self, seed: int, label: str = "", device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._seed = zlib.crc32(f"{seed}/{label}".encode())
        self._generator = torch.Generator().manual_seed(self._seed)
        self._random: random.Random | None = None
        self._folders: list[tempfile.TemporaryDirectory[str]] = []

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> torch.Tensor:
        """Standard normal numbers of the given shape; a leaf when `requires_grad`."""
        values = torch.randn(shape, generator=self._generator, dtype=dtype, device="cpu")
        values = values.to(self.device)
        return values.requires_grad_() if requires_grad else values

    def uniform(
        self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Numbers between `low` and `high`."""
        values = torch.rand(shape, generator=self._generator, dtype=dtype, device="cpu")
        return (values * (high - low) + low).to(self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Whole numbers from `low` to `high`, both included."""
        values = torch.randint(low, high + 1, shape, generator=self._generator, device="cpu")
        return values.to(self.device, dtype)

    def tensor(self, values: object, dtype: torch.dtype | None = None, requires_grad: bool = False) -> torch.Tensor:
        """`torch.tensor(values)` on the device under test."""
        return torch.tensor(values, dtype=dtype, device=self.device, requires_grad=requires_grad)

    def permutation(self, count: int) -> torch.Tensor:
        """The numbers 0..count-1 in random order."""
        return torch.randperm(count, generator=self._generator, device="cpu").to(self.device)

    def number(self, low: float, high: float) -> float:
        """One Python float between `low` and `high`."""
        return self.python_random.uniform(low, high)

    def whole(self, low: int, high: int) -> int:
        """One Python int from `low` to `high`, both included."""
        return self.python_random.randint(low, high)

    def sizes(self, count: int, low: int = 2, high: int = 7) -> tuple[int, ...]:
        """Sizes that all differ, so that mixed-up dimensions show."""
        return tuple(self.python_random.sample(range(low, high + 1), count))

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return self.python_random.choice(items)

    def folder(self) -> Path:
        """A fresh empty folder, removed after the case."""
        self._folders.append(tempfile.TemporaryDirectory(prefix="course-"))
        return Path(self._folders[-1].name)

    @property
    def python_random(self) -> random.Random:
        """A `random.Random` of this draw's own seed."""
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random

    def close(self) -> None:
        """Remove the folders that were handed out."""
        for folder in self._folders:
            folder.cleanup()
