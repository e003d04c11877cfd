"""Figures of week 02: the drawn graph is torch's graph, and the words hold the true numbers."""

import itertools

import pytest
import torch

from course_utils import plots
from course_utils.plots import autograd
from course_utils.plots.autograd import Box, Link, Panel, lay_out, layers_from_result, number, short


def leaf(value):
    return torch.tensor(value, requires_grad=True)


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def network():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=generator).requires_grad_()
    b = torch.zeros(4, requires_grad=True)
    data = torch.randn(3, generator=generator)
    return torch.mean(torch.relu(w @ data + b) ** 2), {"W": w, "b": b}


def layers_network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return model(torch.ones(5, 3)).sum(), dict(model.named_parameters())


def quadratic():
    x = leaf(2.0)
    return x**2 + 3 * x + 1, {"x": x}


def diamond():
    x = leaf(2.0)
    return x * x + x, {"x": x}


GRAPHS = [quadratic, diamond, network, layers_network]


# ---- walking ------------------------------------------------------------------------


def test_walk_finds_the_tree_of_the_polynomial():
    y, _ = quadratic()
    recorded = autograd.walk(y)
    names = ["None" if node is None else type(node).__name__ for node in recorded.nodes]
    assert names[0] == "AddBackward0"
    assert sorted(names) == sorted(
        ["AddBackward0"] * 2 + ["PowBackward0", "MulBackward0", "AccumulateGrad"] + ["None"] * 2
    )
    edges = {(names[source], names[target], slot) for source, target, slot in recorded.edges}
    assert edges == {
        ("AddBackward0", "AddBackward0", 0),
        ("None", "AddBackward0", 1),
        ("PowBackward0", "AddBackward0", 0),
        ("MulBackward0", "AddBackward0", 1),
        ("AccumulateGrad", "PowBackward0", 0),
        ("AccumulateGrad", "MulBackward0", 0),
        ("None", "MulBackward0", 1),
    }


def test_walk_lists_a_node_that_is_reached_three_times_once_with_three_edges():
    y, _ = diamond()
    recorded = autograd.walk(y)
    assert len(recorded.nodes) == 3
    leaves = [i for i, node in enumerate(recorded.nodes) if hasattr(node, "variable")]
    assert len(leaves) == 1
    assert sum(source == leaves[0] for source, _, _ in recorded.edges) == 3


def test_walk_reads_a_deep_graph_without_recursion():
    y = leaf(1.0)
    for _ in range(3000):
        y = -y
    assert len(autograd.walk(y).nodes) == 3001


@pytest.mark.parametrize("tensor", [torch.ones(2), leaf(1.0)])
def test_a_tensor_without_history_is_refused_in_plain_words(tensor):
    with pytest.raises(ValueError, match="has no grad_fn"):
        plots.autograd_graph(tensor)


def test_a_graph_too_large_to_read_is_refused_with_its_size():
    y = leaf(1.0)
    for _ in range(41):
        y = -y
    with pytest.raises(ValueError, match="42 nodes"):
        plots.autograd_graph(y)


# ---- the drawn graph ----------------------------------------------------------------


def test_graph_shows_node_names_leaf_name_and_shape():
    y, names = network()
    drawn = texts(plots.autograd_graph(y, names))
    for name in ("MeanBackward0", "PowBackward0", "ReluBackward0", "AddBackward0", "MvBackward0"):
        assert name in drawn
    assert "W, shape (4, 3)" in drawn
    assert "b, shape (4,)" in drawn
    assert drawn.count("AccumulateGrad") == 2
    assert drawn.count("constant") == 1


def test_graph_alt_text_counts_boxes_and_names_inputs():
    y, names = quadratic()
    alt = plots.autograd_graph(y, names).alt
    assert "result of shape (): 4 operations, 1 leaf, 2 constants" in alt
    assert "PowBackward0 has inputs from leaf x" in alt
    assert "AddBackward0 (result) has inputs from AddBackward0, a constant" in alt


def test_alt_text_numbers_operations_of_the_same_name():
    x = leaf(1.0)
    alt = plots.autograd_graph(torch.exp(torch.exp(torch.exp(x)))).alt
    assert "ExpBackward0 #1 has inputs from ExpBackward0 #2" in alt


def test_values_are_written_in_the_node_that_made_them():
    a = leaf(3.0)
    s = 2 * a + 1
    y = torch.log(s)
    figure = plots.autograd_graph(y, {"a": a}, {"a": a, "s": s, "y": y})
    assert {"a = 3", "s = 7", "y = 1.946"} <= set(texts(figure))
    assert "LogBackward0 (y = 1.946) has inputs from AddBackward0 (s = 7)" in figure.alt


def test_a_constant_gets_no_gradient_arrow():
    """Of the polynomial's seven links two come from constants; five carry a gradient back."""
    y, _ = quadratic()
    axis = plots.autograd_graph(y).figure.axes[0]
    lines = [c for c in axis.collections if type(c).__name__ == "LineCollection"]
    assert sorted(len(c.get_segments()) for c in lines) == [1, 1, 5, 7]  # 1, 1: the key


def test_forward_and_backward_heads_point_opposite_ways():
    points = [(0.0, 0.0), (1.0, 0.0)]
    forward, backward = (autograd._head(points, 0.0, end) for end in (1, 0))
    assert forward[0] == (1.0, 0.0) and forward[1][0] < 1.0
    assert backward[0] == (0.0, 0.0) and backward[1][0] > 0.0


def test_a_long_node_name_breaks_before_backward_and_stays_whole_in_alt():
    logits = torch.zeros(3, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(3))
    figure = plots.autograd_graph(loss)
    assert {"BinaryCrossEntropyWithLogits", "Backward0"} <= set(texts(figure))
    assert "BinaryCrossEntropyWithLogitsBackward0 (result)" in figure.alt


def test_custom_function_appears_under_its_own_name():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    assert "DoubleBackward" in texts(plots.autograd_graph(Double.apply(leaf(1.0))))


@pytest.mark.parametrize("make", GRAPHS)
def test_drawing_changes_neither_gradients_nor_the_graph(make):
    y, names = make()
    plots.autograd_graph(y, names)
    assert all(tensor.grad is None for tensor in names.values())
    y.backward()
    assert all(tensor.grad is not None for tensor in names.values())


# ---- layout -------------------------------------------------------------------------


def panel_of(tensor):
    recorded = autograd.walk(tensor)
    boxes = [Box(("AddBackward0", "y = 12"), "constant" if n is None else "operation") for n in recorded.nodes]
    return Panel(tuple(boxes), tuple(Link(s, t) for s, t, _ in recorded.edges))


def test_layer_is_the_longest_way_to_the_result():
    links = [Link(1, 0), Link(2, 1), Link(2, 0), Link(3, 0)]
    assert layers_from_result(4, links) == [0, 1, 2, 1]


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize("width", [7.5, 3.0])
def test_no_two_boxes_overlap_and_all_lie_inside(make, width):
    layout = lay_out(panel_of(make()[0]), width)
    wide, tall = layout.box
    for (x0, y0), (x1, y1) in itertools.combinations(layout.centers, 2):
        assert abs(x0 - x1) >= wide - 1e-9 or abs(y0 - y1) >= tall - 1e-9
    for x, y in layout.centers:
        assert wide / 2 - 1e-9 <= x <= layout.size[0] - wide / 2 + 1e-9
        assert tall / 2 - 1e-9 <= y <= layout.size[1] - tall / 2 + 1e-9


@pytest.mark.parametrize("make", GRAPHS)
def test_every_link_ends_on_its_boxes_and_flows_one_way(make):
    panel = panel_of(make()[0])
    layout = lay_out(panel)
    length, room = layout.box if layout.sideways else layout.box[::-1]
    for link, route in zip(panel.links, layout.routes, strict=True):
        for box, (along, across), side in (
            (link.source, route[0], 1),
            (link.target, route[-1], -1),
        ):
            center = layout.centers[box] if layout.sideways else layout.centers[box][::-1]
            assert along == pytest.approx(center[0] + side * length / 2)
            assert abs(across - center[1]) < room / 2
        assert all(a[0] <= b[0] for a, b in itertools.pairwise(route))


def test_a_graph_too_wide_for_the_page_flows_down():
    y, _ = quadratic()
    assert lay_out(panel_of(y), 7.5).sideways
    assert not lay_out(panel_of(y), 3.0).sideways


def test_links_between_the_same_boxes_part():
    """x · x: two edges between the same two nodes must be seen as two."""
    x = leaf(2.0)
    layout = lay_out(panel_of(x * x))
    first, second = layout.routes
    assert abs(first[0][1] - second[0][1]) >= 0.2
    assert abs(first[-1][1] - second[-1][1]) >= 0.2


def test_spread_moves_the_light_one_and_keeps_the_gap():
    heavy, light = autograd._spread([1.0, 1.0], [2.0], [1.0, 0.01])
    assert light - heavy == pytest.approx(2.0)
    assert heavy == pytest.approx(1.0, abs=0.03)


# ---- numbers as text ----------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [(-1.5, "−1.5"), (-0.0, "0"), (1 / 3, "0.3333"), (float("-inf"), "−inf")])
def test_number_has_four_digits_and_a_real_minus(value, text):
    assert number(value) == text


def test_short_shows_few_numbers_and_the_shape_of_many():
    assert short(torch.tensor([1.0, -2.0])) == "[1, −2]"
    assert short(torch.zeros(5)) == "shape (5,)"
    assert short(torch.zeros(2, 2)) == "shape (2, 2)"
    assert short(None) == "None"


# ---- the other figures --------------------------------------------------------------


def test_backward_node_shows_and_says_all_three_parts():
    figure = plots.backward_node("PowBackward0", "dL/dy = 1", {"x": "2"}, {"dL/dx": "2 · 2 · 1 = 4"})
    assert {"PowBackward0", "dL/dy = 1", "x: 2", "dL/dx: 2 · 2 · 1 = 4"} <= set(texts(figure))
    for part in ("dL/dy = 1", "x: 2", "dL/dx: 2 · 2 · 1 = 4"):
        assert part in figure.alt


def test_gradient_bars_have_the_heights_of_the_data():
    figure = plots.gradient_bars({"no zeroing": [2.0, 4.0, 6.0], "zeroed": [2.0, 2.0, torch.tensor(2.0)]})
    heights = [patch.get_height() for patch in figure.figure.axes[0].patches]
    assert heights == [2.0, 4.0, 6.0, 2.0, 2.0, 2.0]
    assert "no zeroing: 2, 4, 6; zeroed: 2, 2, 2" in figure.alt


def test_gradient_bars_are_told_apart_without_color():
    figure = plots.gradient_bars({"a": [1.0], "b": [1.0]})
    hatches = [patch.get_hatch() for patch in figure.figure.axes[0].patches]
    assert hatches[0] != hatches[1]


def test_gradient_bars_show_none_as_none_not_as_zero():
    figure = plots.gradient_bars({"zeroed": [None, 0.0, -1.5]})
    assert {"None", "0", "−1.5"} <= set(texts(figure))
    assert "zeroed: None, 0, −1.5" in figure.alt


def test_gradient_bars_without_series_are_refused():
    with pytest.raises(ValueError, match="at least one series"):
        plots.gradient_bars({})


def test_cuts_hold_what_torch_gives_and_hand_derived_values():
    """y = w2·w1·x at 5, 3, 2: dy/dw1 = w2·x = 10, dy/dw2 = w1·x = 6."""
    detach, no_grad, inference, frozen = autograd.cut_outcomes()
    assert (detach.w1_grad, detach.w2_grad, detach.h_recorded) == (None, 6.0, True)
    assert (no_grad.w1_grad, no_grad.w2_grad, no_grad.h_recorded) == (None, 6.0, False)
    assert (inference.w1_grad, inference.w2_grad, inference.h_recorded) == (None, None, False)
    assert "Inference tensors cannot be saved for backward" in inference.error
    assert (frozen.w1_grad, frozen.w2_grad, frozen.h_recorded) == (10.0, None, True)


def test_cuts_figure_marks_one_cut_in_each_panel():
    figure = plots.gradient_cuts()
    assert texts(figure).count(autograd.SCISSORS) == 4
    assert "y = w2 * h.detach(): w1.grad None, w2.grad 6" in figure.alt
    assert "w2.requires_grad_(False): w1.grad 10, w2.grad None" in figure.alt


def test_versions_mark_the_mismatch_that_torch_raises_for():
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    saved = y._version
    rows = [("y = x.exp()", y._version, saved)]
    y += 1
    rows.append(("y += 1", y._version, saved))
    figure = plots.versions(rows)
    assert texts(figure).count("≠") == 1
    assert "after y = x.exp(): version 0, saved 0, same: backward may run" in figure.alt
    assert "after y += 1: version 1, saved 0, differs: backward raises" in figure.alt
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_versions_without_anything_saved_compare_nothing():
    figure = plots.versions([("x = torch.ones(2)", 0, None)])
    assert "saved none, nothing saved" in figure.alt
    assert not {"≠", "="} & set(texts(figure))


def test_versions_without_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        plots.versions([])


FIGURES = [
    lambda: plots.autograd_graph(quadratic()[0]),
    lambda: plots.autograd_graph(network()[0]),
    lambda: plots.backward_node("MulBackward0", "g", {"a": "2", "b": "3"}, {"to a": "3g", "to b": "2g"}),
    lambda: plots.gradient_bars({"a": [1.0, 2.0]}),
    plots.gradient_cuts,
    lambda: plots.versions([("y = x.exp()", 0, 0), ("y += 1", 1, 0)]),
]


@pytest.mark.parametrize("make", FIGURES)
def test_every_text_lies_inside_the_figure_and_is_readable(make):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = make().figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    for axis in figure.axes:
        for text in axis.texts:
            extent = text.get_window_extent()
            assert text.get_fontsize() >= 9
            assert extent.x0 >= 0 and extent.y0 >= 0
            assert extent.x1 <= width and extent.y1 <= height


@pytest.mark.parametrize("make", FIGURES[:2])
def test_every_text_of_a_graph_fits_its_box(make):
    """No label is wider than the boxes, which all have one size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = make().figure
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    boxes = [patch.get_window_extent() for patch in axis.patches]
    inside = [text.get_window_extent() for text in axis.texts if text.get_zorder() == 4]
    assert inside
    for text in inside:
        assert any(box.x0 <= text.x0 and text.x1 <= box.x1 for box in boxes)


def test_the_same_data_gives_the_same_picture():
    assert plots.gradient_cuts().png() == plots.gradient_cuts().png()
