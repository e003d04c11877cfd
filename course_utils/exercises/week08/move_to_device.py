"""A nested batch on another device, and the caller's containers as they were."""

from collections import OrderedDict, namedtuple
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("device.placement",))
def move_to_device(batch: Any, device: str | torch.device) -> Any:
    """Return `batch` with every tensor on `device`.

    An object with a callable `.to` (a tensor, a PackedSequence, a graph object) becomes
    obj.to(device), whatever else it is. A dict gives a plain dict with the same keys in the same
    order, a list a list, and a tuple a tuple; subclasses of the three count as such and give the
    plain type too. Only a namedtuple gives a namedtuple of the same type. They may be nested to any
    depth. Everything else (strings, numbers, None, sets, NumPy arrays, ...) is returned as it is.

    The caller's containers are never modified: new ones are built. Dtypes, graph and
    requires_grad survive, and a tensor that is already on the device is returned itself, not a
    copy.
    """
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [move_to_device(item, device) for item in batch]
    if isinstance(batch, tuple):
        items = [move_to_device(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    return batch


Sample = namedtuple("Sample", ["image", "label"])
Pair = namedtuple("Pair", ["left", "right"])


class Rows(list):
    """A list of some library."""


class Graph:
    """An object of some library that knows how to move."""

    def __init__(self, nodes, device="where it was made"):
        self.nodes, self.device = nodes, device

    def to(self, device):
        return Graph(self.nodes, str(device))


class Encoding(dict):
    """A dict of some library that knows how to move."""

    def to(self, device):
        return SimpleNamespace(moved_to=str(device), keys=list(self))


def facts(thing):
    """What can be said about an object that is neither tensor nor container."""
    return vars(thing) if isinstance(thing, (Graph, SimpleNamespace)) else thing


def part(thing, *path):
    """An item of an item of a result, or None where there is none."""
    for key in path:
        try:
            thing = thing[key]
        except (TypeError, KeyError, IndexError):
            return None
    return thing


# Tensors on "meta" have no values, only shape and dtype, so these batches hold whole numbers.


@move_to_device.case
def a_tuple_of_two_tensors(implementation, draw):
    batch, features = draw.sizes(2)
    given = draw.integers(0, 255, batch, features, dtype=torch.uint8), draw.integers(0, 9, batch)
    return implementation(given, "meta")


@move_to_device.case
def a_tensor_alone(implementation, draw):
    image = draw.integers(0, 99, *draw.sizes(2), dtype=torch.int16)
    return implementation(image, torch.device("meta"))


@move_to_device.case
def a_nested_batch(implementation, draw):
    size, other = draw.sizes(2)
    batch = {
        "image": draw.integers(0, 255, size, other, dtype=torch.uint8),
        "boxes": [
            draw.integers(0, 99, other, 4),
            (draw.integers(0, 5, size), [draw.permutation(3)]),
        ],
        "meta": {"mask": draw.normal(size) > 0, "scale": draw.tensor(draw.whole(1, 2))},
    }
    return implementation(batch, "meta")


@move_to_device.case
def strings_numbers_and_None(implementation, draw):
    number, name = draw.number(0, 1), draw.choice(["cat", "owl"])
    inside = [name, number, None, True, b"raw", {1: None, (name, 2): draw.permutation(2)}]
    moved = [implementation(batch, "meta") for batch in (inside, name, None)]
    others = [{1, draw.whole(2, 9)}, np.arange(draw.whole(2, 5)), MappingProxyType({"a": 1})]
    same = implementation(others, "meta")
    return [*moved, {type(it).__name__: part(same, i) is it for i, it in enumerate(others)}]


@move_to_device.case
def a_namedtuple_in_a_namedtuple(implementation, draw):
    inner = Sample(draw.integers(0, 255, *draw.sizes(2)), draw.whole(0, 9))
    moved = implementation([Pair(inner, draw.permutation(2))], "meta")
    return [moved, {"the same type": [type(part(moved, 0)) is Pair,
                                      type(part(moved, 0, 0)) is Sample]}]  # fmt: skip


@move_to_device.case
def an_OrderedDict_and_a_subclass_of_list(implementation, draw):
    ordered = OrderedDict((key, draw.permutation(draw.whole(2, 5))) for key in ("b", "c", "a"))
    moved = implementation((ordered, Rows([draw.permutation(3)]), torch.Size([2])), "meta")
    order = list(part(moved, 0)) if isinstance(part(moved, 0), dict) else None
    types = [type(part(moved, place)).__name__ for place in range(3)]
    return {"items": moved, "types": types, "order of the keys": order}


@move_to_device.case
def a_packed_sequence(implementation, draw):
    packed = pack_sequence([draw.integers(0, 9, n, 2) for n in (3, 2)])
    moved = part(attempt(implementation, [packed], "meta"), 0)
    return [type(moved).__name__, moved.data if isinstance(moved, PackedSequence) else moved]


@move_to_device.case
def objects_that_know_how_to_move(implementation, draw):
    graph, encoding = Graph(draw.whole(3, 9)), Encoding(ids=draw.whole(3, 9))
    moved = implementation([graph, encoding], "cuda:1")  # they only note where they were sent
    return [facts(part(moved, 0)), facts(part(moved, 1)), vars(graph)]


@move_to_device.case
def an_object_whose_to_is_not_a_method(implementation, draw):
    letter = SimpleNamespace(to=draw.choice(["Ada", "Emmy"]), pages=2)
    moved = part(attempt(implementation, [letter, draw.normal(2)], "meta"), 0)
    return [moved is letter, facts(moved)]


@move_to_device.case
def a_batch_that_is_there_already(implementation, draw):
    tensor, features = draw.normal(*draw.sizes(2)).T, [draw.integers(0, 9, 3)]
    batch = {"x": tensor, "features": features, "pair": (tensor, "name")}
    moved = implementation(batch, draw.device)
    same = [part(moved, "x") is tensor, part(moved, "features", 0) is features[0],
            part(moved, "pair", 0) is tensor]  # fmt: skip
    new = [moved is not batch, part(moved, "features") is not features]
    return [moved, {"the same tensors": same, "new containers": new}]


@move_to_device.case
def to_the_cpu(implementation, draw):
    values = draw.normal(*draw.sizes(2), dtype=torch.float64)
    return implementation([values, {"label": draw.integers(0, 9, 3)}, Pair(1, values > 0)], "cpu")


@move_to_device.case
def tensors_that_require_grad(implementation, draw):
    leaf = draw.normal(3, requires_grad=True)
    moved = implementation([leaf, 2 * leaf], "meta")
    names = "requires_grad", "is_leaf", "dtype", "shape"
    return [[getattr(part(moved, i), name, None) for name in names] for i in (0, 1)]


@move_to_device.case
def empty_containers(implementation, draw):
    return [implementation(empty, "meta") for empty in ({}, [], (), {"nothing": ([], {})})]


def moving(batch, device, again, *, move=None, mapping=None, named=None, other=None):
    """The reference with parts to exchange; `again(item)` moves an item."""
    if move is None and callable(getattr(batch, "to", None)):
        return batch.to(device)
    if move is not None and (done := move(batch)) is not None:
        return done
    if isinstance(batch, dict):
        items = {key: again(value) for key, value in batch.items()}
        return mapping(items) if mapping else items
    if isinstance(batch, list):
        return [again(item) for item in batch]
    if isinstance(batch, tuple):
        items = [again(item) for item in batch]
        if hasattr(batch, "_fields"):
            return named(items) if named else type(batch)(*items)
        return tuple(items)
    return other(batch) if other else batch


@move_to_device.misconception(
    "Your answer knows a tuple of tensors and nothing else. Real batches are nested and hold "
    "strings and numbers: go into containers, and pass on what cannot move."
)
def only_a_tuple_of_tensors(batch, device):
    return tuple(item.to(device) for item in batch)


@move_to_device.misconception(
    "You look one level deep. A tensor in a list in a dict stays where it was; the function has to "
    "call itself on each item."
)
def one_level_deep(batch, device):
    def shallow(item):
        return item.to(device) if isinstance(item, torch.Tensor) else item

    return moving(batch, device, shallow)


@move_to_device.misconception(
    "Named tuples lose their type: they come back as plain tuples, without batch.label, or as "
    "another type. The constructor of the type itself takes the fields one by one, so named tuples "
    "need a branch of their own."
)
def named_tuples_lose_their_type(batch, device):
    def again(item):
        return named_tuples_lose_their_type(item, device)

    return moving(batch, device, again, named=tuple)


@move_to_device.misconception(
    "A named tuple gets all its items as one argument. Its constructor takes the fields one by "
    "one and raises."
)
def named_tuple_from_one_argument(batch, device):
    def again(item):
        return named_tuple_from_one_argument(item, device)

    if isinstance(batch, tuple) and not hasattr(batch, "to"):
        return type(batch)([again(item) for item in batch])
    return moving(batch, device, again)


@move_to_device.misconception(
    "You write into the caller's lists and dicts. The next user of that batch finds its tensors on "
    "another device; build new containers."
)
def writes_into_the_containers(batch, device):
    def again(item):
        return writes_into_the_containers(item, device)

    moved = moving(batch, device, again)
    if type(batch) is dict:
        batch.update(moved)
    elif type(batch) is list:
        batch[:] = moved
    return batch if type(batch) in (dict, list) else moved


@move_to_device.misconception(
    "Tensors stay where they were. A tensor does not move in place: .to(device) returns another "
    "tensor, and that is the one to keep."
)
def result_of_to_dropped(batch, device):
    def again(item):
        return result_of_to_dropped(item, device)

    def move(thing):
        return thing if callable(getattr(thing, "to", None)) else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "You ask for a tuple before you ask for .to. A packed sequence is a tuple with a .to of its "
    "own; taken apart, its batch_sizes leave the CPU, where they have to stay."
)
def tuple_before_to(batch, device):
    def again(item):
        return tuple_before_to(item, device)

    def move(thing):
        moves = callable(getattr(thing, "to", None)) and not isinstance(thing, tuple)
        return thing.to(device) if moves else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "You ask for containers before you ask for .to. A dict or tuple of a library that knows how to "
    "move itself is then taken apart; ask for .to first."
)
def containers_before_to(batch, device):
    def again(item):
        return containers_before_to(item, device)

    def move(thing):
        moves = callable(getattr(thing, "to", None)) and not isinstance(thing, (tuple, dict))
        return thing.to(device) if moves else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "Only tensors move in your answer. Other objects with a .to of their own, such as packed "
    "sequences or graphs, stay where they were or are taken apart."
)
def asks_for_tensors_only(batch, device):
    def again(item):
        return asks_for_tensors_only(item, device)

    def move(thing):
        return thing.to(device) if isinstance(thing, torch.Tensor) else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "An attribute called `to` is enough for you, and it was called although it is not a method. "
    "Ask whether it can be called."
)
def any_attribute_called_to(batch, device):
    def again(item):
        return any_attribute_called_to(item, device)

    def move(thing):
        return thing.to(device) if hasattr(thing, "to") else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "A subclass of dict or list comes back as that subclass. The task asks for the plain type: the "
    "constructor of a subclass may want something else."
)
def subclass_of_dict_kept(batch, device):
    def again(item):
        return subclass_of_dict_kept(item, device)

    return moving(batch, device, again, mapping=lambda items: type(batch)(items))


@move_to_device.misconception(
    "You ask for one exact type. Subclasses, such as OrderedDict, are then returned with their "
    "tensors where they were."
)
def exactly_dict(batch, device):
    def again(item):
        return exactly_dict(item, device)

    def move(thing):
        if callable(getattr(thing, "to", None)):
            return thing.to(device)
        return thing if isinstance(thing, dict) and type(thing) is not dict else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "Strings or other plain values make your answer raise. What holds no tensor is returned as it "
    "is: file names, numbers and None are part of many batches."
)
def raises_for_plain_values(batch, device):
    def refuse(thing):
        raise TypeError(f"cannot move {type(thing).__name__}")

    def again(item):
        return raises_for_plain_values(item, device)

    return moving(batch, device, again, other=refuse)


@move_to_device.misconception(
    "You turn NumPy arrays into tensors. Only what is a tensor moves; what the batch holds besides "
    "is returned as it is."
)
def arrays_become_tensors(batch, device):
    def again(item):
        return arrays_become_tensors(item, device)

    def convert(thing):
        return torch.from_numpy(thing).to(device) if isinstance(thing, np.ndarray) else thing

    return moving(batch, device, again, other=convert)


@move_to_device.misconception(
    "Lists come back as tuples. Each kind of container is to stay what it was."
)
def lists_become_tuples(batch, device):
    def again(item):
        return lists_become_tuples(item, device)

    moved = moving(batch, device, again)
    return tuple(moved) if isinstance(batch, list) else moved


@move_to_device.misconception(
    "Tensors that are on the device already are copied. .to returns the tensor itself there, at no "
    "cost; do not add a copy."
)
def copies_what_is_there(batch, device):
    def again(item):
        return copies_what_is_there(item, device)

    def move(thing):
        if isinstance(thing, torch.Tensor):
            return thing.to(device, copy=True)
        return thing.to(device) if callable(getattr(thing, "to", None)) else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "Moved tensors are cut from the graph. A move is differentiable; leave graph and requires_grad "
    "alone."
)
def detaches(batch, device):
    def again(item):
        return detaches(item, device)

    def move(thing):
        if isinstance(thing, torch.Tensor):
            return thing if thing.device == torch.device(device) else thing.detach().to(device)
        return thing.to(device) if callable(getattr(thing, "to", None)) else None

    return moving(batch, device, again, move=move)


@move_to_device.misconception(
    "When nothing has to move you hand back a container of the caller. Whoever changes the result "
    "then changes the batch; build new ones always."
)
def hands_back_the_containers(batch, device):
    def again(item):
        return hands_back_the_containers(item, device)

    moved = moving(batch, device, again)
    if type(batch) in (list, tuple) and all(a is b for a, b in zip(batch, moved, strict=True)):
        return batch
    if type(batch) is dict and all(batch[key] is moved[key] for key in batch):
        return batch
    return moved


@move_to_device.misconception(
    "When nothing in a list has to move you hand back the caller's own list. Whoever changes the "
    "result then changes the batch; build a new one always."
)
def hands_back_the_lists(batch, device):
    def again(item):
        return hands_back_the_lists(item, device)

    moved = moving(batch, device, again)
    if isinstance(batch, list) and all(a is b for a, b in zip(batch, moved, strict=True)):
        return batch
    return moved


@move_to_device.misconception(
    "Entries of a dict are missing in your result. A value of None is an answer too: the result "
    "has the same keys."
)
def drops_what_is_None(batch, device):
    def again(item):
        return drops_what_is_None(item, device)

    def without(items):
        return {key: value for key, value in items.items() if value is not None}

    return moving(batch, device, again, mapping=without)


move_to_device.hints(
    "A function that calls itself: which four kinds of containers are there, and what is not one?",
    "The order of the questions matters. Which one has to come first, if a packed sequence is a "
    "tuple and a library's batch is a dict?",
    "How does a named tuple differ from a tuple? It has `_fields`, and its constructor wants its "
    "items in another form.",
)
