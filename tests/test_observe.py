"""What observations keep of a value, what counts as a difference, and how they travel between processes."""

import copy
import json
import math
import warnings
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_utils.observe import (
    MOST_ITEMS,
    SeenError,
    SeenItems,
    SeenOther,
    SeenTensor,
    alike,
    decode,
    difference,
    encode,
    observe,
    short,
)


class Pair(NamedTuple):
    left: object
    right: object


@dataclass
class Point:
    x: object
    y: object = 0


def compared(got, expected, tolerance=None):
    """The difference between two values, observed."""
    return difference(observe(got), observe(expected), tolerance)


def numbered(rows):
    """Test ids: the type of what came back, and a number."""
    return [f"{number}-{type(row[0]).__name__}" for number, row in enumerate(rows)]


def aspect(got, expected):
    """What differs first: "type", "shape", … or None."""
    found = compared(got, expected)
    return found and found.aspect


def rebuilt(seen):
    """The observation after a journey between processes."""
    return decode(json.loads(json.dumps(encode(seen))))


# --- any value -----------------------------------------------------------------------------------------------------

numbers = st.integers() | st.floats() | st.complex_numbers() | st.booleans() | st.none()
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
tensors = st.builds(
    lambda shape, step, dtype, seed: (10 * torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed))).to(
        dtype
    )[..., ::step],
    st.lists(st.integers(0, 4), max_size=2),
    st.integers(1, 4),
    dtypes,
    st.integers(0, 99),
)
texts = st.text(max_size=8)
arrays = st.builds(lambda tensor: tensor.double().numpy(), tensors.filter(lambda tensor: not tensor.is_complex()))
leaves = numbers | texts | st.binary(max_size=8) | tensors | arrays | st.builds(ValueError, texts)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(texts | st.integers(), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)


# --- what is the same ---------------------------------------------------------------------------------------------

SAME = [
    (3, 3),
    (True, True),
    (None, None),
    ("text", "text"),
    (b"raw", b"raw"),
    (2.0, 2.0 + 1e-6),
    (1 + 2j, 1 + 2j),
    (float("nan"), float("nan")),
    (float("inf"), float("inf")),
    (complex("nan"), complex("nan")),
    ([1, [2, (3, {"a": [4]})]], [1, [2, (3, {"a": [4]})]]),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1: "x", (0, 1): "y"}, {(0, 1): "y", 1: "x"}),
    ({3, 1, 2}, {2, 3, 1}),
    (OrderedDict(a=1), {"a": 1}),
    (deque([1, 2]), deque([1, 2])),
    (torch.Size([2, 3]), (2, 3)),
    (Pair(1, torch.ones(2)), Pair(1, torch.ones(2))),
    (Point(1, [2]), Point(1, [2])),
    (np.float32(2), np.float32(2)),
    (np.datetime64("2020-01-01"), np.datetime64("2020-01-01")),
    (np.array(["a", "b"]), np.array(["a", "b"])),
    (np.arange(6)[::-2], np.array([5, 3, 1])),
    (np.arange(3, dtype=">i4"), np.arange(3, dtype=">i4")),
    (torch.float32, torch.float32),
    (torch.tensor(2.5), torch.tensor(2.5)),
    (torch.ones(2, 3).T, torch.ones(3, 2)),
    (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])),
    (torch.zeros(0, 3), torch.zeros(0, 3)),
    (nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)),
    (torch.empty(2, device="meta"), torch.empty(2, device="meta")),
    (torch.eye(2).to_sparse(), torch.eye(2).to_sparse()),
    (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.float8_e4m3fn)),
    (torch.ones(2, dtype=torch.uint16), torch.ones(2, dtype=torch.uint16)),
    (torch.tensor([True]), torch.tensor([True])),
    (IndexError("mine"), IndexError("theirs")),
    (Path("a/b"), Path("a/b")),
    (range(3), range(3)),
]


@pytest.mark.parametrize(("got", "expected"), SAME, ids=numbered(SAME))
def test_equal_values_show_no_difference(got, expected):
    assert compared(got, expected) is None


# --- what is not --------------------------------------------------------------------------------------------------

DIFFERENT = [
    (1, True, "type"),
    (True, 1, "type"),
    (1, 1.0, "type"),
    (0, None, "type"),
    (1.0, torch.tensor(1.0), "type"),
    ("1", 1, "type"),
    ([1, 2], (1, 2), "type"),
    ([1], deque([1]), "type"),
    ((1, 2), Pair(1, 2), "type"),
    ({"x": 1, "y": 0}, Point(1), "type"),
    (np.ones(2, dtype=np.float32), torch.ones(2), "kind"),
    (np.float64(2), 2.0, "type"),
    (np.float32(2), np.float64(2), "type"),
    (np.bool_(True), True, "type"),
    ([1, 2], [1, 2, 3], "length"),
    ({"a": 1}, {"b": 1}, "keys"),
    ({1: "x"}, {"1": "x"}, "keys"),
    ({True: "x"}, {"True": "x"}, "keys"),
    (torch.ones(2, 3), torch.ones(3, 2), "shape"),
    (torch.ones(1), torch.tensor(1.0), "shape"),
    (torch.ones(2), torch.ones(2, dtype=torch.float64), "dtype"),
    (torch.ones(2, dtype=torch.int32), torch.ones(2, dtype=torch.int64), "dtype"),
    (np.ones(2), np.ones(2, dtype=np.float32), "dtype"),
    (torch.empty(2, device="meta"), torch.empty(2), "device"),
    (torch.ones(2, requires_grad=True), torch.ones(2), "requires_grad"),
    (torch.eye(2).to_sparse(), torch.eye(2), "layout"),
    (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse(), "value"),
    (torch.zeros(2).to(torch.float8_e5m2), torch.ones(2).to(torch.float8_e5m2), "value"),
    (torch.tensor([1, 2]), torch.tensor([1, 3]), "value"),
    (torch.tensor([math.nan]), torch.tensor([0.0]), "value"),
    (torch.tensor([math.inf]), torch.tensor([-math.inf]), "value"),
    (1e300, math.inf, "value"),
    (math.inf, 1.0, "value"),
    (math.nan, 1.0, "value"),
    (10**5000, 3, "value"),
    (2**60, 2**60 + 1, "value"),
    ("a", "b", "value"),
    (b"a", b"b", "value"),
    ("a" * 30_000, "a" * 40_000, "value"),
    (range(3), range(4), "value"),
    (Path("a"), Path("b"), "value"),
    (torch.float32, torch.float64, "value"),
    (np.array(["a"]), np.array(["b"]), "value"),
    (np.array([[None]]), np.array([None]), "type"),
    (list(range(MOST_ITEMS + 1)), list(range(MOST_ITEMS + 2)), "value"),
    (IndexError(), ValueError(), "value"),
    (int, float, "value"),
]


@pytest.mark.parametrize(("got", "expected", "what"), DIFFERENT, ids=numbered(DIFFERENT))
def test_the_first_differing_aspect_is_named(got, expected, what):
    assert aspect(got, expected) == what


def test_shape_is_reported_before_dtype_and_dtype_before_values():
    assert aspect(torch.zeros(3, dtype=torch.int64), torch.ones(2)) == "shape"
    assert aspect(torch.zeros(2, dtype=torch.int64), torch.ones(2)) == "dtype"


def test_a_difference_says_where_it_lies():
    found = compared([0, {"a": (torch.tensor([[1.0, 2.0]]),)}], [0, {"a": (torch.tensor([[1.0, 5.0]]),)}])
    assert found == ("[1]['a'][0][0, 1]", "value", "2.0", "5.0")


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [
        (torch.float64, 1e-7, 1e-5),
        (torch.float32, 5e-5, 1e-3),
        (torch.float16, 5e-3, 1e-1),
        (torch.bfloat16, 3e-2, 0.2),
        (torch.complex64, 5e-5, 1e-3),
        (torch.complex128, 1e-7, 1e-5),
    ],
)
def test_each_dtype_has_a_tolerance_of_its_own(dtype, inside, outside):
    one = torch.ones(2, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    assert compared((one + inside).to(dtype), one.to(dtype)) is None
    assert compared((one + outside).to(dtype), one.to(dtype)).aspect == "value"


def test_a_tolerance_given_for_a_case_replaces_that_of_every_dtype():
    assert compared([1.2, torch.tensor(1.2)], [1.0, torch.tensor(1.0)], (0.5, 0.0)) is None
    assert compared(torch.tensor(1.00001), torch.tensor(1.0), (0.0, 0.0)).aspect == "value"


def test_whole_numbers_have_no_tolerance():
    assert compared(torch.tensor([10**9]), torch.tensor([10**9 + 1])).aspect == "value"


def test_an_exception_of_a_subclass_will_do_and_one_of_a_base_class_will_not():
    assert compared(KeyError("a"), LookupError("b")) is None
    assert aspect(LookupError("b"), KeyError("a")) == "value"


# --- freezing -----------------------------------------------------------------------------------------------------


def test_an_observation_does_not_follow_later_changes():
    tensor, array, items = torch.ones(2), np.ones(2), [1]
    seen = observe([tensor, array, items])
    tensor.zero_()
    array[:] = 0
    items.append(2)
    assert difference(seen, observe([torch.ones(2), np.ones(2), [1]])) is None


def test_an_observation_is_detached_from_the_graph():
    weight = torch.ones(2, requires_grad=True)
    seen = observe(2 * weight)
    assert seen.requires_grad is True
    assert seen.values.requires_grad is False


def test_observing_an_observation_gives_it_back():
    seen = observe({"a": torch.ones(2)})
    assert observe(seen) is seen


def test_a_module_is_seen_by_its_parameters_gradients_buffers_and_modes():
    layer = nn.BatchNorm1d(2)
    layer(torch.ones(3, 2)).sum().backward()
    seen = observe(layer.eval())
    assert seen.kind == "module"
    assert {"module.training", "weight", "weight.grad", "bias", "running_mean"} <= set(seen.keys)
    assert dict(zip(seen.keys, seen.items, strict=True))["module.training"] is False


def test_a_module_whose_init_did_not_run_is_described_and_does_not_raise():
    assert observe(nn.Linear.__new__(nn.Linear)) == SeenOther("a module whose __init__ did not run")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((i for i in ()), "a generator"),
        (lambda: None, "a function"),
        (Point, "the class Point"),
        (object(), "an object of type object"),
    ],
)
def test_anything_else_is_known_by_its_type(value, words):
    assert observe(value) == SeenOther(words)


def test_a_tensor_subclass_is_not_taken_for_a_tensor():
    class Always(torch.Tensor):
        pass

    seen = observe(torch.ones(2).as_subclass(Always))
    assert seen == SeenOther("a tensor of the class Always")


def test_a_nested_tensor_is_seen_item_by_item():
    with warnings.catch_warnings(action="ignore"):
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    seen = observe(nested)
    assert [item.shape for item in seen.items] == [(2,), (3,)]


# --- the quick comparison of live values -----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values, values)
def test_values_taken_for_alike_show_no_difference(one, other):
    for mine, right in ((one, other), (one, copy.deepcopy(one))):
        assert not alike(mine, right) or compared(mine, right, (0.0, 0.0)) is None


@pytest.mark.parametrize(("got", "expected", "what"), DIFFERENT, ids=numbered(DIFFERENT))
def test_different_values_are_never_taken_for_alike(got, expected, what):
    assert alike(got, expected) is False


@pytest.mark.parametrize(
    "value",
    [3, True, None, "a", 2.5, [1, (2, "b")], {"a": torch.ones(2)}, torch.ones(2, 3), torch.ones(2, requires_grad=True)],
    ids=str,
)
def test_the_plain_values_of_most_cases_are_recognized_as_alike(value):
    assert alike(copy.deepcopy(value), value) is True


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.eval(),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: layer.running_mean.add_(1),
        lambda layer: layer(torch.ones(3, 2)).sum().backward(),
        lambda layer: layer.weight.requires_grad_(False),
        lambda layer: layer.__dict__.clear(),
    ],
    ids=["mode", "parameter", "buffer", "gradient", "requires_grad", "not initialized"],
)
def test_modules_in_another_state_are_not_alike(change):
    mine, right = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    assert alike(mine, right) is True
    change(mine)
    assert alike(mine, right) is False


# --- what an answer could do to the comparison --------------------------------------------------------------------


class Agreeable:
    """Says yes to every comparison."""

    asked = 0

    def __eq__(self, other):
        Agreeable.asked += 1
        return True

    __hash__ = None


class AgreeableInt(int):
    __eq__ = Agreeable.__eq__
    __hash__ = int.__hash__


class AgreeableText(str):
    __eq__ = Agreeable.__eq__
    __hash__ = str.__hash__


class AgreeableList(list):
    __eq__ = Agreeable.__eq__

    def __iter__(self):
        return iter([1, 2])


class AgreeableDict(dict):
    __eq__ = Agreeable.__eq__

    def items(self):
        return [("a", 1)]


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (Agreeable(), 3),
        (AgreeableInt(4), 3),
        (AgreeableText("x"), "y"),
        (AgreeableList([5]), [1, 2]),
        (AgreeableDict(b=2), {"a": 1}),
        ([Agreeable()], [torch.ones(2)]),
        ({AgreeableText("b"): 1}, {"a": 1}),
    ],
)
def test_an_eq_that_always_agrees_is_never_asked(got, expected):
    Agreeable.asked = 0
    assert compared(got, expected) is not None
    assert alike(got, expected) is False
    assert Agreeable.asked == 0


def test_an_exception_with_a_broken_str_is_seen_by_its_class():
    class Grumpy(ValueError):
        def __str__(self):
            raise RuntimeError

    assert observe(Grumpy("why")) == SeenError(("Grumpy", "ValueError", "Exception", "BaseException"), "why")


def test_a_list_that_holds_itself_ends():
    items = [1]
    items.append(items)
    assert difference(observe(items), observe(items)) is None
    assert "more than can be compared" in str(observe(items))


def test_a_list_that_branches_into_itself_ends():
    items = []
    items += [items, items, items]
    assert isinstance(observe(items), SeenItems)


def test_a_huge_container_is_bounded_and_its_length_still_counts():
    seen = observe([0] * (3 * MOST_ITEMS))
    assert len(seen.items) == MOST_ITEMS + 1
    assert aspect([0] * (3 * MOST_ITEMS), [0] * (2 * MOST_ITEMS)) == "value"


def test_a_huge_nest_of_containers_is_bounded():
    seen = observe([[[0]] for _ in range(MOST_ITEMS)])
    assert seen.items[-1] == SeenOther("more than can be compared")


# --- in words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        (2.0, "2.0"),
        (1 / 3, "0.333333"),
        (True, "True"),
        ("a", "'a'"),
        ((1,), "(1,)"),
        ([1, 2], "[1, 2]"),
        ({"a": 1}, "{a: 1}"),
        (Point(1, 2), "Point(x: 1, y: 2)"),
        (ValueError("no\nmore"), "ValueError: no"),
        (10**30, "1e+30"),
        (torch.tensor([[1.0, 2.5]]), "float32 tensor of shape (1, 2), [[1.0, 2.5]]"),
        (torch.zeros(0), "float32 tensor of shape (0,), no elements"),
        (torch.ones(2, requires_grad=True), "float32 tensor of shape (2,), requires grad, [1.0, 1.0]"),
        (torch.empty(2, device="meta"), "float32 tensor of shape (2,) on meta, strided"),
        (np.array([1, 2]), "int64 NumPy array of shape (2,), [1, 2]"),
    ],
)
def test_an_observation_in_words(value, words):
    assert short(observe(value)) == words


def test_a_giant_number_is_described_by_its_size():
    assert short(10**5000) == "a whole number of 16610 bits"


def test_words_are_cut_at_the_limit():
    assert len(short(observe("a" * 500), 50)) == 50


# --- between processes --------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values)
def test_decoding_gives_back_what_was_encoded(value):
    seen = observe(value)
    back = rebuilt(seen)
    assert difference(back, seen, (0.0, 0.0)) is None
    assert difference(seen, back, (0.0, 0.0)) is None
    assert short(back) == short(seen)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values)
def test_a_value_equals_itself(value):
    assert compared(value, value, (0.0, 0.0)) is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values, values)
def test_whether_two_values_differ_does_not_depend_on_the_order(one, other):
    assert (compared(one, other, (0.0, 0.0)) is None) == (compared(other, one, (0.0, 0.0)) is None)


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(2, 3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.arange(6).reshape(2, 3).T,
        np.longdouble(2),
        np.datetime64("2020-01-01"),
        np.array([object()]),
        IndexError("a"),
        "\ud800",
        10**400,
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_travel_too(value):
    assert difference(rebuilt(observe(value)), observe(value)) is None


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        ["plain", 3],
        ["plain", [1]],
        ["int", "many"],
        ["int", 3],
        ["float", None],
        ["items", "list", None, 5],
        ["items", "list", None, [[]]],
        ["other"],
        ["unheard of", 1],
        ["tensor", "tensor", ["AAAA", "float32"], [7], "torch.float32", "cpu", False, "strided"],
        ["tensor", "tensor", ["AAA", "float32"], [1], "torch.float32", "cpu", False, "strided"],
        ["tensor", "tensor", ["", "float32"], [7], "torch.float32", "cpu", False, "strided"],
        ["tensor", "tensor", ["AAAA", "float31"], [1], "torch.float32", "cpu", False, "strided"],
        ["tensor", "tensor", ["AAAA", "float32"], [-5, 2], "torch.float32", "cpu", False, "strided"],
        ["tensor", "tensor", ["AAAA", "float32"], [1], "torch.float32"],
    ],
    ids=str,
)
def test_what_is_no_observation_is_refused(data):
    with pytest.raises((ValueError, TypeError, KeyError)):
        decode(data)


def test_a_seen_tensor_keeps_its_facts_on_the_journey():
    seen = observe(torch.ones(2, 3, dtype=torch.float64, requires_grad=True))
    assert rebuilt(seen)[2:] == SeenTensor("tensor", None, (2, 3), "torch.float64", "cpu", True, "strided")[2:]


def test_named_tuples_of_any_making_are_seen_by_their_fields():
    made = namedtuple("Made", "a b")
    assert observe(made(1, 2)) == SeenItems("tuple Made", ("a", "b"), (1, 2))


def test_a_named_tuple_does_where_a_tuple_is_asked_for():
    assert difference(observe(Pair(1, 2)), observe((1, 2))) is None
    assert difference(observe(Pair(1, 3)), observe((1, 2))).path == "[1]"
