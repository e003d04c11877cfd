"""What this week's cases share: small models, batches, and how to look at what a loop left behind.

What `.grad` holds after a call is mostly free this week. The cases are therefore marked
`random=True`, and return what is worth comparing themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def regressor(draw, inputs, *, norm=False, dtype=torch.float32):
    """A small model from (B, inputs) to (B, 1), its weights drawn by the seed of the case."""
    if norm:
        model = nn.Sequential(nn.Linear(inputs, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    else:
        model = nn.Linear(inputs, 1)
    return model.to(draw.device, dtype)


def regression_batches(draw, inputs, sizes: Sequence[int], *, dtype=torch.float32, device=None):
    """One (x, y) pair for each size; the targets of each batch have a level of their own."""
    return [
        tuple(
            part.to(device or draw.device)
            for part in (
                draw.normal(size, inputs, dtype=dtype),
                draw.normal(size, 1, dtype=dtype) + 2 * number,
            )
        )
        for number, size in enumerate(sizes, start=1)
    ]


def give_gradients(draw, model, scale=5.0):
    """Leave something in every .grad, as an earlier call might have."""
    for parameter in model.parameters():
        parameter.grad = scale * draw.normal(*parameter.shape).to(parameter.dtype)


def in_two_groups(model):
    """Two parameter groups, as for an optimizer that decays the matrices and not the vectors."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1]},
    ]


def without_gradients(model):
    """The model, its .grad removed."""
    model.zero_grad()
    return model


def modes(model):
    """The training flag of every submodule by name."""
    named = model.named_modules()
    return {f"part {name}" if name else "the model": part.training for name, part in named}


def optimizer_state(optimizer):
    """What the optimizer remembers, by the number of the parameter."""
    states = optimizer.state_dict()["state"].items()
    return {f"parameter {number}": dict(state) for number, state in states}


class _Saved:
    """Stands for one saved tensor while a graph keeps it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # an output itself would make a reference cycle


@contextmanager
def saved_tensors() -> Iterator[weakref.WeakSet[_Saved]]:
    """Inside, what autograd saves for backward; its length is the number still alive."""
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        yield alive
