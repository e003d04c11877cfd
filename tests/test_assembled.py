"""Live definitions as the text of a program: what they use comes along, and what cannot come along is named."""

import linecache
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from course_utils.assembled import assemble
from course_utils.errors import CourseError
from course_utils.exercise import load_exercise

SIZE, RATES, device, dtype = 3, (0.1, math.inf), torch.device("cpu"), torch.float64
FINE = {"lr": 0.1, "steps": 4}
held = torch.ones(2)


def helper(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x)


class Net(nn.Module):
    """A class of the notebook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE, device=device, dtype=dtype)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return helper(self.layer(x))


class Deeper(Net):
    """Its base has to stand before it."""

    def __init__(self) -> None:
        super().__init__()
        self.more = lr_scheduler.StepLR


@torch.no_grad()
def build(path: Path = Path("x")) -> nn.Module:
    held = FINE["lr"]  # a name of its own, not the tensor above
    return Deeper() if held and path.name else math.nan


def uses_a_tensor() -> torch.Tensor:
    return held + 1


def names_of(program: str) -> dict:
    names: dict = {"__name__": "program"}
    exec(compile(program, "program", "exec"), names)
    return names


def test_what_a_definition_uses_comes_along_in_an_order_that_works():
    program = assemble({"build": build})
    made = names_of(program)["build"]()
    assert type(made).__name__ == "Deeper" and made.layer.weight.dtype == torch.float64
    assert made(torch.ones(1, 3, dtype=dtype)).shape == (1, 3)
    lines = program.split("\n")
    assert {"import torch", "import torch.nn as nn", "from pathlib import Path", "SIZE = 3"} <= set(lines)
    assert "device = torch.device('cpu')" in lines and "dtype = torch.float64" in lines
    assert (
        lines.index("class Net(nn.Module):") < lines.index("class Deeper(Net):") < lines.index("@torch.no_grad()", 30)
    )
    assert "held =" not in program.replace("held = FINE", "")


def test_the_courses_own_versions_lose_their_decorator_and_work():
    names = ("split_digits", "CheckpointFile", "survivable_fit")
    program = assemble({name: load_exercise(name).reference for name in names})
    assert "@exercise" not in program
    assert set(names) <= names_of(program).keys()


def test_another_name_is_kept_beside_its_own():
    program = assemble({"make": build})
    assert "def build(" in program and program.rstrip().endswith("make = build")


def test_a_tensor_from_another_cell_is_refused_by_name():
    with pytest.raises(CourseError, match="uses_a_tensor uses held, a Tensor from another place"):
        assemble({"uses_a_tensor": uses_a_tensor})


def test_a_function_within_a_function_cannot_come_along():
    inside = 3

    def nested():
        return inside

    with pytest.raises(CourseError, match="nested uses inside from the function around it"):
        assemble({"nested": nested})


def test_a_function_without_text_is_refused():
    names: dict = {}
    exec("def ghost():\n    return 1", names)
    with pytest.raises(CourseError, match="text of ghost is not to be had"):
        assemble({"ghost": names["ghost"]})
    with pytest.raises(CourseError, match="no text"):
        assemble({"len": len})


def test_definitions_of_a_notebook_are_found_in_its_cells():
    """A cell's text is in linecache under the name that its code was compiled with."""
    cell = "LIMIT = 2\n\n\nclass Kept:\n    def get(self):\n        return LIMIT\n"
    linecache.cache["<cell 7>"] = (len(cell), None, cell.splitlines(keepends=True), "<cell 7>")
    names = {"__name__": "__main__"}
    exec(compile(cell, "<cell 7>", "exec"), names)
    program = assemble({"Kept": names["Kept"]})
    assert names_of(program)["Kept"]().get() == 2
