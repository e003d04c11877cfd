"""Recompute and recompile: the model of memory against torch, what there is to discover, words, pictures, controls."""

import importlib
import math

import pytest
import torch
from torch import nn

from course_utils.exercise import load_exercise

module = importlib.import_module("course_utils.explorers.recompute_and_recompile")
Stack, Program = module.Stack, module.Program


class Tanh(nn.Module):
    """A block that saves as much as one boundary, its own output."""

    def forward(self, x):
        return x.tanh()


@pytest.mark.parametrize(("depth", "segment"), [(7, 3), (8, 1), (9, 4), (5, 8)])
def test_what_is_kept_after_forward_is_what_torch_keeps(depth, segment):
    """Bytes in distinct storages, counted through hooks around a checkpointed stack."""
    stack = Stack(depth, min(segment, depth), 1, 2)
    x = torch.randn(stack.batch, module.WIDTH, requires_grad=True)
    forward = load_exercise("checkpointed_forward").reference
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward([Tanh() for _ in range(depth)], x, segment)
    assert output.requires_grad
    assert sum(kept.values()) == module.after_forward(stack) * stack.boundary


def test_a_plain_stack_of_the_model_is_what_torch_keeps():
    blocks = nn.Sequential(*(Tanh() for _ in range(6)))
    x = torch.randn(2, module.WIDTH, requires_grad=True)
    stack = Stack(6, 1, 1, 2)
    highest = max(held for _, held in module.plain_walk(stack))
    assert load_exercise("saved_bytes").reference(blocks, x) == highest * stack.boundary


@pytest.mark.parametrize("depth", [4, 7, 16, 33])
@pytest.mark.parametrize("interior", [1, 4])
def test_walks_begin_and_end_with_nothing_and_peak_where_the_formula_says(depth, interior):
    for segment in range(1, depth + 1):
        stack = Stack(depth, segment, interior)
        walk = module.checkpointed_walk(stack)
        assert walk[0][1] == walk[-1][1] == 0
        assert max(held for _, held in walk) == module.peak(stack)
        assert walk[-1][0] == 4 * depth
        assert module.plain_walk(stack)[-1] == (3 * depth, 0)


@pytest.mark.parametrize("depth", [16, 25, 36, 49, 64])
def test_the_lowest_peak_is_near_the_square_root_and_at_shorter_segments_for_fat_interiors(depth):
    root = math.isqrt(depth)
    stack = Stack(depth, root)
    assert root in module.best_segments(stack)
    assert module.peak(stack) == 2 * root
    assert module.peaks(stack)[0] == module.peaks(stack)[-1] == depth + 1
    fat = Stack(depth, root, 16)
    assert max(module.best_segments(fat)) < root


def test_the_time_does_not_depend_on_the_segment():
    assert {module.relative_time(Stack(24, k)) for k in range(1, 25)} == {4 / 3}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (Program((5, 5, 5)), [1, 0, 0]),
        (Program((4, 6, 8, 10)), [1, 1, 0, 0]),
        (Program((4, 6, 8, 10), dynamic=False), [1, 1, 1, 1]),
        (Program((4, 6, 8), dynamic=True), [1, 0, 0]),
        (Program((4, 6, 1), dynamic=True), [1, 0, 1]),
        (Program((4, 4), prints=True), [2, 0]),
        (Program((4, 4, 4), branches=True), [2, 1, 0]),
        (Program((4, 4), other_dtype=True), [1, 1]),
    ],
)
def test_graphs_per_call_are_those_that_the_week_teaches(program, expected):
    assert [call.compiled for call in module.run(program)] == expected


def test_past_the_limit_calls_run_without_a_graph_and_that_is_said(capsys):
    calls = module.run(Program(tuple(range(2, 13)), dynamic=False))
    assert [call.kind for call in calls] == [module.COMPILED] * 8 + [module.EAGER] * 3
    assert "Dynamo gave up" in module.describe_graphs(Program(tuple(range(2, 13)), dynamic=False))
    assert capsys.readouterr() == ("", "")


def test_source_shown_is_what_is_run():
    """The text, executed, gives what the calls are about."""
    for program in (Program(), Program(branches=True), Program(branches=True, prints=True)):
        names = {}
        exec(program.source, names)
        x = torch.ones(3)
        assert torch.equal(names["f"](x), x * 2 + 1)
        assert torch.equal(names["f"](-x), -x * 2 - 1 if program.branches else -x * 2 + 1)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("4, 6,8", (4, 6, 8)), ("3 x 5;", (3, 5)), ("", ()), ("no", ()), ("9" * 40, (4096,)), ("2 " * 30, (2,) * 12)],
)
def test_lengths_are_read_from_any_text(text, lengths):
    assert module.read_lengths(text) == lengths


def values(**changes):
    """The values of the controls at the start, some of them changed."""
    return module.recompute_and_recompile().state() | changes


def test_words_tell_segments_peak_time_and_the_best_length():
    words = module.render(**values())[1]
    assert "segments            4, 4, 4, 4 blocks" in words
    assert "kept after forward  128 KiB, plain 512 KiB" in words
    assert "peak                256 KiB, 50% less than plain" in words
    assert "time of a step      1.33 of the plain one" in words
    assert "sqrt(depth / interior) = 4.0" in words


def test_words_tell_function_calls_and_graphs():
    words = module.render(**values(view=module.GRAPHS, branches=True, lengths="4, 4, 4", dynamic="True"))[1]
    assert words.startswith("def f(x):\n    y = x * 2\n    if y.sum() > 0:\n")
    assert "torch.compile(f, dynamic=True)" in words
    assert "call  2  length 4, float32, sum below 0    compiled 1 graph\n" in words
    assert words.endswith("graphs in all: 3")


def test_a_segment_longer_than_the_stack_and_a_text_without_lengths_are_taken_kindly():
    assert "segments            5 blocks" in module.render(**values(depth=5, segment=60))[1]
    assert "No lengths were given" in module.render(**values(view=module.GRAPHS, lengths="none"))[1]


def test_the_pictures_hold_what_they_say():
    figure, _ = module.render(**values(depth=9, segment=3, interior=2))
    walk, peaks = figure.figure.axes
    assert len(walk.lines[0].get_xdata()) == 19
    assert list(peaks.lines[0].get_ydata()) == [
        p * Stack(9, 3, 2).boundary / 2**20 for p in module.peaks(Stack(9, 3, 2))
    ]
    assert "9 blocks in segments of 3" in figure.alt
    figure, _ = module.render(**values(view=module.GRAPHS, lengths="4, 6, 8", prints=True))
    assert [text.get_text() for text in figure.figure.axes[0].texts] == ["+2", "+2", "reused"]
    assert "with a print, dynamic=None" in figure.alt and "Graphs in all: 4." in figure.alt
    assert figure.png()


def test_controls_change_words_and_picture_and_hide_what_does_not_matter():
    explorer = module.recompute_and_recompile()
    before = explorer.picture.value
    explorer.controls["segment"].value = 8
    assert explorer.picture.value != before and "8, 8 blocks" in explorer.words.value
    assert explorer.controls["lengths"].layout.display == "none"
    explorer.controls["view"].value = module.GRAPHS
    assert explorer.controls["lengths"].layout.display is None
    assert explorer.controls["depth"].layout.display == "none"
    explorer.controls["dynamic"].value = "False"
    assert "graphs in all: 4" in explorer.words.value


def test_a_page_without_a_kernel_gets_four_stills_and_the_table():
    bundle = module.recompute_and_recompile()._repr_mimebundle_()
    assert "<img" in bundle["text/html"]
    for words in ("Segments of 1: peak 544 KiB", "Segments of 4: peak 256 KiB", "one length, four times: 1 graph.",
                  "four lengths: 2 graphs", "dynamic=False: 4 graphs", "dynamic=True: 1 graph."):  # fmt: skip
        assert words in bundle["text/plain"]
