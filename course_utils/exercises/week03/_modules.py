"""What this week's cases share: how to read a module's state and to give it known values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def named_part(module: Any, path: str) -> Any:
    """What stands at a dotted path such as "layers.0.weight", in lists and plain attributes too."""
    for name in path.split("."):
        if isinstance(module, Mapping):
            module = module[name if name in module else int(name)]
        elif name.isdigit() and not isinstance(module, nn.Module):
            module = module[int(name)]
        else:
            module = getattr(module, name)
    return module


def place(module: Any, values: Mapping[str, torch.Tensor]) -> Any:
    """Copy the values into the tensors at their paths, registered or not, and return the module.

    Unlike load_state_dict it also reaches what a module failed to register, so that a case about
    the forward pass shows mistakes of the forward pass.
    """
    with torch.no_grad():
        for path, value in values.items():
            named_part(module, path).copy_(value)
    return module


def registered(module: nn.Module) -> dict[str, Any]:
    """What a module has registered: keys and shapes of the state dict, trainable and not."""
    return {
        "state_dict shapes": {name: tuple(v.shape) for name, v in module.state_dict().items()},
        "requires_grad of parameters": {n: p.requires_grad for n, p in module.named_parameters()},
        "requires_grad of buffers": {n: b.requires_grad for n, b in module.named_buffers()},
    }


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every entry of the state dict."""
    return {name: value.dtype for name, value in module.state_dict().items()}
