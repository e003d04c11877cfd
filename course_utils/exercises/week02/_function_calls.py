"""What every answer that is an autograd Function is asked about its memory of forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from course_utils.cases import attempt, gradients


def two_calls(
    apply: Callable[..., Any], first: torch.Tensor, second: torch.Tensor, upstream: torch.Tensor
) -> dict[str, Any]:
    """Gradients of two calls that both ran before either backward; and again after an edit.

    The edit moves the input of the first call in place, by 12. After it an error is as good as the
    right gradient: only a wrong one is a mistake.
    """
    first.requires_grad_()
    second.requires_grad_()
    x = first * 1
    early, late = apply(x), apply(second)
    found = gradients(early, first, upstream)
    seen = {"first call": found, "second call": gradients(late, second, upstream)}
    x.add_(12)
    again = attempt(gradients, early, first, upstream)
    fine = isinstance(again, Exception) or attempt(lambda: torch.equal(again[0], found[0])) is True
    return seen | {"first call, after its x was edited": "right or an error" if fine else again}
