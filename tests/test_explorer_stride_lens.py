"""Stride lens: numbers against torch's over all chains, words, picture and controls."""

import importlib
from itertools import product

import pytest
import torch
from matplotlib.collections import PolyCollection
from test_plots_lines import covered_texts

lens_module = importlib.import_module("course_utils.explorers.stride_lens")
describe, look, picture = lens_module.describe, lens_module.look, lens_module.picture
CHAINS = list(product(lens_module.OPERATIONS, repeat=lens_module.STEPS))


@pytest.mark.parametrize("shape", lens_module.SHAPES.values(), ids=str)
def test_every_chain_shows_what_torch_says(shape):
    """The code that is shown is run, and layout, position, value and visits compared with it."""
    count = torch.Size(shape).numel()
    for chain in CHAINS:
        lens = look(shape, chain, (1, 2, 3, 3))
        scope = {"torch": torch}
        exec(lens.base, scope)
        expected = eval(lens.code, scope)
        assert torch.equal(lens.tensor, expected), chain
        assert lens.tensor.stride() == expected.stride(), chain
        assert lens.facts == {
            "shape": tuple(expected.shape),
            "stride": expected.stride(),
            "storage_offset": expected.storage_offset(),
            "is_contiguous()": expected.is_contiguous(),
            ".view(-1)": "works" if flattens(expected) else "raises RuntimeError",
        }
        storage = expected.as_strided((expected.untyped_storage().nbytes() // 8,), (1,), 0)
        assert len(lens.visits) == len(storage), chain
        assert sum(lens.visits) == expected.numel(), chain
        if lens.position is not None:
            assert storage[lens.position] == expected[lens.index], chain
            assert eval(lens.formula.split(" = ")[0].replace("·", "*")) == lens.position, chain
        assert (lens.position is None) == (expected.numel() == 0), chain
        assert len(storage) <= 48 and count <= 24, chain


def flattens(tensor: torch.Tensor) -> bool:
    """Whether view(-1) works, asked of torch by another road: reshape copies where it does not."""
    flat = tensor.reshape(-1)
    return tensor.numel() == 0 or flat.data_ptr() == tensor.data_ptr()


def test_a_transpose_reaches_the_same_cells():
    assert look((3, 4), ["transpose last two"], (0, 0)).visits == (1,) * 12


def test_expand_visits_cells_again():
    assert look((4, 1), ["expand"], (0, 0)).visits == (2,) * 4


def test_contiguous_makes_a_new_strip_and_says_so():
    lens = look((3, 4), ["transpose last two", "contiguous"], (0, 1))
    assert lens.tensor.flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert lens.position == 1
    assert lens.notes == ("Step 2: contiguous() copied 12 elements to a new strip.",)


def test_contiguous_on_a_contiguous_tensor_says_that_nothing_was_copied():
    lens = look((3, 4), ["contiguous"], (0, 0))
    assert lens.notes == ("Step 1: contiguous() returned its input, which was contiguous already.",)


def test_some_tensors_that_are_not_contiguous_still_accept_view():
    facts = look((3, 4), ["[..., ::2]"], (0, 0)).facts
    assert (facts["is_contiguous()"], facts[".view(-1)"]) == (False, "works")


def test_expand_without_a_size_one_is_left_out_with_the_reason():
    lens = look((3, 4), ["none", "expand", "[1:]"], (0, 0))
    assert lens.code == "x[1:]"
    assert lens.notes == ("Step 2, expand, is left out: no size in (3, 4) is 1.",)


def test_a_fifth_dimension_is_left_out_with_the_reason():
    lens = look((2, 3, 4), ["unsqueeze(0)"] * 3, (0, 0, 0, 0))
    assert lens.tensor.ndim == 4
    assert [note[:28] for note in lens.notes] == [
        "Step 2, unsqueeze(0), is lef",
        "Step 3, unsqueeze(0), is lef",
    ]


def test_an_index_past_the_end_is_the_last_one_and_the_words_say_so():
    lens = look((3, 4), ["none"], (3, 1, 3, 3))
    assert lens.index == (2, 1)
    assert lens.notes == ("Index slider 0 is at 3; the last index of dimension 0 is 2.",)


def test_sliders_beyond_the_rank_are_ignored():
    assert look((3, 4), [], (1, 1, 0, 0)).index == look((3, 4), [], (1, 1, 3, 3)).index == (1, 1)


def test_words_fill_the_storage_formula_in():
    assert describe(look((3, 4), ["transpose last two", "[1:]"], (1, 2))) == (
        "x = torch.arange(12).reshape(3, 4)\n"
        "x.transpose(-2, -1)[1:]\n"
        "\n"
        "shape               (3, 3)\n"
        "stride              (1, 4)\n"
        "storage_offset      1\n"
        "is_contiguous()     False\n"
        ".view(-1)           raises RuntimeError\n"
        "position of [1, 2]  1 + 1·1 + 2·4 = 10, value 10"
    )


def test_words_for_an_empty_tensor_give_no_position():
    lens = look((2, 3, 4), ["unsqueeze(0)", "[1:]"], (0, 0, 0, 0))
    assert "position         no elements, so no positions" in describe(lens)


def test_the_chosen_cell_is_outlined_in_the_picture():
    figure = picture(look((3, 4), ["transpose last two"], (0, 1)))
    heavy = [
        drawn
        for drawn in figure.figure.axes[0].collections
        if isinstance(drawn, PolyCollection) and drawn.get_linewidth()[0] == 3
    ]
    (outline,) = heavy
    left = outline.get_paths()[0].vertices[:, 0].min()
    strip = lens_module._strip(look((3, 4), [], (0, 0)), 0)
    assert left == pytest.approx(strip.corner(4)[0])
    assert "element [0, 1] in cell 0 + 0·1 + 1·4 = 4" in figure.alt


@pytest.mark.parametrize(
    "chain",
    [["unsqueeze(0)", "expand", "contiguous"], ["expand"], ["[1:]", "[::2]"], ["[1:]"] * 3],
    ids=str,
)
@pytest.mark.parametrize("shape", lens_module.SHAPES.values(), ids=str)
def test_texts_of_the_picture_do_not_overlap(shape, chain):
    assert covered_texts(picture(look(shape, chain, (3, 3, 3, 3)))) == []


def test_the_still_picture_tells_three_states_as_a_table():
    figure = lens_module.still()
    assert covered_texts(figure) == []
    for row in (
        "x: shape (3, 4), stride (4, 1), storage_offset 0, is_contiguous() True, .view(-1) works",
        "x.transpose(-2, -1): shape (4, 3), stride (1, 4), storage_offset 0, "
        "is_contiguous() False, .view(-1) raises RuntimeError",
        "x[1:][..., ::2]: shape (2, 2), stride (4, 2), storage_offset 4, "
        "is_contiguous() False, .view(-1) works; reaches 4 of 12 cells",
    ):
        assert row in figure.alt


def test_controls_change_words_and_picture():
    explorer = lens_module.stride_lens()
    before = explorer.picture.value
    explorer.controls["step_1"].value = "[1:]"
    explorer.controls["index_1"].value = 3
    assert "position of [0, 3]  4 + 0·4 + 3·1 = 7, value 7" in explorer.words.value
    assert explorer.picture.value != before
    assert "x[1:]: shape (2, 4)" in explorer.picture.value


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = lens_module.stride_lens()._repr_mimebundle_()
    assert lens_module.still().alt in bundle["text/plain"]
    assert "<img" in bundle["text/html"]


def test_sliders_reach_every_index_of_every_chain():
    sizes = {
        size
        for shape in lens_module.SHAPES.values()
        for chain in CHAINS
        for size in look(shape, chain, (0,) * lens_module.MOST_DIMS).tensor.shape
    }
    assert max(sizes) == lens_module.LARGEST_SIZE
