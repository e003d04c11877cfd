"""Figures of week 11: drawn from real recomputations, captures and exports; nothing sticks out."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from course_utils import plots
from course_utils.plots.compiling import exported_operations, lines_of


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def assert_inside(figure):
    """No text sticks out of the picture."""
    figure.figure.draw_without_rendering()
    width, height = figure.figure.get_size_inches() * figure.figure.dpi
    for axis in figure.figure.axes:
        for text in axis.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width, text.get_text()
            assert box.y0 >= 0 and box.y1 <= height, text.get_text()


@pytest.fixture
def captured():
    """A function that calls a function compiled from nothing, and the graphs it gave; the cache is empty afterwards."""

    def capture(function, *inputs):
        graphs = []

        def spy(graph, example_inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(function, backend=spy)
        for x in inputs:
            compiled(x)
        return graphs

    yield capture
    torch._dynamo.reset()


# ---- recomputation -------------------------------------------------------------------


def test_memory_timelines_name_the_peaks():
    figure = plots.memory_timelines({"plain": ([0, 1e6, 2e6, 5e5], 3), "short": ([0, 1e6], 2)})
    assert "peak 2.00 MB" in texts(figure)
    assert "plain: 2.00 MB after the forward pass, peak 2.00 MB, 3 operations." in figure.alt
    assert_inside(figure)
    with pytest.raises(ValueError, match="at least one run"):
        plots.memory_timelines({})


def test_one_memory_timeline_is_drawn_too():
    assert len(plots.memory_timelines({"alone": ([0, 5], 2)}).figure.axes) == 1


def test_recompute_lanes_mark_what_should_not_have_run():
    figure = plots.recompute_lanes({"right": ([0, 1], [1, 0]), "wrong": ([0, 1], [1, 1]), "none": ([0, 1], [])})
    assert texts(figure).count("1 ✗") == 1
    assert "nothing" in texts(figure)
    assert "wrong: forward 0, 1; run again in backward: 1, 1." in figure.alt
    assert_inside(figure)


def test_long_lanes_fit():
    assert_inside(plots.recompute_lanes({"a name of some length": (list(range(12)), list(range(12)))}))


# ---- capture -------------------------------------------------------------------------


def talks(x):
    y = x * 2
    print("y")
    return y + 1


def branches(x):
    if x.sum() > 0:
        return x * 2
    return x - 1


def test_captured_lines_follow_a_function_over_its_breaks(captured, capsys):
    graphs = captured(talks, torch.ones(3))
    first = talks.__code__.co_firstlineno
    assert [lines_of(graph, "talks") for graph in graphs] == [{first + 1}, {first + 3}]
    figure = plots.captured_lines(talks, graphs)
    assert "line 2, y = x * 2: graph 1" in figure.alt
    assert 'line 3, print("y"): Python' in figure.alt
    assert "line 4, return y + 1: graph 2" in figure.alt
    assert_inside(figure)


def test_a_branch_gives_three_regions(captured):
    figure = plots.captured_lines(branches, captured(branches, torch.ones(3), -torch.ones(3)))
    assert [text for text in texts(figure) if text.startswith("graph")] == ["graph 1", "graph 2", "graph 3"]


def test_a_line_in_two_graphs_says_so(captured):
    graphs = captured(branches, torch.ones(3), torch.ones(3, dtype=torch.float64))
    assert "graph 1 and 3" in texts(plots.captured_lines(branches, graphs))


def test_compilations_count():
    figure = plots.compilations({"lengths": [("5", 1), ("7", 1), ("9", 0)], "breaks": [("1", 2)]})
    assert "2 graphs" in texts(figure) and "1 +2" in texts(figure)
    assert "lengths: 5 brings 1, 7 brings 1, 9 reuses; 2 graphs in all." in figure.alt
    assert_inside(figure)


# ---- comparison and export -----------------------------------------------------------


def test_differences_sort_elements_into_three_kinds():
    reference = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    candidate = reference + torch.tensor([0, 1e-5, 1e-3, 1e-2], dtype=torch.float64)
    figure = plots.differences(reference, {"c": candidate, "same": reference}, rtol=1e-4, atol=0)
    assert "c: 25% equal, 25% within tolerance, 50% outside." in figure.alt
    assert "same: 100% equal, 0% within tolerance, 0% outside." in figure.alt
    assert_inside(figure)


def test_exported_program_shows_operations_with_their_sizes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    program = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=({0: Dim("batch")},))
    rows = exported_operations(program)
    assert [(name, owner) for name, owner, _ in rows] == [("aten.linear", "0"), ("aten.relu", "1")]
    figure = plots.exported_program(model, program)
    assert "aten.linear gives (batch, 3), from 0" in figure.alt
    assert_inside(figure)


@pytest.mark.parametrize("draw", [plots.recompute_lanes, plots.compilations])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match="at least one"):
        draw({})
