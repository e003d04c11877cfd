"""The graph walker: its numbers are torch's, and each state is a function of the controls alone."""

import time

import pytest
import torch

from course_utils.explorers import graph_walker
from course_utils.explorers.graph_walker import (
    EXPRESSIONS,
    panel,
    picture,
    render,
    still,
    take_walk,
    trace,
    words,
)

POLYNOMIAL, LOG, NETWORK, BRANCH = EXPRESSIONS
CUT_LABEL = {POLYNOMIAL: "x²", LOG: "2a + 1", NETWORK: "h", BRANCH: "h = x·x"}


def grads(state):
    return [press.grads for press in state.presses]


def edge_gradients(state):
    label = [node.label for node in state.nodes]
    return sorted(
        (label[edge.target], label[edge.source], edge.gradient) for edge in state.edges if edge.gradient is not None
    )


# ---- values and gradients -----------------------------------------------------------


def test_polynomial_gradient_on_every_edge_is_the_derivative_by_hand():
    """y = x² + 3x + 1 at 2: dy/dx² = 1 and 2x = 4; dy/d3x = 1 and 3."""
    state = take_walk(POLYNOMIAL, 2.0, presses=1)
    assert edge_gradients(state) == [
        ("3x", "x", 3.0),
        ("x²", "x", 4.0),
        ("x² + 3x", "3x", 1.0),
        ("x² + 3x", "x²", 1.0),
        ("y", "x² + 3x", 1.0),
    ]
    assert grads(state) == [{"x": None}, {"x": 7.0}]


def test_forward_values_are_in_the_nodes():
    state = take_walk(POLYNOMIAL, 2.0)
    values = {node.label: node.value for node in state.nodes if node.kind != "constant"}
    assert values == {"x": 2.0, "x²": 4.0, "3x": 6.0, "x² + 3x": 10.0, "y": 11.0}


def test_network_gradients_equal_autograd_grad():
    state = take_walk(NETWORK, 2.0, presses=1)
    x, w, b, v = (torch.tensor(value, requires_grad=True) for value in (2.0, (1.0, -1.0), (0.5, 0.5), (2.0, 3.0)))
    h = torch.relu(w * x + b)
    y = (v * h).sum()
    expected = torch.autograd.grad(y, (x, w, b, v, h))
    found = state.presses[1].grads
    assert found["x"] == expected[0].item()
    for name, gradient in zip(("w", "b", "v"), expected[1:4], strict=True):
        assert list(found[name]) == gradient.tolist()
    assert ("v·h", "h", tuple(expected[4].tolist())) in edge_gradients(state)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("value", [-1.5, 0.5, 2.0])
def test_gradients_on_the_edges_of_a_leaf_add_up_to_its_grad(expression, value):
    state = take_walk(expression, value, presses=1)
    for i, node in enumerate(state.nodes):
        if node.kind == "leaf":
            edges = [torch.tensor(e.gradient) for e in state.edges if e.source == i]
            total = torch.stack(edges).sum(0)
            assert torch.allclose(total, torch.tensor(state.presses[1].grads[node.label]))


def test_a_square_written_as_a_product_is_one_leaf_with_two_edges():
    state = take_walk(BRANCH, 2.0, presses=1)
    assert sum(node.kind == "leaf" for node in state.nodes) == 1
    assert [e for e in edge_gradients(state) if e[0] == "h = x·x"] == [("h = x·x", "x", 2.0)] * 2


def test_the_branch_changes_the_graph_with_the_input():
    def names(value):
        return {node.name for node in take_walk(BRANCH, value).nodes}

    assert "MulBackward0" in names(0.5) and "NegBackward0" not in names(0.5)
    assert "NegBackward0" in names(-0.5) and "MulBackward0" not in names(-0.5)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_every_node_of_every_expression_has_a_label(expression, value):
    state = take_walk(expression, value)
    assert all(node.label for node in state.nodes)
    assert state.nodes[0].label == "y"


# ---- presses ------------------------------------------------------------------------


def test_second_press_raises_and_leaves_the_gradient():
    state = take_walk(POLYNOMIAL, 2.0, presses=2)
    assert grads(state)[1:] == [{"x": 7.0}, {"x": 7.0}]
    assert state.presses[2].error == "Trying to backward through the graph a second time"
    assert state.passes == 1
    assert edge_gradients(state) == edge_gradients(take_walk(POLYNOMIAL, 2.0, presses=1))


def test_retained_graph_adds_the_gradient_each_press():
    state = take_walk(POLYNOMIAL, 2.0, retain=True, presses=3)
    assert grads(state)[1:] == [{"x": 7.0}, {"x": 14.0}, {"x": 21.0}]


def test_nothing_saved_means_a_second_press_is_fine_without_retaining():
    state = take_walk(BRANCH, -2.0, presses=3)
    assert grads(state)[1:] == [{"x": -2.0}, {"x": -4.0}, {"x": -6.0}]
    assert "No operation here saved anything" in words(state)


# ---- detaching ----------------------------------------------------------------------


def test_detaching_the_square_leaves_only_the_linear_term():
    state = take_walk(POLYNOMIAL, 2.0, detach=True, presses=1)
    assert grads(state)[1] == {"x": 3.0}
    assert ("x²", "x", 4.0) not in edge_gradients(state)
    assert state.nodes[0].value == 11.0


def test_detaching_the_only_path_leaves_nothing_to_differentiate():
    state = take_walk(LOG, 2.0, detach=True, presses=1)
    assert state.presses[1].error.startswith("element 0 of tensors does not require grad")
    assert [node.label for node in state.nodes if node.kind == "off"] == ["y"]
    assert "y has no grad_fn" in words(state)


def test_behind_the_cut_leaves_keep_grad_none():
    state = take_walk(NETWORK, 2.0, detach=True, presses=1)
    assert grads(state)[1] == {"x": None, "w": None, "b": None, "v": (2.5, 0.0)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_exactly_one_edge_is_marked_detached(expression):
    state = take_walk(expression, 2.0, detach=True, presses=1)
    links = panel(state).links
    assert [(link.kind, link.label) for link in links].count(("cut", "detached")) == 1
    assert f"The edge that leaves {CUT_LABEL[expression]} is gray" in picture(state).alt


# ---- saved bytes --------------------------------------------------------------------


def test_saved_bytes_are_held_until_backward_frees_them():
    """x² saves x, one float32."""
    state = take_walk(POLYNOMIAL, 2.0, presses=1)
    assert [(press.tensors, press.bytes) for press in state.presses] == [(1, 4), (0, 0)]


def test_retaining_keeps_the_saved_bytes():
    state = take_walk(POLYNOMIAL, 2.0, retain=True, presses=2)
    assert [press.bytes for press in state.presses] == [4, 4, 4]


def test_shared_memory_counts_once():
    """x·x saves x twice; log saves its input alone."""
    assert (take_walk(BRANCH, 2.0).presses[0].tensors, take_walk(BRANCH, 2.0).presses[0].bytes) == (
        2,
        4,
    )
    assert take_walk(LOG, 2.0).presses[0].bytes == 4


def test_network_saves_five_tensors_in_four_memories():
    """w, x (for w·x), relu's output h, and v, h (for v·h): 8 + 4 + 8 + 8 bytes."""
    press = take_walk(NETWORK, 2.0).presses[0]
    assert (press.tensors, press.bytes) == (5, 28)


def test_behind_a_cut_the_saved_tensors_stay():
    state = take_walk(POLYNOMIAL, 2.0, detach=True, presses=1)
    assert state.presses[1].bytes == 4
    assert "lies behind the cut" in words(state)


def test_a_trace_that_is_gone_holds_nothing():
    run = trace(EXPRESSIONS[NETWORK], 2.0, detach=False)
    kept = run.kept
    assert len(kept) == 5
    del run
    assert len(kept) == 0


# ---- words and picture --------------------------------------------------------------


def test_state_is_a_function_of_the_controls_alone():
    first = take_walk(NETWORK, 1.5, True, True, 2)
    assert take_walk(NETWORK, 1.5, True, True, 2) == first


def test_words_list_the_gradient_after_each_press():
    lines = words(take_walk(POLYNOMIAL, 2.0, retain=True, presses=3)).splitlines()
    rows = {line[:7]: line.split() for line in lines if line.startswith("press")}
    assert [rows[f"press {i}"][2] for i in (1, 2, 3)] == ["7", "14", "21"]


def test_words_show_the_error_and_its_cause():
    text = words(take_walk(POLYNOMIAL, 2.0, presses=2))
    assert "RuntimeError: Trying to backward through the graph a second time" in text
    assert "retain_graph keeps it" in text


def test_words_stay_short_after_many_presses():
    for retain in (True, False):
        text = words(take_walk(POLYNOMIAL, 2.0, retain=retain, presses=40))
        assert len(text.splitlines()) < 22
        assert "press 40" in text and "start" in text


def test_a_value_outside_the_domain_is_said():
    state = take_walk(LOG, -1.0, presses=1)
    assert "not positive" in words(state)
    assert state.presses[1].grads["a"] == -2.0


def test_picture_alt_holds_values_and_gradients():
    alt = picture(take_walk(POLYNOMIAL, 2.0, presses=1)).alt
    assert "x² + 3x = 10" in alt
    assert "4 from x² to x; 3 from 3x to x" in alt
    assert alt.endswith("x.grad 7.")


def test_picture_shows_gradients_on_the_arrows():
    figure = picture(take_walk(POLYNOMIAL, 2.0, presses=1)).figure
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert drawn.count("4") == 1 and drawn.count("1") == 4  # three gradients of 1 and the constant
    assert "grad 7" in drawn and "PowBackward0" in drawn


def test_still_holds_three_graphs_and_the_table():
    figure = still()
    drawn = "\n".join(text.get_text() for text in figure.figure.axes[0].texts)
    for text in (figure.alt, drawn):
        assert "before backward" in text
        assert "after 1 call of backward" in text
        assert "detached" in text
        assert "retain_graph=True: 7, 14, 21" in text
        assert "retain_graph=False: 7, then RuntimeError: Trying to backward" in text
        assert "x² detached, retain_graph=True: 3, 6, 9" in text


# ---- the widgets --------------------------------------------------------------------


def test_pressing_the_button_runs_backward_once_more():
    explorer = graph_walker()
    explorer.controls["retain_graph"].value = True
    for gradient in ("7", "14"):
        explorer.controls["backward"].click()
        assert f"x.grad {gradient}." in explorer.picture.value
    assert explorer.state()["backward"] == 2


@pytest.mark.parametrize(
    ("control", "value"),
    [("expression", LOG), ("value", -1.0), ("detach", True), ("retain_graph", True)],
)
def test_another_control_starts_again_before_the_first_press(control, value):
    explorer = graph_walker()
    explorer.controls["backward"].click()
    assert explorer.state()["backward"] == 1
    explorer.controls[control].value = value
    assert explorer.state()["backward"] == 0
    assert "press 1" not in explorer.words.value


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("value", [-3.0, -0.5, 0.0, 3.0])
@pytest.mark.parametrize("detach", [False, True])
def test_every_corner_of_the_controls_draws(expression, value, detach):
    for presses in (0, 2):
        figure, text = render(expression, value, detach, False, presses)
        assert figure.png().startswith(b"\x89PNG")
        assert text.startswith("y = ")


def test_without_a_kernel_the_still_picture_and_its_words_are_there():
    bundle = graph_walker()._repr_mimebundle_()
    assert "7, 14, 21" in bundle["text/html"] and "<img" in bundle["text/html"]
    assert "7, 14, 21" in bundle["text/plain"]


def test_an_update_takes_far_less_than_a_second():
    """It takes 50 to 90 ms of processor time; the limit leaves room for slow machines."""
    explorer = graph_walker()
    explorer.controls["expression"].value = NETWORK
    start = time.process_time()
    explorer.update()
    assert time.process_time() - start < 1.0
