"""Figures of memory: the numbers they show come from the tensors, and their texts can be read."""

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from test_plots_lines import covered_texts

from course_utils import plots
from course_utils.plots import memory
from course_utils.plots.figure import Figure


def texts(figure: Figure) -> list[str]:
    """All words in a picture."""
    return [text.get_text() for text in figure.figure.findobj(Text) if text.get_text()]


X = torch.arange(12.0).reshape(3, 4)
CUBE = torch.arange(24).reshape(2, 3, 4)
TENSORS = {
    "matrix": X,
    "transpose": X.T,
    "slice": X[1:, ::2],
    "columns swapped by a view of a view": X.T[1:].T[:, 1:],
    "expanded": torch.linspace(-1, 1, 3)[:, None].expand(3, 4),
    "expanded rows": torch.arange(4).expand(3, 4),
    "cube": CUBE,
    "permuted cube": CUBE.permute(2, 0, 1),
    "windows": torch.arange(8).unfold(0, 4, 2),
    "vector": torch.arange(6),
    "scalar": torch.tensor(3),
    "empty": X[3:],
    "empty vector": torch.arange(6)[6:],
    "forty cells": torch.arange(40).view(5, 8),
    "long numbers": torch.linspace(-1, 1, 30).view(5, 6) ** 3,
    "booleans": torch.tensor([True, False]),
    "meta": torch.empty(2, 3, device="meta"),
    "requires a gradient": torch.ones(2, 2, requires_grad=True),
}
anything = pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())


@anything
def test_the_element_at_each_storage_position_is_the_element(tensor):
    if tensor.is_meta:  # no elements to compare, so compare how many there are
        assert memory.storage_positions(tensor).shape == tensor.shape
        return
    storage = tensor.detach().as_strided((memory.storage_length(tensor),), (1,), 0)
    assert torch.equal(storage[memory.storage_positions(tensor)], tensor.detach())


def test_visits_count_the_elements_in_each_cell():
    assert memory.storage_visits(X[1:, ::2]) == [0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert memory.storage_visits(torch.arange(3)[:, None].expand(3, 4)) == [4, 4, 4]
    assert memory.storage_visits(X[3:]) == [0] * 12


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (-2, "−2"), (0.5, "0.50"), (-1.2345, "−1.23"), (1.2e-5, "1e−5"), (True, "T"),
     (False, "F"), (float("nan"), "nan"), (float("-inf"), "−inf"), (1234.5, "1e3"),
     (1 + 2j, "1+2j")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert memory.number(value) == text


@anything
@pytest.mark.parametrize("draw", [plots.strides, plots.tensor_anatomy])
def test_texts_of_storage_pictures_do_not_overlap(draw, tensor):
    assert covered_texts(draw(tensor)) == []


# strides


@anything
def test_strides_shows_the_position_of_every_element(tensor):
    shown = texts(plots.strides(tensor))
    for position in memory.storage_positions(tensor).flatten().tolist():
        assert str(position) in shown


def test_strides_says_layout_reach_and_the_positions_of_each_row():
    alt = plots.strides(X[1:, ::2], title="x[1:, ::2]").alt
    assert alt == (
        "x[1:, ::2]: a storage strip of 12 cells and a view with shape (2, 2), stride (4, 2), "
        "offset 4. The view reaches 4 of the cells. "
        "Positions: row [0] reads 4, 6; row [1] reads 8, 10."
    )


def test_strides_names_offset_and_step_of_each_dimension():
    shown = texts(plots.strides(X[1:, ::2]))
    assert {"offset 4", "dim 0: +4", "dim 1: +2"} <= set(shown)
    assert "position of [i, j] = 4 + 4·i + 2·j" in shown


def test_strides_counts_cells_that_are_read_again():
    figure = plots.strides(TENSORS["expanded"])
    assert texts(figure).count("×4") == 3
    assert "dim 1: +0, stays" in texts(figure)
    assert "Some cells are read more than once" in figure.alt


def test_strides_draws_no_step_for_a_dimension_of_size_one():
    assert "dim 1: +1" not in texts(plots.strides(torch.arange(3)[:, None]))


def test_strides_tells_rows_apart_by_hatching_as_well_as_by_color():
    fills = [memory.row_fill(row) for row in range(42)]
    assert len(set(fills)) == 42
    assert fills[0].hatch != fills[1].hatch
    assert all(a.hatch != b.hatch for a, b in zip(fills, fills[6:], strict=False))


def test_an_overlapping_cell_keeps_the_filling_of_its_first_row():
    fills = memory._first_fills([[0, 1], [1, 2]])
    assert fills == {0: memory.row_fill(0), 1: memory.row_fill(0), 2: memory.row_fill(1)}


def test_strides_says_that_an_empty_view_has_no_elements():
    figure = plots.strides(X[3:])
    assert "no elements" in texts(figure)
    assert "reaches 0 of the cells" in figure.alt


def test_too_many_dimensions_and_too_long_storages_are_refused_with_the_number():
    with pytest.raises(ValueError, match="up to 3 dimensions; this tensor has 4"):
        plots.strides(torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="A storage of 1000 cells"):
        plots.strides(torch.zeros(1000)[:3])


# tensor_anatomy


def test_anatomy_shows_header_block_and_first_cell():
    figure = plots.tensor_anatomy(X[1:, ::2])
    shown = texts(figure)
    assert {"(2, 2)", "(4, 2)", "4", "torch.float32", "cpu"} <= set(shown)
    assert "the first element is in cell 4" in shown
    assert "12 cells × 4 bytes = 48 bytes" in figure.alt
    assert "4 of 12 cells reached" in figure.alt


# view_decision

LAYOUTS = [
    X, X.T, X[1:, ::2], X[:, :2], torch.zeros(4, 6, 5)[:, :3], CUBE.transpose(0, 1), CUBE[:, :, 0],
    torch.zeros(3, 1).expand(3, 4), torch.zeros(1).expand(3, 4), torch.zeros(2, 1, 3)[:, :, :2],
    torch.zeros(1, 4, 1), torch.tensor(1), X[3:], CUBE.permute(2, 0, 1), torch.zeros(2, 3, 1).mT,
]  # fmt: skip


@pytest.mark.parametrize("tensor", LAYOUTS, ids=lambda t: f"{tuple(t.shape)} {t.stride()}")
def test_all_merges_hold_exactly_when_view_flattens(tensor):
    checks = memory.merge_checks(tensor)
    if tensor.numel():
        assert all(merges for *_, merges in checks) == memory.views_flat(tensor)
    else:
        assert memory.views_flat(tensor)


@pytest.mark.parametrize("tensor", LAYOUTS, ids=lambda t: f"{tuple(t.shape)} {t.stride()}")
def test_every_view_that_the_verdict_names_works(tensor):
    for line in memory.flat_verdict(tensor, memory.merge_checks(tensor)).split("\n"):
        call, outcome = line.rsplit(" ", 1)
        if outcome == "works":
            assert eval(f"tensor{call}").data_ptr() == tensor.data_ptr()
        else:
            with pytest.raises(RuntimeError, match="view size is not compatible"):
                eval(f"tensor{call}")


def test_view_decision_shows_the_comparison_with_the_numbers():
    figure = plots.view_decision(X.T, torch.zeros(4, 6, 5)[:, :3], labels=["x.T", "y[:, :3]"])
    shown = texts(figure)
    assert {"x.T", "y[:, :3]", "dims 0, 1:  1 ≠ 4·3", "dims 1, 2:  5 = 1·5"} <= set(shown)
    assert ".view(4, 15) works" in shown
    assert "x.T (shape (4, 3), stride (1, 4), offset 0): dims 0, 1: 1 ≠ 4·3: no" in figure.alt


def test_view_decision_texts_do_not_overlap():
    assert covered_texts(plots.view_decision(*LAYOUTS)) == []


def test_view_decision_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="1 labels do not fit 2 tensors"):
        plots.view_decision(X, X.T, labels=["x"])


# number_line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("center", [256.0, -256.0, 1.0, 1000.0, 2.0**15, 0.0, 257.0])
def test_spacing_agrees_with_the_neighbors_among_all_values(dtype, center):
    nearest = torch.tensor(center, dtype=torch.float64).to(dtype).double().item()
    below, above = memory.spacing(dtype, center)
    span = 1.5 * max(below, above)
    values = memory.representable(dtype, nearest - span, nearest + span)
    place = values.index(nearest)
    assert values[place] - values[place - 1] == below
    assert values[place + 1] - values[place] == above


def test_number_line_lists_few_values_and_counts_many():
    figure = plots.number_line(256)
    assert (
        "bfloat16 has 13 values there (248, 249, 250, 251, 252, 253, 254, 255, 256, 258, 260, "
        "262, 264), steps of 1 below 256, of 2 above."
    ) in figure.alt
    assert "float16 has 97 values there, steps of 0.125 below 256, of 0.25 above." in figure.alt


def test_number_line_draws_a_band_where_there_are_too_many_values():
    assert "float64 has values there, steps of" in plots.number_line(1, [torch.float64]).alt
    assert "too many to draw" in plots.number_line(1, [torch.float64]).alt


def test_number_line_says_where_a_dtype_ends():
    figure = plots.number_line(70000, [torch.float16])
    assert "70000 is past the largest value, 65504" in figure.alt


@pytest.mark.parametrize("center", [256, 2**24, 65504, 0])
def test_number_line_texts_do_not_overlap(center):
    figure = plots.number_line(center, [torch.float32, torch.bfloat16, torch.float16])
    assert covered_texts(figure) == []


# picked_cells

ROW, COLUMN = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
ROW[1], COLUMN[:, 2] = True, True


def test_picked_cells_names_the_values_of_each_pick():
    figure = plots.picked_cells(X, {"x[1]": ROW, "x[:, 2]": COLUMN, "x[x > 99]": X > 99})
    assert figure.alt == (
        "Grids of shape (3, 4). x[1] picks 4 cells: 4, 5, 6, 7. x[:, 2] picks 3 cells: 2, 6, 10. "
        "x[x > 99] picks 0 cells: none."
    )


@pytest.mark.parametrize("count", [1, 3, 5])
def test_picked_cells_texts_do_not_overlap(count):
    names = [f"x[torch.tensor([{n}, 1])][:, torch.tensor([2, 3])]" for n in range(count)]
    figure = plots.picked_cells(torch.linspace(-9, 9, 12).view(3, 4), dict.fromkeys(names, ROW))
    assert covered_texts(figure) == []


def test_picked_cells_takes_a_vector():
    mask = torch.tensor([False, True, False])
    assert "picks 1 cell: 1." in plots.picked_cells(torch.arange(3), {"a[1]": mask}).alt


@pytest.mark.parametrize("mask", [ROW[0], ROW.int()])
def test_picked_cells_refuses_what_is_no_mask_of_its_shape(mask):
    with pytest.raises(ValueError, match=r"'bad' needs a bool mask of shape \(3, 4\)"):
        plots.picked_cells(X, {"bad": mask})


# broadcasting

SHAPES = [
    [(3, 1), (3,)], [(2, 3), (2,)], [(8, 3, 4), (3, 1), (4,)], [(), (3,)], [(2, 3), (2, 3)],
    [(2, 1, 3, 4), (7, 1, 4)], [(0, 3), (1, 3)], [(0, 3), (2, 3)], [(2, 4, 1), (3, 5, 1)], [(), ()],
    [(8, 1, 28, 28, 3), (16, 1, 1, 3)],
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting_agrees_with_torch(shapes):
    alt = plots.broadcasting(*shapes).alt
    try:
        assert f"Result: {tuple(torch.broadcast_shapes(*shapes))}." in alt
    except RuntimeError:
        assert "Clash in dim" in alt
        assert "Result" not in alt


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting_texts_do_not_overlap(shapes):
    assert covered_texts(plots.broadcasting(*shapes)) == []


def test_broadcasting_marks_stretched_and_missing_sizes():
    figure = plots.broadcasting((3, 1), (3,))
    assert {"1 → 3", "(1) → 3", "result (3, 3)"} <= set(texts(figure))
    assert "hatched: size 1, read again and again; dotted: missing, counts as size 1" in texts(figure)


def test_broadcasting_marks_the_clash_and_its_sizes():
    shown = texts(plots.broadcasting((2, 3), (2,)))
    assert {"✗ 3 ≠ 2", "no result"} <= set(shown)
    assert "Clash in dim 1 (3 ≠ 2): sizes must be equal, or one of them 1." in shown


# shared_block


def test_shared_block_draws_one_block_for_shared_memory():
    array = np.arange(12.0).reshape(3, 4)
    alt = plots.shared_block(array, torch.from_numpy(array)).alt
    assert alt.startswith("One block of bytes with two headers.")
    assert "strides (32, 8) bytes" in alt
    assert "stride (4, 1) elements" in alt
    assert "12 cells × 8 bytes = 96 bytes, 12 read by NumPy and torch." in alt


def test_shared_block_draws_two_blocks_for_a_copy():
    array = np.arange(3.0)
    alt = plots.shared_block(array, torch.tensor(array)).alt
    assert alt.startswith("Two blocks of bytes, not shared.")
    assert "3 read by NumPy. 3 cells × 8 bytes = 24 bytes, 3 read by torch." in alt


def test_shared_block_counts_who_reads_which_cells():
    array = np.arange(12.0).reshape(3, 4)
    alt = plots.shared_block(array[::2], torch.from_numpy(array)[1:]).alt
    assert "4 read by NumPy, 4 read by torch, 4 read by NumPy and torch" in alt


def test_shared_block_follows_negative_strides_and_smaller_elements():
    array = np.arange(6, dtype=np.int32)
    tensor = torch.from_numpy(array)
    assert "6 read by NumPy and torch" in plots.shared_block(array[::-1], tensor).alt
    assert "8 cells × 1 byte" in plots.shared_block(array[:2], tensor.view(torch.int8)[:8]).alt


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("count", [1, 12, 36])
def test_shared_block_texts_do_not_overlap(copy, count):
    array = np.linspace(0, 1, count)
    tensor = torch.tensor(array) if copy else torch.from_numpy(array)
    assert covered_texts(plots.shared_block(array, tensor)) == []


def test_shared_block_refuses_what_is_too_long():
    array = np.zeros(100)
    with pytest.raises(ValueError, match="100 cells are too many"):
        plots.shared_block(array, torch.from_numpy(array))
