"""Observations: what a case saw, frozen into plain data that can be compared, described and sent between processes.

Nothing here calls a method that an answer's own class could have changed, except on `nn.Module`s.
"""

from __future__ import annotations

import binascii
import dataclasses
import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

MOST_ITEMS = 20_000
DEEPEST = 40
LONGEST_TEXT = 10_000

# (relative, absolute), wide enough for another order of the same operations.
TOLERANCES = {
    torch.float64: (1e-6, 1e-8),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (5e-2, 1e-2),
    torch.complex64: (1e-4, 1e-5),
    torch.complex128: (1e-6, 1e-8),
}
EXACT = (0.0, 0.0)
FLOAT_TOLERANCE = TOLERANCES[torch.float32]  # a Python float often comes out of a float32 tensor


class SeenTensor(NamedTuple):
    """A tensor or NumPy array at the time it was seen; `values` is detached and has its own memory."""

    kind: str
    values: torch.Tensor
    shape: tuple[int, ...]
    dtype: str
    device: str
    requires_grad: bool
    layout: str


class SeenItems(NamedTuple):
    """A container: its kind, its keys (None for sequences), and its items, each observed."""

    kind: str
    keys: tuple[str, ...] | None
    items: tuple[Any, ...]


class SeenError(NamedTuple):
    """An exception: the names of its classes from its own to the most general, and its message."""

    lineage: tuple[str, ...]
    message: str


class SeenOther(NamedTuple):
    """Anything else, known by the words for its type alone."""

    kind: str


class Difference(NamedTuple):
    """The first place where two observations differ."""

    path: str
    aspect: str
    got: str
    expected: str


NAMED_TUPLE = "tuple "  # how the kind of a NamedTuple begins
SCALARS = {int, float, bool, type(None), complex}
_JSON_SCALARS = {str, float, bool, type(None)}  # with whole numbers of moderate size: what JSON gives back as it was
_PLAIN = {*SCALARS, str, bytes, torch.dtype, torch.device}
SEEN = {SeenTensor, SeenItems, SeenError, SeenOther}


def observe(value: Any) -> Any:
    """Freeze a value: tensors are cloned, containers followed, everything bounded in depth and number.

    Observing an observation gives it back. Call it in a case on state that changes later.
    """
    return _observe(value, [MOST_ITEMS], 0)


def _observe(value: Any, room: list[int], depth: int) -> Any:
    kind = type(value)
    if kind in SCALARS or kind in SEEN:
        return value
    if kind is str:
        return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}… ({len(value)} characters)"
    if kind is torch.Tensor or kind is nn.Parameter:
        return _observe_tensor(value)
    room[0] -= 1
    if room[0] < 0 or depth > DEEPEST:
        return SeenOther("more than can be compared")
    if kind in (tuple, list, torch.Size):
        name = "list" if kind is list else "tuple"
        items = [item if type(item) in SCALARS else _observe(item, room, depth + 1) for item in value[:MOST_ITEMS]]
        if len(value) > MOST_ITEMS:
            items.append(SeenOther(f"… {len(value)} items in all"))
        return SeenItems(name, None, tuple(items))
    return _observer(kind)(value, room, depth)


def _observe_tensor(value: torch.Tensor) -> Any:
    if value.is_nested:
        return SeenItems("nested tensor", None, tuple(map(_observe_tensor, value.unbind())))
    values = value.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    return SeenTensor(
        "tensor",
        values.clone() if values.device.type in ("cpu", "meta") else values.cpu(),
        tuple(value.shape),
        str(value.dtype),
        value.device.type,
        value.requires_grad,
        "strided" if value.layout is torch.strided else str(value.layout),
    )


def _observe_array(value: np.ndarray, room: list[int], depth: int) -> Any:
    try:
        values = torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError):  # a dtype that torch does not have
        return SeenItems(f"NumPy array of {value.dtype}", None, (_observe(np.ndarray.tolist(value), room, depth + 1),))
    return SeenTensor("NumPy array", values, value.shape, str(value.dtype), "cpu", False, "strided")


def _observe_numpy_scalar(value: np.generic, room: list[int], depth: int) -> SeenItems:
    item = value.item()
    return SeenItems(f"numpy.{type(value).__name__}", None, (item if type(item) in {*SCALARS, str} else str(item),))


def _observe_mapping(value: Mapping[Any, Any], room: list[int], depth: int) -> SeenItems:
    pairs = [
        (
            _key_in_words(key, room, depth),
            _observe(item, room, depth + 1),
        )
        for key, item in list(dict.items(value))[:MOST_ITEMS]
    ]
    pairs.sort(key=lambda pair: pair[0])
    return SeenItems("dict", tuple(key for key, _ in pairs), tuple(item for _, item in pairs))


def _key_in_words(key: Any, room: list[int], depth: int) -> str:
    """A key as text; text that reads like another value keeps its quotes, so that "1" is not 1."""
    if type(key) is not str:
        return short(_observe(key, room, depth + 1))
    return repr(key) if re.fullmatch(r"[-+.\de]+|-?inf|nan|True|False|None|[('\"].*", key) else key


def _observe_set(value: set[Any] | frozenset[Any], room: list[int], depth: int) -> SeenItems:
    items = [_observe(item, room, depth + 1) for item in list(value)[:MOST_ITEMS]]
    return SeenItems("set", None, tuple(sorted(items, key=short)))


def _observe_sequence(value: tuple[Any, ...] | list[Any] | deque[Any], room: list[int], depth: int) -> Any:
    fields = getattr(type(value), "_fields", None)
    if isinstance(fields, tuple):
        items = tuple(_observe(item, room, depth + 1) for item in tuple.__iter__(value))
        return SeenItems(f"{NAMED_TUPLE}{type(value).__name__}", tuple(map(str, fields)), items)
    base = next(base for base in (list, tuple, deque) if isinstance(value, base))
    return _observe(list(base.__iter__(value)), room, depth)._replace(kind=type(value).__name__)


def _observe_module(value: nn.Module, room: list[int], depth: int) -> Any:
    state: dict[str, Any] = {}
    try:
        for name, part in nn.Module.named_modules(value):
            state[f"{name or 'module'}.training"] = part.training
        for name, parameter in nn.Module.named_parameters(value):
            state[name], state[f"{name}.grad"] = parameter, parameter.grad
        state.update(nn.Module.named_buffers(value))
    except (AttributeError, TypeError):
        return SeenOther("a module whose __init__ did not run")
    return _observe_mapping(state, room, depth)._replace(kind="module")


def _observe_error(value: BaseException, room: list[int], depth: int) -> SeenError:
    try:
        message = BaseException.__str__(value)[:LONGEST_TEXT]
    except Exception:
        message = ""
    return SeenError(_lineage(type(value)), message)


@cache
def _lineage(kind: type[BaseException]) -> tuple[str, ...]:
    return tuple(base.__name__ for base in kind.__mro__ if issubclass(base, BaseException))


def _observe_dataclass(value: Any, room: list[int], depth: int) -> SeenItems:
    fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return _observe_mapping(fields, room, depth)._replace(kind=type(value).__name__)


def _observe_other(value: Any, room: list[int], depth: int) -> SeenOther:
    return SeenOther(_kind_in_words(value))


_KINDS: tuple[tuple[type | tuple[type, ...], Callable[..., Any]], ...] = (
    (np.ndarray, _observe_array),
    (np.generic, _observe_numpy_scalar),
    (dict, _observe_mapping),
    ((set, frozenset), _observe_set),
    ((tuple, list, deque), _observe_sequence),
    (nn.Module, _observe_module),
    (BaseException, _observe_error),
    ((torch.dtype, torch.device, range, PurePath), lambda value, room, depth: SeenOther(str(value))),
    (bytes, lambda value, room, depth: SeenItems("bytes", None, (_observe(value.hex(), room, depth),))),
)


@cache
def _observer(kind: type) -> Callable[..., Any]:
    for base, observe_kind in _KINDS:
        if issubclass(kind, base):
            return observe_kind
    return _observe_dataclass if dataclasses.is_dataclass(kind) else _observe_other


def _kind_in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of the class {type(value).__name__}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"an object of type {name}" if name not in ("function", "generator") else f"a {name}"


def alike(mine: Any, right: Any) -> bool:
    """Whether two live values would surely be observed as exactly the same. False in doubt.

    `right` comes from trusted code and bounds how far this goes; no method of an answer's own class is called.
    """
    kind = type(right)
    if type(mine) is not kind:
        return False
    if kind in _PLAIN:
        return mine == right or (mine != mine and right != right)
    if kind in SEEN:
        return difference(mine, right, EXACT) is None
    if kind is torch.Tensor or kind is nn.Parameter:
        return _alike_tensors(mine, right)
    if kind in (list, tuple, torch.Size):
        return len(mine) == len(right) and all(map(alike, mine, right))
    if kind in (dict, OrderedDict):
        return len(mine) == len(right) and (not right or _alike_dicts(mine, right))
    if kind is np.ndarray:
        same_form = mine.dtype == right.dtype and mine.shape == right.shape and not right.dtype.hasobject
        return same_form and mine.tobytes() == right.tobytes()
    if issubclass(kind, nn.Module):
        return _alike_modules(mine, right)
    return issubclass(kind, BaseException)


def _alike_tensors(mine: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        mine.dtype is right.dtype
        and mine.requires_grad is right.requires_grad
        and mine.layout is right.layout is torch.strided
        and ((mine.is_cpu and right.is_cpu) or mine.device == right.device)
        and (mine.shape == right.shape if right.is_meta else mine.equal(right) or _alike_but_for_nan(mine, right))
    )


def _alike_but_for_nan(mine: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        mine.shape == right.shape
        and right.is_floating_point()
        and right.dtype.itemsize > 1  # torch does no arithmetic in float8
        and torch.equal(*(t.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf) for t in (mine, right)))
        and torch.equal(mine.isnan(), right.isnan())
    )


def _alike_dicts(mine: dict[Any, Any], right: dict[Any, Any]) -> bool:
    return (
        list(map(type, mine)) == [str] * len(right)
        and mine.keys() == right.keys()
        and all(alike(mine[key], item) for key, item in right.items())
    )


def _alike_modules(mine: nn.Module, right: nn.Module) -> bool:
    mine_state, right_state = vars(mine), vars(right)
    if mine_state.keys() != right_state.keys() or mine_state["training"] is not right_state["training"]:
        return False
    parameters = right_state["_parameters"]
    return (
        alike(mine_state["_parameters"], parameters)
        and alike(mine_state["_buffers"], right_state["_buffers"])
        and all(
            alike(mine_state["_parameters"][name].grad, parameter.grad)
            for name, parameter in parameters.items()
            if parameter is not None
        )
        and alike(mine_state["_modules"], right_state["_modules"])
    )


# --- comparison -------------------------------------------------------------------------------------------------


def difference(got: Any, expected: Any, tolerance: tuple[float, float] | None = None) -> Difference | None:
    """The first difference between two observations, or None.

    Compared in this order: type, shape or keys, dtype, device, requires_grad, values. NaN equals NaN, nothing is
    broadcast, bool is not int. `tolerance` (relative, absolute) replaces that of every dtype.
    An exception equals one of the same class or of a subclass of it; messages are not compared.
    """
    return _difference(got, expected, tolerance, "")


def _difference(got: Any, expected: Any, tolerance: tuple[float, float] | None, path: str) -> Difference | None:
    kind = type(expected)
    if type(got) is not kind:
        return Difference(path, "type", short(got), short(expected))
    if kind is SeenTensor:
        return _tensor_difference(got, expected, tolerance, path)
    if kind is SeenItems:
        return _items_difference(got, expected, tolerance, path)
    if kind is float or kind is complex:
        same = _close(got, expected, tolerance or FLOAT_TOLERANCE)
    elif kind is SeenError:
        same = expected.lineage[0] in got.lineage
    else:
        same = got == expected
    return None if same else Difference(path, "value", short(got), short(expected))


def _close(got: complex, expected: complex, tolerance: tuple[float, float]) -> bool:
    if got == expected or (got != got and expected != expected):
        return True
    if isinstance(expected, float) and math.isinf(expected):
        return False
    return abs(got - expected) <= tolerance[1] + tolerance[0] * abs(expected)


def _items_difference(
    got: SeenItems, expected: SeenItems, tolerance: tuple[float, float] | None, path: str
) -> Difference | None:
    if expected.kind == "tuple" and got.kind.startswith(NAMED_TUPLE):
        got = SeenItems("tuple", None, got.items)
    if got.kind != expected.kind:
        return Difference(path, "type", short(got), short(expected))
    if got.keys != expected.keys:
        return Difference(path, "keys", f"keys {list(got.keys or ())}", f"keys {list(expected.keys or ())}")
    if len(got.items) != len(expected.items):
        return Difference(path, "length", _items(len(got.items)), _items(len(expected.items)))
    for position, (mine, right) in enumerate(zip(got.items, expected.items, strict=True)):
        if mine is right or (mine == right if type(mine) is int and type(right) is int else False):
            continue
        key = position if expected.keys is None else expected.keys[position]
        found = _difference(mine, right, tolerance, f"{path}[{key!r}]")
        if found is not None:
            return found
    return None


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def _tensor_difference(
    got: SeenTensor, expected: SeenTensor, tolerance: tuple[float, float] | None, path: str
) -> Difference | None:
    for aspect in ("kind", "shape", "dtype", "device", "requires_grad", "layout"):
        mine, right = getattr(got, aspect), getattr(expected, aspect)
        if mine != right:
            return Difference(path, aspect, f"{aspect} {mine}", f"{aspect} {right}")
    if got.device == "meta" or torch.equal(got.values, expected.values):
        return None
    return _value_difference(got, expected, tolerance, path)


def _value_difference(
    got: SeenTensor, expected: SeenTensor, tolerance: tuple[float, float] | None, path: str
) -> Difference | None:
    mine, right = got.values, expected.values
    if right.is_floating_point() and right.dtype.itemsize == 1:
        mine, right = mine.float(), right.float()  # torch does no arithmetic in float8
    if right.is_floating_point() or right.is_complex():
        relative, absolute = tolerance or TOLERANCES.get(right.dtype, FLOAT_TOLERANCE)
        close = torch.isclose(mine, right, rtol=relative, atol=absolute, equal_nan=True)
    else:
        close = mine == right
    if bool(close.all()):
        return None
    place = [int(i) for i in (~close).nonzero()[0]]
    position = f"[{', '.join(map(str, place))}]" if place else ""
    at = tuple(place)
    return Difference(path + position, "value", *_told_apart(mine[at].item(), right[at].item()))


def _told_apart(mine: Any, right: Any) -> tuple[str, str]:
    """Two numbers in words, with as many digits as it takes to see that they differ."""
    words = _number(mine), _number(right)
    for digits in (9, 17):
        if words[0] == words[1] and isinstance(mine, float) and isinstance(right, float):
            words = f"{mine:.{digits}g}", f"{right:.{digits}g}"
    return words


# --- in words ---------------------------------------------------------------------------------------------------


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if value % 1 or abs(value) >= 1e6 else f"{value:.1f}"
    if not isinstance(value, int) or value.bit_length() < 67:
        return repr(value)
    return f"{float(value):.6g}" if value.bit_length() < 1024 else f"a whole number of {value.bit_length()} bits"


def short(seen: Any, limit: int = 160) -> str:
    """An observation in a few words: values where they are few, shape and dtype always."""
    text = _in_words(seen)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _in_words(seen: Any) -> str:
    kind = type(seen)
    if kind is SeenTensor:
        return _tensor_in_words(seen)
    if kind is SeenError:
        message = seen.message.strip().split("\n")[0]
        return f"{seen.lineage[0]}: {message}" if message else seen.lineage[0]
    if kind is SeenOther:
        return seen.kind
    if kind is not SeenItems:
        return _number(seen) if kind in (int, float) else repr(seen)
    return _items_in_words(seen)


def _items_in_words(seen: SeenItems) -> str:
    items = [_in_words(item) for item in seen.items[:20]] + ["…"] * (len(seen.items) > 20)
    if seen.keys is not None:
        inner = ", ".join(f"{key}: {item}" for key, item in zip(seen.keys, items, strict=False))
        return f"{{{inner}}}" if seen.kind == "dict" else f"{seen.kind.removeprefix(NAMED_TUPLE)}({inner})"
    inner = ", ".join(items)
    brackets = {"list": "[{}]", "tuple": "({},)" if len(items) == 1 else "({})", "set": "{{{}}}"}
    return brackets.get(seen.kind, seen.kind + "({})").format(inner)


def _tensor_in_words(seen: SeenTensor) -> str:
    facts = f"{seen.dtype.removeprefix('torch.')} {seen.kind} of shape {seen.shape}"
    facts += f" on {seen.device}" if seen.device != "cpu" else ""
    facts += ", requires grad" if seen.requires_grad else ""
    if seen.device == "meta" or seen.layout != "strided":
        return f"{facts}, {seen.layout}"
    if not seen.values.numel():
        return f"{facts}, no elements"
    if seen.values.numel() > 16:
        first = ", ".join(_number(_rounded(value)) for value in seen.values.flatten()[:6].tolist())
        return f"{facts}, {first}, …"
    return f"{facts}, {_nested(seen.values.tolist())}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _nested(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(_nested(value) for value in values)}]"
    return _number(_rounded(values))


# --- between processes ------------------------------------------------------------------------------------------


def encode(seen: Any) -> Any:
    """An observation as JSON values; tensors as raw bytes in base64. `decode` gives it back."""
    kind = type(seen)
    if kind in _JSON_SCALARS or (kind is int and seen.bit_length() < 64):
        return seen
    if kind is SeenTensor:
        raw = b"" if seen.device == "meta" else _raw_bytes(seen.values)
        data = [binascii.b2a_base64(raw, newline=False).decode(), str(seen.values.dtype).removeprefix("torch.")]
        return ["tensor", seen.kind, data, list(seen.shape), *seen[3:]]
    if kind is SeenItems:
        keys = None if seen.keys is None else list(seen.keys)
        return ["items", seen.kind, keys, [encode(item) for item in seen.items]]
    if kind is SeenError:
        return ["error", list(seen.lineage), seen.message]
    if kind is SeenOther:
        return ["other", seen.kind]
    return ["complex", seen.real, seen.imag] if kind is complex else ["int", hex(seen)]


def _raw_bytes(values: torch.Tensor) -> bytes:
    try:
        return values.numpy(force=True).tobytes()
    except TypeError:  # a dtype that NumPy does not have
        flat = torch.empty(values.numel(), dtype=values.dtype, device="cpu")  # of stride 1, which `view` needs
        return flat.copy_(values.reshape(-1)).view(torch.uint8).numpy().tobytes()


def decode(data: Any) -> Any:
    """The observation that `encode` turned into JSON values. Raises ValueError, TypeError or KeyError otherwise."""
    if type(data) in _JSON_SCALARS or type(data) is int:
        return data
    match data:
        case ["tensor", kind, [raw, dtype], shape, *rest]:
            return SeenTensor(kind, _decode_values(raw, dtype, [0] if "meta" in rest else shape), tuple(shape), *rest)
        case ["items", kind, keys, items]:
            decoded = tuple(decode(item) for item in items)
            return SeenItems(kind, None if keys is None else tuple(keys), decoded)
        case ["error", lineage, message]:
            return SeenError(tuple(lineage), message)
        case ["other", kind]:
            return SeenOther(kind)
        case ["complex", real, imaginary]:
            return complex(real, imaginary)
        case ["int", text]:
            return int(text, 16)
    raise ValueError("not an observation")


_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


def _decode_values(raw: str, dtype: str, shape: list[int]) -> torch.Tensor:
    data = bytearray(binascii.a2b_base64(raw))
    try:
        flat = torch.frombuffer(data, dtype=_DTYPES[dtype]) if data else torch.empty(0, dtype=_DTYPES[dtype])
        return flat.reshape(shape)
    except RuntimeError as error:
        raise ValueError(f"not an observation: {error}") from error
