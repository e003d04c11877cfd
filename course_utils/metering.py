"""Meters for week 11: what autograd keeps, and memory in use after every operation of forward and backward."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept_bytes(function: Callable[[], Any]) -> tuple[Any, int]:
    """What function() gives, and the bytes of all storages that autograd saves meanwhile, parameters included."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(storage.nbytes() for storage in storages.values())


def kept_by_layer(module: nn.Module, function: Callable[[], Any]) -> tuple[dict[str, int], int]:
    """Which layers autograd saves for while function() runs: bytes by the last part of a leaf's name, and storages.

    A storage is charged to the layer that saves it first, "" where none is running; parameters and buffers are left
    out.
    """
    alive = {tensor.untyped_storage().data_ptr(): None for tensor in (*module.parameters(), *module.buffers())}
    bill: Counter[str] = Counter()
    running, handles, own = [""], [], len(alive)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive:
            alive[storage.data_ptr()] = storage  # held, so that its address is not given to another
            bill[running[-1]] += storage.nbytes()
        return tensor

    for name, layer in module.named_modules():
        if not list(layer.children()):
            label = name.rpartition(".")[2]
            handles.append(layer.register_forward_pre_hook(lambda *_, label=label: running.append(label)))
            handles.append(layer.register_forward_hook(lambda *_: running.pop() and None, always_call=True))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function()
    finally:
        for handle in handles:
            handle.remove()
    return dict(bill), len(alive) - own


class MemoryMeter(TorchDispatchMode):
    """Counts the bytes of the storages that are created inside the `with` block and are still alive.

    `now`: bytes alive at this moment, also after the block. `history`: what `now` was at the start and after each
    operation, those of the backward pass included. `peak`: the largest of these. Storages that were there before do
    not count, so weights, and gradients that exist already, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.history = [0]
        self._alive: set[int] = set()

    @property
    def peak(self) -> int:
        """The most bytes that were alive after an operation."""
        return max(self.history)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in before and storage._cdata not in self._alive:
                self._add(storage)
        self.history.append(self.now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        self._alive.add(address)
        self.now += size
        weakref.finalize(storage, self._remove, address, size).atexit = False

    def _remove(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
