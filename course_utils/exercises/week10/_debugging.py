"""What this week's cases share: modules with an order of their own, and a look at hooks."""

from __future__ import annotations

import torch
from torch import nn


def hooks_on(model: nn.Module) -> dict[str, int]:
    """How many hooks of any kind are on each module."""
    return {
        f"hooks on {name or 'the model'}": sum(
            len(value) for key, value in vars(module).items() if key.endswith("_hooks")
        )
        for name, module in model.named_modules()
    }


class Backwards(nn.Module):
    """Registers its parts in one order and calls them in the other."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in reversed(list(self.children())):
            x = part(x)
        return x


class Spreads(nn.Module):
    """Adds to each row the row before it, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.factor * x.roll(1, dims=0)
