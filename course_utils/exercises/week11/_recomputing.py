"""What this week's cases on checkpointing share: how to watch a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from course_utils.cases import attempt


@contextmanager
def calls_of(blocks: Iterable[nn.Module]):
    """The positions of the blocks in the order in which they are called."""
    calls: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
        for place, block in enumerate(blocks)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def kept_elements(forward: Callable[[], Any], own: Iterable[torch.Tensor]) -> tuple[Any, int]:
    """What `forward()` gives, and how many elements autograd keeps beside those of `own`."""
    mine = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, int] = {}

    def pack(tensor):
        address = tensor.untyped_storage().data_ptr()
        if address not in mine:
            kept[address] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    return output, sum(kept.values())


def trained(
    forward: Callable[[], Any],
    blocks: Iterable[nn.Module],
    tensors: dict[str, torch.Tensor],
    upstream: torch.Tensor,
) -> dict[str, Any]:
    """A forward and a backward pass: gradients, output, calls of the blocks, what was kept.

    tensors: the parameters and whatever else may get a gradient, by name.
    """
    with calls_of(blocks) as calls:
        output, kept = kept_elements(forward, tensors.values())
        seen = {"output": output, "blocks called in forward": list(calls)}
        seen |= {"elements kept after forward": kept, "then random": torch.rand(2)}
        calls.clear()
        learns = isinstance(output, torch.Tensor) and output.requires_grad
        seen["backward"] = attempt(output.backward, upstream) if learns else "nothing to run"
        seen["blocks called in backward"] = list(calls)
    gradients = {f"gradient of {name}": tensor.grad for name, tensor in tensors.items()}
    return gradients | seen
