"""How long a data-parallel step takes: a small simulator, and what it takes for granted.

Taken for granted:
- Every rank computes equally long, and the batch per rank stays the same (weak scaling).
- All links are alike: `latency` seconds for a message, then `bandwidth` bytes a second, both ways at once, and nobody
  else uses them. A real cluster is fast inside a machine and slower between machines; put in the slowest link.
- Gradients become ready evenly during the backward pass, and each bucket is sent as soon as it is full, one after the
  other. Sending takes no time away from computing.
- The algorithm is the ring, or with `algorithm="tree"` a tree whose messages overlap perfectly.
- Reading data, stragglers, checkpoints and failures cost nothing. All of them cost something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MEGABYTE = 10**6


@dataclass(frozen=True)
class Link:
    """A connection between neighbors: seconds per message, bytes per second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Step:
    """One training step, in seconds from its beginning: computation, and the all-reduce of each bucket."""

    forward: float
    backward: float
    transfers: tuple[tuple[float, float], ...]  # start and end of each bucket's all-reduce

    @property
    def compute(self) -> float:
        return self.forward + self.backward

    @property
    def seconds(self) -> float:
        """The whole step: until the computation and the last transfer are over."""
        return max([self.compute, *(end for _, end in self.transfers)])

    @property
    def communication(self) -> float:
        return sum(end - start for start, end in self.transfers)

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def all_reduce_seconds(size: float, ranks: int, link: Link, algorithm: str = "ring") -> float:
    """How long the all-reduce of `size` bytes takes. Raises ValueError for an unknown algorithm."""
    if ranks < 2:
        return 0.0
    if algorithm == "ring":
        return 2 * (ranks - 1) * (link.latency + size / ranks / link.bandwidth)
    if algorithm == "tree":
        return 2 * (math.ceil(math.log2(ranks)) * link.latency + size / link.bandwidth)
    raise ValueError(f"The algorithm is ring or tree, not {algorithm!r}.")


def simulate_step(
    forward: float,
    backward: float,
    gradient_bytes: float,
    ranks: int,
    link: Link,
    bucket_bytes: float = 25 * MEGABYTE,
    algorithm: str = "ring",
) -> Step:
    """Play one step through: a bucket is sent when it is full and the bucket before it has arrived."""
    if ranks < 2:
        return Step(forward, backward, ())
    transfers: list[tuple[float, float]] = []
    count = max(1, math.ceil(gradient_bytes / bucket_bytes))
    sent = 0.0
    for _ in range(count):
        size = min(bucket_bytes, gradient_bytes - sent)
        sent += size
        full = forward + backward * sent / gradient_bytes
        start = max(full, transfers[-1][1] if transfers else 0.0)
        transfers.append((start, start + all_reduce_seconds(size, ranks, link, algorithm)))
    return Step(forward, backward, tuple(transfers))


def fit_link(messages: Iterable[Sequence[float]], ranks: int = 2) -> Link:
    """Latency and bandwidth of a ring from measured all-reduces, pairs (bytes, seconds).

    Least squares of the relative errors, so that a message of 4 bytes counts as much as one of 16 MB. Raises ValueError
    when the times do not grow with the bytes.
    """
    sizes, seconds = np.array(list(messages), dtype=float).T
    steps = 2 * (ranks - 1)
    parts = np.stack([np.full_like(sizes, steps), steps * sizes / ranks], axis=1) / seconds[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(parts, np.ones_like(seconds), rcond=None)
    if per_byte <= 0:
        raise ValueError("The times do not grow with the bytes; no bandwidth follows from them.")
    return Link(max(0.0, float(latency)), float(1 / per_byte))
