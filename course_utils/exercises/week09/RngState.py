"""Generator states: where each sequence is now, in a form that safe loading accepts."""

import copy
import io
import random

import numpy as np
import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import difference, observe


@exercise(objectives=("repro.rng_state", "ckpt.safe_load"))
class RngState:
    """Capture and restore all global generators.

    They are Python's random, NumPy's global generator, torch's CPU generator, and torch's generator
    of every CUDA device if CUDA is available.
    """

    @staticmethod
    def capture() -> dict:
        """The states of all of them. Capturing draws nothing and changes nothing.

        After torch.save the dict can be loaded with torch.load(file) and no further argument.
        """
        name, keys, *rest = np.random.get_state()
        state = {
            "python": random.getstate(),
            "numpy": (name, keys.tolist(), *rest),  # an array would be refused by torch.load
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    @staticmethod
    def restore(state: dict) -> None:
        """Let all generators go on exactly as they would have gone on after that capture.

        state is what capture returned, or that dict after torch.save and torch.load. It may be
        restored any number of times, in any order with others, also in another process. state
        itself is left unchanged.
        """
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])


def start(draw, odd=False):
    """Seed all generators and draw from each; odd leaves half a pair of normal draws behind."""
    seed = draw.whole(0, 10**6)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    go_on(draw, odd)


def go_on(draw, odd=False):
    """Draw something from every generator."""
    draws(draw)
    if odd:
        random.gauss(0, 1), np.random.standard_normal()


def draws(draw):
    """Some numbers from every generator, uniform ones first so that no pair is broken."""
    return {
        "Python": [random.random() for _ in range(2)],
        "NumPy": np.random.random(2),
        "torch": torch.rand(2),
        "torch on the device": torch.rand(2, device=draw.device),
    }


def normal_draws():
    """Normal numbers, which Python and NumPy make in pairs and keep the second of."""
    return {
        "Python": [random.gauss(0, 1) for _ in range(3)],
        "NumPy": np.random.standard_normal(3),
        "torch": torch.randn(3),
    }


def equal_bits(first, again):
    """For each generator, whether both draws are equal to the last bit."""
    return {name: list(first[name]) == list(again[name]) for name in first}


def through_a_file(state):
    """The state after torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@RngState.case
def capturing_alone(implementation, draw):
    start(draw)
    implementation.capture()
    first = draws(draw)
    implementation.capture()
    return {"draws after it": first, "draws after another one": draws(draw)}


@RngState.case
def captured_and_restored(implementation, draw):
    start(draw)
    state = implementation.capture()
    first = draws(draw)
    result = implementation.restore(state)
    return {"draws after capture": first, "returned": result, "draws after restore": draws(draw)}


@RngState.case
def after_an_odd_number_of_normal_draws(implementation, draw):
    start(draw, odd=True)
    state = implementation.capture()
    first = normal_draws()
    implementation.restore(state)
    again = normal_draws()
    return {"draws after capture": first, "draws after restore": again,
            "equal to the last bit": equal_bits(first, again)}  # fmt: skip


@RngState.case
def restored_twice_from_one_state(implementation, draw):
    start(draw)
    state = implementation.capture()
    before, seen = observe(state), {}
    for time in ("first", "second"):
        go_on(draw)
        error = attempt(implementation.restore, state)
        seen[f"{time} restore"] = [error, draws(draw)]
    return seen | {"the state is unchanged": difference(observe(state), before, (0, 0)) is None}


@RngState.case
def two_states_in_both_orders(implementation, draw):
    start(draw)
    states = [implementation.capture()]
    go_on(draw, odd=True)
    states.append(implementation.capture())
    seen = {}
    for names in ((0, 1), (1, 0)):
        for name in names:
            implementation.restore(states[name])
            seen[f"state {name + 1} in order {names}"] = [draws(draw), normal_draws()]
    return seen


@RngState.case
def through_a_file_and_back(implementation, draw):
    start(draw, odd=True)
    state = implementation.capture()
    first = normal_draws()
    loaded = attempt(through_a_file, state)
    if isinstance(loaded, Exception):
        return {"torch.load": loaded}
    before = observe(loaded)
    error = attempt(implementation.restore, loaded)
    again = normal_draws()
    unchanged = difference(observe(loaded), before, (0, 0)) is None
    return {"draws after capture": first, "error": error, "draws after restore": again,
            "equal to the last bit": equal_bits(first, again),
            "the loaded state is unchanged": unchanged}  # fmt: skip


class Parts:
    """The answer in parts that can be exchanged, as classmethods so that a part can be replaced."""

    @classmethod
    def capture(cls):
        state = {"python": cls.get_python(), "numpy": cls.get_numpy(), "torch": cls.get_torch()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    @classmethod
    def restore(cls, state):
        cls.set_python(state["python"])
        cls.set_numpy(state["numpy"])
        cls.set_torch(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])

    @staticmethod
    def get_python():
        return random.getstate()

    @staticmethod
    def get_numpy():
        name, keys, *rest = np.random.get_state()
        return (name, keys.tolist(), *rest)

    @staticmethod
    def get_torch():
        return torch.get_rng_state()

    set_python = staticmethod(random.setstate)
    set_numpy = staticmethod(lambda state: np.random.set_state(state))
    set_torch = staticmethod(torch.set_rng_state)


def nothing(*state):
    """What stands for a part that was forgotten."""


@RngState.misconception(
    "You keep torch's state alone. Python's and NumPy's generators go on from wherever they are "
    "when you restore, and the runs drift apart."
)
class torch_only(Parts):
    get_python = set_python = get_numpy = set_numpy = staticmethod(nothing)


@RngState.misconception(
    "NumPy's global generator was not restored. It has a state of its own, and many data pipelines "
    "draw from it. (What np.random.default_rng() makes is yet another generator.)"
)
class numpy_forgotten(Parts):
    get_numpy = set_numpy = staticmethod(nothing)


@RngState.misconception(
    "The generator of Python's module `random` is missing. Shuffles and augmentation often use it."
)
class python_forgotten(Parts):
    get_python = set_python = staticmethod(nothing)


@RngState.misconception(
    "torch.load refuses your dict by default, for something of NumPy's own is in it, such as the "
    "array in its state. Store numbers or a tensor, and turn them back in restore."
)
class numpy_tuple_stored_as_it_is(Parts):
    get_numpy = staticmethod(lambda: np.random.get_state())


@RngState.misconception(
    "You stored torch's initial seed. That is where the sequence began, not where it is now: after "
    "restoring, the run draws its first numbers again."
)
class initial_seed_stored(Parts):
    get_torch = staticmethod(torch.initial_seed)
    set_torch = staticmethod(torch.manual_seed)


@RngState.misconception(
    "capture seeds the generators, so that it knows a seed to store. The running experiment then "
    "goes on differently because you looked at it. Read the states; set nothing."
)
class reseeds_while_capturing(Parts):
    @classmethod
    def capture(cls):
        torch.manual_seed(1234)
        random.seed(1234)
        np.random.seed(1234)
        return super().capture()


@RngState.misconception(
    "capture draws a number to use as a seed. That draw is missing in the running experiment: "
    "everything after it is shifted."
)
class draws_a_seed_while_capturing(Parts):
    @classmethod
    def capture(cls):
        seed = int(torch.randint(0, 2**31, ()))
        return super().capture() | {"torch": seed}

    set_torch = staticmethod(torch.manual_seed)


@RngState.misconception(
    "NumPy's cached normal number was dropped. It makes normal draws in pairs and keeps the second "
    "one; without it the next normal draw is another. Its state has five parts."
)
class cached_normal_draw_forgotten(Parts):
    @staticmethod
    def set_numpy(state):
        np.random.set_state((*state[:3], 0, 0.0))


@RngState.misconception(
    "NumPy's cached normal number passed through float32, the dtype that torch gives to floats. It "
    "has 64 bits: the next normal draw is close to the right one, and not equal."
)
class cached_normal_draw_through_float32(Parts):
    @staticmethod
    def get_numpy():
        *state, spare = Parts.get_numpy()
        return (*state, torch.tensor(spare).item())


@RngState.misconception(
    "Of Python's state you keep the big tuple alone. Beside it stands the second of a pair of "
    "normal draws, if one is left; dropped, random.gauss goes on differently."
)
class cached_normal_draw_of_python_forgotten(Parts):
    @staticmethod
    def set_python(state):
        random.setstate((*state[:2], None))


@RngState.misconception(
    "Of NumPy's state you keep the 624 numbers and not the position among them. The position says "
    "which of them comes next."
)
class position_forgotten(Parts):
    @staticmethod
    def set_numpy(state):
        np.random.set_state((*state[:2], 0, *state[3:]))


@RngState.misconception(
    "NumPy's 624 numbers passed through float32, which has 24 bits for them. Each of them needs "
    "32: use whole numbers that are wide enough."
)
class keys_through_float32(Parts):
    @staticmethod
    def get_numpy():
        name, keys, *rest = np.random.get_state()
        return (name, torch.tensor(keys.astype(np.float32)), *rest)

    @staticmethod
    def set_numpy(state):
        keys = state[1].double().numpy().clip(0, 2**32 - 1).astype(np.uint32)
        np.random.set_state((state[0], keys, *state[2:]))


@RngState.misconception(
    "restore takes entries out of the dict. The second time there is nothing left: `state` belongs "
    "to the caller, who may want to restore it again."
)
class takes_the_state_apart(Parts):
    @classmethod
    def restore(cls, state):
        whole = dict(state)
        state.clear()
        super().restore(whole)


@RngState.misconception(
    "The state is kept in the class, and restore takes the latest one whatever it is given. Use "
    "the dict that was passed in: there may be several, and another process has none of yours."
)
class latest_capture_restored(Parts):
    latest = None

    @classmethod
    def capture(cls):
        cls.latest = super().capture()
        return copy.deepcopy(cls.latest)

    @classmethod
    def restore(cls, state):
        super().restore(cls.latest)


@RngState.misconception(
    "restore stops after capture: the states are right, and putting them back is missing."
)
class restores_nothing(Parts):
    restore = staticmethod(nothing)


@RngState.misconception(
    "restore seeds the generators. A seed is the beginning of a sequence; after a while the run is "
    "somewhere else in it, and only the state says where."
)
class reseeds_in_restore(Parts):
    @classmethod
    def restore(cls, state):
        seed = torch.initial_seed()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)


RngState.hints(
    "np.random.get_state() has five parts. Which of them would torch.load refuse?",
    "Convert on both ways. The 624 numbers are unsigned and use all of their 32 bits.",
    "Try the way through a file: save the dict, load it with no further argument, restore, draw.",
)
