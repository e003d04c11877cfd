"""One rank writes the checkpoint, and all of them go on together."""

from collections.abc import Callable

import torch
from torch import nn

from course_utils.cases import same_storage
from course_utils.exercise import exercise


@exercise(objectives=("dist.rank0",))
def save_on_rank_zero(
    model: nn.Module,
    rank: int,
    save: Callable[[dict], None],
    barrier: Callable[[], None],
) -> None:
    """Rank 0 calls save(state) once; after that every rank, 0 too, calls barrier() once.

    The barrier is reached even if save raises, whatever it raises; the error then goes on to the
    caller. The function returns None.

    state is a dict with the keys of the unwrapped model's state_dict. Only nn.DataParallel and
    nn.parallel.DistributedDataParallel are wrappers; they hold the model as .module. Any other
    model may have a child called module, which is part of it. The values, parameters and buffers,
    are detached copies on the CPU that do not change when training goes on. model stays as it is.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    try:
        if rank == 0:
            inner = model.module if isinstance(model, wrappers) else model
            state = inner.state_dict()
            save({name: value.detach().cpu().clone() for name, value in state.items()})
    finally:
        barrier()


class WithoutProcesses(nn.parallel.DistributedDataParallel):
    """DistributedDataParallel as a mere wrapper: no process group, nothing is communicated."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


class HasModule(nn.Module):
    """A model with a child of its own that is called module."""

    def __init__(self, inputs):
        super().__init__()
        self.module = nn.Linear(inputs, 2)
        self.head = nn.Linear(2, 1, bias=False)


class Tied(nn.Module):
    """One weight under two names, numbers in half precision, a buffer that is never saved."""

    def __init__(self, inputs):
        super().__init__()
        self.encode = nn.Linear(inputs, inputs, dtype=torch.bfloat16)
        self.decode = nn.Linear(inputs, inputs, bias=False, dtype=torch.bfloat16)
        self.decode.weight = self.encode.weight
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("mask", torch.ones(inputs), persistent=False)


def build(draw, *, own_child=False, tied=False):
    """A model on the device under test."""
    inputs = draw.whole(3, 5)
    if tied:
        return Tied(inputs).to(draw.device).eval()
    if own_child:
        return HasModule(inputs).to(draw.device)
    return nn.Sequential(nn.Linear(inputs, 3), nn.BatchNorm1d(3)).to(draw.device)


def called(implementation, model, rank, *, fails=None):
    """What was called, in order, and the saved states as they are after training went on."""
    events, states = [], []

    def save(state, *_):
        events.append("save")
        states.append(state)
        if fails:
            raise fails

    def barrier(*_):
        events.append("barrier")

    try:
        result = implementation(model, rank, save, barrier)
    except (Exception, KeyboardInterrupt) as error:
        result = error
    own = list(model.state_dict().values())
    with torch.no_grad():
        for tensor in own:
            tensor.add_(1)
    return {
        "1. result": result,
        "2. calls": events,
        "3. saved states, looked at after more training": states,
        "4. memory shared with the model": [
            name
            for state in states
            if isinstance(state, dict)
            for name, value in state.items()
            if any(same_storage(value, tensor) for tensor in own)
        ],
        "5. what save raised is what arrives": result is fails,
    }


@save_on_rank_zero.case
def a_plain_model_on_rank_0(implementation, draw):
    return called(implementation, build(draw), 0)


@save_on_rank_zero.case
def other_ranks(implementation, draw):
    model = build(draw)
    return [called(implementation, model, rank) for rank in (1, 3)]


@save_on_rank_zero.case
def wrapped_in_data_parallel(implementation, draw):
    return called(implementation, nn.DataParallel(build(draw)), 0)


@save_on_rank_zero.case
def wrapped_in_distributed_data_parallel(implementation, draw):
    model = WithoutProcesses(build(draw))
    return [called(implementation, model, rank) for rank in (0, 1)]


@save_on_rank_zero.case
def a_child_of_its_own_called_module(implementation, draw):
    return called(implementation, build(draw, own_child=True), 0)


@save_on_rank_zero.case
def a_wrapped_model_with_a_child_called_module(implementation, draw):
    wrapper = draw.choice((nn.DataParallel, WithoutProcesses))
    return called(implementation, wrapper(build(draw, own_child=True)), 0)


@save_on_rank_zero.case
def bfloat16_and_one_weight_under_two_names(implementation, draw):
    return called(implementation, build(draw, tied=True), 0)


@save_on_rank_zero.case
def a_save_that_fails(implementation, draw):
    model = nn.DataParallel(build(draw))
    return called(implementation, model, 0, fails=OSError(28, "No space left on device"))


@save_on_rank_zero.case
def a_save_that_is_interrupted(implementation, draw):
    return called(implementation, build(draw), 0, fails=KeyboardInterrupt())


def unwrapped(model):
    """The model inside a wrapper."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def copies(model, inner=unwrapped):
    """The state as it is to be saved."""
    return {name: value.cpu().clone() for name, value in inner(model).state_dict().items()}


def saves(model, rank, save, barrier, *, state=copies, writers="0", waits="all"):
    """The answer in parts that can be exchanged. waits: "all", "rank 0", "none"."""
    try:
        if rank == 0 or writers == "all":
            save(state(model))
    finally:
        if waits == "all" or (waits == "rank 0" and rank == 0):
            barrier()


@save_on_rank_zero.misconception(
    "Every rank saves. N processes then write one file at the same time, and what is left in it "
    "is luck."
)
def every_rank_saves(model, rank, save, barrier):
    return saves(model, rank, save, barrier, writers="all")


@save_on_rank_zero.misconception(
    "Only rank 0 reaches the barrier. A barrier waits for all; alone it never returns. Put it "
    "where every rank passes."
)
def barrier_on_rank_zero(model, rank, save, barrier):
    return saves(model, rank, save, barrier, waits="rank 0")


@save_on_rank_zero.misconception(
    "There is no barrier. The other ranks may read the file before rank 0 has written it."
)
def no_barrier(model, rank, save, barrier):
    return saves(model, rank, save, barrier, waits="none")


@save_on_rank_zero.misconception(
    "The barrier comes before the save. The others then go on while rank 0 is still writing; they "
    "are to wait until it is done."
)
def barrier_first(model, rank, save, barrier):
    barrier()
    if rank == 0:
        save(copies(model))


@save_on_rank_zero.misconception(
    "When save raises, the barrier is skipped. Rank 0 stops with an error, and all the others "
    "wait for it forever. Which block of Python runs in any case?"
)
def barrier_skipped_after_an_error(model, rank, save, barrier):
    if rank == 0:
        save(copies(model))
    barrier()


@save_on_rank_zero.misconception(
    "The barrier is reached after an ordinary error, and not after a KeyboardInterrupt, which is "
    "no Exception. Which block of Python runs in any case?"
)
def barrier_after_exceptions_only(model, rank, save, barrier):
    try:
        if rank == 0:
            save(copies(model))
    except Exception:
        barrier()
        raise
    barrier()


@save_on_rank_zero.misconception(
    "The error of save is swallowed. The run goes on without a checkpoint, and nobody knows."
)
def error_swallowed(model, rank, save, barrier):
    try:
        saves(model, rank, save, barrier)
    except BaseException:
        return


@save_on_rank_zero.misconception(
    "You raise a new error in place of the one that save raised. Its number, and the line that it "
    "came from, are lost. Let the error itself go on."
)
def error_made_anew(model, rank, save, barrier):
    try:
        saves(model, rank, save, barrier)
    except (OSError, KeyboardInterrupt) as error:
        raise type(error)(str(error)) from None


@save_on_rank_zero.misconception(
    "The state of the wrapper is saved. Its keys begin with `module.` and do not load into the "
    "bare model."
)
def prefix_kept(model, rank, save, barrier):
    def state(model):
        return copies(model, lambda wrapper: wrapper)

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "Whatever has an attribute module is unwrapped. A model may have a child of that name, and "
    "the rest of it is then lost. Ask for the type of the wrapper."
)
def any_module_attribute_unwrapped(model, rank, save, barrier):
    def state(model):
        return copies(model, lambda wrapper: getattr(wrapper, "module", wrapper))

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "You remove the text `module.` from the keys. A model with a child of that name loses part of "
    "its own keys as well. Take the state of the inner model; then there is nothing to remove."
)
def text_removed_from_keys(model, rank, save, barrier):
    def state(model):
        whole = copies(model, lambda wrapper: wrapper)
        return {name.replace("module.", ""): value for name, value in whole.items()}

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "You remove a leading `module.` from every key, wrapper or not. A plain model with a child of "
    "that name loses part of its keys. First ask for the type of the wrapper."
)
def leading_text_removed(model, rank, save, barrier):
    def state(model):
        whole = copies(model, lambda wrapper: wrapper)
        return {name.removeprefix("module."): value for name, value in whole.items()}

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "Only one of the two wrappers is recognized. nn.DataParallel and DistributedDataParallel both "
    "put the model behind .module."
)
def one_wrapper_unknown(model, rank, save, barrier):
    def state(model):
        only = nn.parallel.DistributedDataParallel
        return copies(model, lambda m: m.module if isinstance(m, only) else m)

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "The state holds the live tensors. A state dict shares memory with the weights, and on the "
    "CPU .cpu() is no copy: the next step of training changes what was to be saved."
)
def references(model, rank, save, barrier):
    def state(model):
        return dict(unwrapped(model).state_dict())

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "Buffers are missing from the state. BatchNorm's running statistics are no parameters, and "
    "part of the model all the same; state_dict has both."
)
def parameters_only(model, rank, save, barrier):
    def state(model):
        named = unwrapped(model).named_parameters()
        return {name: value.detach().cpu().clone() for name, value in named}

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "You collect named_parameters and named_buffers. That is not the state dict: a weight with two "
    "names comes once, and buffers that are not to be saved come along."
)
def parameters_and_buffers_by_name(model, rank, save, barrier):
    def state(model):
        inner = unwrapped(model)
        named = [*inner.named_parameters(), *inner.named_buffers()]
        return {name: value.detach().cpu().clone() for name, value in named}

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "What is saved is float32, whatever the model holds. A copy keeps the dtype."
)
def saved_as_float32(model, rank, save, barrier):
    def state(model):
        whole = copies(model)
        return {k: v.float() if v.is_floating_point() else v for k, v in whole.items()}

    return saves(model, rank, save, barrier, state=state)


@save_on_rank_zero.misconception(
    "The copies still have a graph, or require gradients: a clone of a parameter is part of "
    "autograd. Detach first."
)
def copies_with_a_graph(model, rank, save, barrier):
    def state(model):
        whole = unwrapped(model).state_dict(keep_vars=True)
        return {name: value.cpu().clone() for name, value in whole.items()}

    return saves(model, rank, save, barrier, state=state)


save_on_rank_zero.hints(
    "How do you tell a wrapper from a model with a child called module? Ask for its type.",
    "Which block of Python runs whether or not there was an error, and lets the error go on?",
    "What three things does a tensor of a state dict still share with the model: memory, device, "
    "autograd?",
)
