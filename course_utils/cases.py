"""Small tools for writing cases: what to look at, and how to go on after an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function(*args, **kwargs)` returns, or the exception it raises, as something to observe."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def gradients(output: Any, inputs: torch.Tensor | Sequence[torch.Tensor], upstream: torch.Tensor | None = None) -> Any:
    """Gradients of `output` for `inputs` (None where an input was not used), or words when there is no graph.

    upstream: the incoming gradient, shaped like output; leave it out for a scalar. `.grad` stays untouched.
    """
    if not isinstance(output, torch.Tensor) or not output.requires_grad:
        return "no gradient: the result has no graph"
    if upstream is not None and upstream.shape != output.shape:
        return f"no gradient: the result has shape {tuple(output.shape)}, not {tuple(upstream.shape)}"
    wanted = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    return torch.autograd.grad(output, wanted, upstream, retain_graph=True, allow_unused=True)


def same_storage(a: Any, b: torch.Tensor) -> bool:
    """Whether two tensors are backed by the same, nonempty storage."""
    if not isinstance(a, torch.Tensor):
        return False
    address = a.untyped_storage().data_ptr()
    return address != 0 and address == b.untyped_storage().data_ptr()
