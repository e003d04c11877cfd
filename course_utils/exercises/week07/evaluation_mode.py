"""Two switches for validation, and both put back as they were found."""

from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import modes


@exercise(objectives=("loop.modes", "loop.mode_restore"))
def evaluation_mode(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """A context manager for validation: `with evaluation_mode(model) as m:`; m is model itself.

    Inside the block every submodule of model, the root included, has training == False, and
    operations record no graph. Tensors computed inside can still be used as constants in autograd
    expressions later.

    When the block is left, every submodule has exactly the training flag it had when the block was
    entered, each its own, and gradient recording is what it was for the caller: on if it was on,
    off if it was off. This also holds when the block raises, whatever it raises (the stop button
    raises KeyboardInterrupt); the exception passes on.

    Parameters, buffers, gradients and requires_grad are not touched.
    """

    @contextmanager
    def block():
        found = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            for module, training in found:
                module.training = training

    return block()


def network(draw):
    """A model with parts below parts, in train mode, and an input."""
    inputs, hidden, outputs, batch = draw.sizes(4)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(hidden, outputs))
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), head)
    model[1].running_mean.copy_(draw.normal(hidden))
    model[0].weight.requires_grad_(False)
    return model.to(draw.device), draw.normal(batch, inputs)


def visit(implementation, model, x, last=lambda: None):
    """What holds inside the block and after it; last() is what the block does in the end."""
    seen = {}
    with implementation(model) as bound:
        seen["1. inside: the name after `as` is the model"] = bound is model
        seen["2. inside: training"] = modes(model)
        seen["3. inside: recording is on"] = torch.is_grad_enabled()
        seen["4. inside: output"] = model(x)
        last()
    return seen | after(model)


def after(model):
    """What holds after the block."""
    return {
        "5. after: training": modes(model),
        "6. after: recording is on": torch.is_grad_enabled(),
        "7. after: the model": model,
    }


# random=True: what a call returns is an object of whatever class; the cases look at what it does.
@evaluation_mode.case(random=True)
def a_model_in_train_mode(implementation, draw):
    model, x = network(draw)
    for parameter in model.parameters():
        parameter.grad = draw.normal(*parameter.shape)
    return visit(implementation, model, x)


@evaluation_mode.case(random=True)
def a_batch_norm_frozen_in_eval_mode(implementation, draw):
    model, x = network(draw)
    model[1].eval()
    return visit(implementation, model, x)


@evaluation_mode.case(random=True)
def a_root_in_eval_mode_and_a_block_that_calls_train(implementation, draw):
    model, x = network(draw)
    model.eval()
    model[2][0].train()
    return visit(implementation, model, x, last=model.train)


@evaluation_mode.case(random=True)
def a_layer_that_two_parts_share(implementation, draw):
    shared = nn.Dropout(0.5).eval()
    model = nn.Sequential(shared, nn.Sequential(shared, nn.Linear(2, 3))).to(draw.device)
    shared.eval()
    return visit(implementation, model, draw.normal(4, 2))


@evaluation_mode.case(random=True)
def a_caller_who_has_switched_recording_off(implementation, draw):
    model, x = network(draw)
    with torch.no_grad():
        return visit(implementation, model, x)


@evaluation_mode.case(random=True)
def a_block_that_raises(implementation, draw):
    model, _ = network(draw)
    model[2].eval()

    def block():
        with implementation(model):
            raise ArithmeticError("raised by the block")

    return {"1. what comes out": attempt(block)} | after(model)


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no Exception."""


@evaluation_mode.case(random=True)
def a_block_that_is_interrupted(implementation, draw):
    model, _ = network(draw)
    model[2].eval()
    seen = {"1. the interrupt passes on": False}
    try:
        with implementation(model):
            raise Interrupted
    except Interrupted:
        seen = {"1. the interrupt passes on": True}
    return seen | after(model)


@evaluation_mode.case(random=True)
def a_block_inside_a_block(implementation, draw):
    model, _ = network(draw)
    with implementation(model):
        with implementation(model):
            pass
        seen = {"1. after the inner one": modes(model), "2. recording": torch.is_grad_enabled()}
    return seen | after(model)


@evaluation_mode.case(random=True)
def modes_changed_between_the_call_and_the_block(implementation, draw):
    model, _ = network(draw)
    manager = implementation(model)
    seen = {"1. before the block": modes(model), "2. recording": torch.is_grad_enabled()}
    model[1].eval()
    with manager:
        pass
    return seen | after(model)


@evaluation_mode.case(random=True)
def a_result_used_in_a_loss_later(implementation, draw):
    model, x = network(draw)
    with implementation(model) as bound:
        target = bound(x)
    gain, upstream = draw.normal(*target.shape, requires_grad=True), draw.normal(*target.shape)
    return attempt(lambda: gradients(gain * target, gain, upstream))


def flags_of(model):
    """Every submodule with its flag."""
    return [(module, module.training) for module in model.modules()]


def put_back(flags):
    """Give every submodule its flag."""
    for module, training in flags:
        module.training = training


@evaluation_mode.misconception(
    "You turn everything to training on the way out. A layer that was frozen in eval mode, or a "
    "model that was in eval mode, is now training. Remember what you found."
)
@contextmanager
def always_model_train_on_exit(model):
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train()


@evaluation_mode.misconception(
    "Every submodule ends with the flag of the root: train(flag) goes on down the tree and writes "
    "it into all of them. Layers that had a setting of their own lose it. Each submodule should "
    "get its own flag, and keep it."
)
@contextmanager
def restores_the_root_flag_with_model_train(model):
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)


@evaluation_mode.misconception(
    "You kept a flag for each submodule and gave it back with train(flag), which goes on down the "
    "tree. A layer that two parts share is then overwritten by the second. Write the flag itself."
)
@contextmanager
def train_called_on_every_submodule(model):
    flags = flags_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in flags:
            module.train(training)


@evaluation_mode.misconception(
    "Only the direct children get their flags back. Parts lie below parts: `modules()` visits all "
    "of them, `children()` the first level."
)
@contextmanager
def restores_the_first_level(model):
    flags = [(module, module.training) for module in (model, *model.children())]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "The root and its direct children get their flags back with train(flag), which goes on down "
    "the tree: whatever lies below a child ends with the flag of the child. Every part has a flag "
    "of its own, at any depth."
)
@contextmanager
def train_called_on_the_first_level(model):
    flags = [(module, module.training) for module in (model, *model.children())]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in flags:
            module.train(training)


@evaluation_mode.misconception(
    "You note which parts were training, and wake those. The block may call train() itself: a part "
    "that came in eval mode then stays awake. Give every part its flag back, whichever it was."
)
@contextmanager
def restores_what_was_training(model):
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in trained:
            module.training = True


@evaluation_mode.misconception(
    "The model stays in eval mode. The next epoch would train without dropout and with batch norm "
    "on its running statistics, and nothing would say so."
)
@contextmanager
def never_restores(model):
    model.eval()
    with torch.no_grad():
        yield model


@evaluation_mode.misconception(
    "When the block raises, the code after the yield never runs and the model stays in eval mode. "
    "Put the restoring part where it runs in any case."
)
@contextmanager
def no_try_finally(model):
    flags = flags_of(model)
    model.eval()
    with torch.no_grad():
        yield model
    put_back(flags)


@evaluation_mode.misconception(
    "You restore in `except Exception` and after a block that went well. The stop button raises "
    "KeyboardInterrupt, which is no Exception, and the model stays in eval mode. Put the restoring "
    "part where it runs in any case."
)
@contextmanager
def restores_after_an_exception_only(model):
    flags = flags_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield model
    except Exception:
        put_back(flags)
        raise
    put_back(flags)


@evaluation_mode.misconception(
    "Recording is on inside the block: outputs require grad and hold the graph. eval() changes "
    "layers, not autograd; switch recording off as well. (no_grad as a decorator does not: on a "
    "generator it covers the generator's own lines, not the block that runs while it waits.)"
)
@contextmanager
def only_eval_no_grad_switch(model):
    flags = flags_of(model)
    model.eval()
    try:
        yield model
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "Recording is off and the modes are untouched. Dropout still drops, and batch norm uses the "
    "batch and moves its running statistics: no_grad knows nothing of modes."
)
@contextmanager
def only_no_grad(model):
    with torch.no_grad():
        yield model


@evaluation_mode.misconception(
    "Results of inference mode can never be saved for a backward, so a later loss that uses them "
    "fails. A weaker switch is what the task asks for."
)
@contextmanager
def inference_mode(model):
    flags = flags_of(model)
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "You switch recording on at the end, whatever it was before. A caller inside no_grad gets a "
    "graph all of a sudden. Put back what you found."
)
@contextmanager
def recording_on_at_the_end(model):
    flags = flags_of(model)
    model.eval()
    torch.set_grad_enabled(False)
    try:
        yield model
    finally:
        torch.set_grad_enabled(True)
        put_back(flags)


@evaluation_mode.misconception(
    "Recording stays off after the block. The switch belongs to the thread, not to your function; "
    "the next training step finds no graph."
)
@contextmanager
def recording_stays_off(model):
    flags = flags_of(model)
    model.eval()
    torch.set_grad_enabled(False)
    try:
        yield model
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "You froze the parameters in place of recording. Afterwards all of them require grad, also "
    "those that were frozen before. Leave requires_grad alone; there is a switch for recording."
)
@contextmanager
def freezes_the_parameters(model):
    flags = flags_of(model)
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        model.requires_grad_(True)
        put_back(flags)


@evaluation_mode.misconception(
    "Nothing is bound by `as`: what stands after the yield, or what __enter__ returns, is the "
    "value. It should be the model."
)
@contextmanager
def binds_nothing(model):
    with evaluation_mode.reference(model):
        yield


@evaluation_mode.misconception(
    "An exception of the block is swallowed. Validation that failed would look as if it had "
    "succeeded. Restore and let it pass on."
)
@contextmanager
def swallows_the_exception(model):
    flags = flags_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield model
    except Exception:
        pass
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "You change the model when the manager is made. The block may begin later, or never; the time "
    "to look and to switch is when it begins."
)
def switches_when_it_is_called(model):
    flags = flags_of(model)
    model.eval()

    @contextmanager
    def block():
        try:
            with torch.no_grad():
                yield model
        finally:
            put_back(flags)

    return block()


@evaluation_mode.misconception(
    "The flags are kept in one place for all blocks, on the modules or in a global. A block inside "
    "a block overwrites what the outer one had noted; keep them in a variable of each block."
)
@contextmanager
def flags_kept_on_the_modules(model):
    for module in model.modules():
        module.was_training = module.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in model.modules():
            module.training = module.was_training


@evaluation_mode.misconception(
    "You switch the model to eval mode and return no_grad's manager. That one puts recording back "
    "and nothing else, and it binds nothing by `as`."
)
def returns_no_grad(model):
    model.eval()
    return torch.no_grad()


@evaluation_mode.misconception(
    "You set the flag of the root by hand. Dropout and batch norm below it read their own flags; "
    "eval() goes down the tree."
)
@contextmanager
def only_the_root_in_eval(model):
    flags = flags_of(model)
    model.training = False
    try:
        with torch.no_grad():
            yield model
    finally:
        put_back(flags)


@evaluation_mode.misconception(
    "Your function is a generator, and `with` cannot use that as it is. contextlib has a decorator "
    "that turns a generator function into a maker of context managers."
)
def forgets_the_decorator(model):
    with evaluation_mode.reference(model):
        yield model


evaluation_mode.hints(
    "`model.modules()` visits the root and everything below it.",
    "Save pairs of a module and its flag before you call eval(). Which part must run in any case?",
    "A generator under `contextlib.contextmanager` needs its restoring part in `finally`. The "
    "recording switch can be a `with` inside yours.",
)
