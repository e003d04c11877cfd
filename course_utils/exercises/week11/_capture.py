"""What this week's cases share: compilations that start from nothing and leave nothing behind."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo import guards
from torch.fx import GraphModule


@contextmanager
def fresh_compilations() -> Iterator[None]:
    """Compile from an empty cache, and empty it afterwards.

    Dynamo measures each guard once, for its logs, after flushing the processor's cache, and writes
    a trace where anybody listens, as pytest does. That is most of the time of a small compilation,
    and switched off here; so are collections of garbage, which all its small objects set off. An
    answer that generates code nevertheless starts no processes for it.
    """
    torch._dynamo.reset()
    collects = gc.isenabled()
    gc.disable()
    try:
        with (
            mock.patch.object(guards, "profile_guard_manager", lambda *_: 0.0, create=True),
            mock.patch.object(logging.getLogger("torch.__trace"), "handlers", []),
            torch._inductor.config.patch(compile_threads=1),
        ):
            yield
    finally:
        torch._dynamo.reset()
        if collects:
            gc.enable()


def plain(implementation: Any) -> Callable[..., Any]:
    """The answer's own function; Dynamo would follow calls into whatever is wrapped around it."""
    return getattr(implementation, "_implementation", implementation)


class CountingBackend:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return gm.forward


def _warm_up() -> None:
    """Compile once, so that no student's check pays for what the first compilation loads."""
    with fresh_compilations():
        torch.compile(lambda x: x + 1, backend=CountingBackend())(torch.zeros(2))


_warm_up()
