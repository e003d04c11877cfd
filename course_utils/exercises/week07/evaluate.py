"""Loss and accuracy of a model that is measured and not changed."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import give_gradients, modes
from course_utils.observe import observe


@exercise(objectives=("loop.modes", "loop.mode_restore", "loop.sample_weighting"))
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[float, float]:
    """Return (mean loss, accuracy) over all samples, Python floats; accuracy lies in [0, 1].

    The model maps x (B, …) to logits (B, C); y is int64 of shape (B,); the prediction is the argmax
    over the classes. loss_fn(logits, y) is the mean over the batch, 0-dim, and is called exactly
    once for each batch. Batch sizes may differ; no batch is empty. batches may be a generator.

    Move x and y to the device of the model's parameters. The model is evaluated in eval mode and
    no graph is recorded: neither inside the model nor in the logits that loss_fn sees.

    Afterwards, also when the model raises, whatever it raises (KeyboardInterrupt too), every
    submodule has the mode it had before; parameters, their requires_grad, buffers and .grad are
    unchanged, and gradient recording is as before. The exception passes on.
    Raise ValueError if batches yields nothing.
    """
    device = next(model.parameters()).device
    found = [(module, module.training) for module in model.modules()]
    total, correct, samples = 0.0, 0, 0
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches:
                x, y = x.to(device), y.to(device)
                logits = model(x)
                total += loss_fn(logits, y) * len(x)
                correct += (logits.argmax(dim=1) == y).sum()
                samples += len(x)
    finally:
        for module, training in found:
            module.training = training
    if samples == 0:
        raise ValueError("there are no batches to evaluate")
    return float(total / samples), float(correct / samples)


def classifier(draw, inputs, classes):
    """A model with dropout, and batch norm whose running statistics are not those of a batch."""
    model = nn.Sequential(nn.BatchNorm1d(inputs), nn.Dropout(0.5), nn.Linear(inputs, classes))
    model[0].running_mean.copy_(draw.normal(inputs))
    model[0].running_var.copy_(draw.uniform(inputs, low=0.5, high=2.0))
    with torch.no_grad():
        model[2].weight.mul_(4)
    return model.to(draw.device)


def class_batches(draw, model, sizes, wrong):
    """Batches with `wrong` many samples each that the model, in eval mode, gets wrong."""
    inputs, classes = model[2].in_features, model[2].out_features
    was, batches = modes_of(model), []
    model.eval()
    for size, misses in zip(sizes, wrong, strict=True):
        x = draw.normal(size, inputs)
        right = model(x).argmax(dim=1)
        shift = (torch.arange(size, device=x.device) < misses).long()
        batches.append((x.cpu(), ((right + shift) % classes).cpu()))
    for module, training in was:
        module.training = training
    return batches


def modes_of(model):
    """Every submodule with its flag."""
    return [(module, module.training) for module in model.modules()]


def measure(implementation, model, batches):
    """What came back, what the loss function saw, and what is left of the model."""
    calls, graphs = [], {"in the model": False, "in the logits": False}

    def loss_fn(logits, y):
        calls.append(len(logits))
        graphs["in the logits"] |= logits.requires_grad
        return F.cross_entropy(logits, y)

    def look(layer, given, output):
        graphs["in the model"] |= output.requires_grad

    hook = model[2].register_forward_hook(look)
    try:
        result = attempt(implementation, model, batches, loss_fn)
    finally:
        hook.remove()
    return {
        "1. (loss, accuracy)": result,
        "2. rows in each call of loss_fn": None if isinstance(result, Exception) else calls,
        "3. a graph was recorded": graphs,
        "4. training afterwards": modes(model),
        "5. recording is on afterwards": torch.is_grad_enabled(),
        "6. model afterwards": model,
    }


# random=True: a wrong answer may change the model on the way; the cases show where it ends.
@evaluate.case(random=True)
def a_last_batch_of_one(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    return measure(implementation, model, class_batches(draw, model, (6, 6, 1), (2, 3, 0)))


@evaluate.case(random=True)
def two_batches_from_a_generator(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    batches = class_batches(draw, model, (4, 3), (1, 2))
    return measure(implementation, model, (batch for batch in batches))


@evaluate.case(random=True)
def a_first_batch_of_one_and_gradients_that_are_waiting(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    give_gradients(draw, model)
    return measure(implementation, model, class_batches(draw, model, (1, 7, 2), (0, 4, 1)))


@evaluate.case(random=True)
def a_frozen_batch_norm_and_a_dropout_in_two_places_both_in_eval_mode(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    model.append(nn.Sequential(model[1]))
    model[0].eval().requires_grad_(False)
    model[1].eval()
    return measure(implementation, model, class_batches(draw, model, (5,), (2,)))


@evaluate.case(random=True)
def a_model_in_eval_mode_but_for_its_dropout(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3)).eval()
    model[1].train()
    return measure(implementation, model, class_batches(draw, model, (4, 2), (1, 1)))


@evaluate.case(random=True)
def a_caller_who_has_switched_recording_off(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    batches = class_batches(draw, model, (3,), (1,))
    with torch.no_grad():
        return measure(implementation, model, batches)


@evaluate.case(random=True)
def a_batch_that_makes_the_model_raise(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    batches = class_batches(draw, model, (3, 2), (1, 1))
    x, y = batches[1]
    batches[1] = x[:, 1:].clone(), y
    model[0].eval()
    return measure(implementation, model, batches)


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no Exception."""


@evaluate.case(random=True)
def an_interrupt_in_the_model(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    batches = class_batches(draw, model, (3,), (1,))
    model[1].eval()

    def interrupt(layer, given):
        raise Interrupted

    hook, passed_on = model[2].register_forward_pre_hook(interrupt), False
    try:
        implementation(model, batches, F.cross_entropy)
    except Interrupted:
        passed_on = True
    hook.remove()
    return {
        "1. the interrupt passes on": passed_on,
        "2. training afterwards": modes(model),
        "3. recording is on afterwards": torch.is_grad_enabled(),
    }


@evaluate.case(random=True)
def no_batches(implementation, draw):
    model = classifier(draw, *draw.sizes(2, low=3))
    return {
        "1. an empty list": observe(measure(implementation, model, [])),
        "2. an iterator that yields nothing": measure(implementation, model, iter(())),
    }


def put_back(found):
    """Give every submodule its flag."""
    for module, training in found:
        module.training = training


def sums(model, batches, loss_fn, dim=1):
    """For each batch: its mean loss, how many predictions were right, its size."""
    device = next(model.parameters()).device
    rows = []
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        logits = model(x)
        predictions = logits.argmax(dim=dim)
        right = sum(a == b for a, b in zip(predictions.tolist(), y.tolist(), strict=False))
        rows.append((loss_fn(logits, y).item(), right, len(x)))
    return rows


def means(rows):
    """Both means over samples."""
    if not rows:
        raise ValueError("no batches")
    samples = sum(size for *_, size in rows)
    loss = sum(loss * size for loss, _, size in rows) / samples
    return loss, sum(right for _, right, _ in rows) / samples


def measured(model, batches, loss_fn, **options):
    """The rows, taken with both switches right."""
    found = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            return sums(model, batches, loss_fn, **options)
    finally:
        put_back(found)


@evaluate.misconception(
    "The layers are not in eval mode. Dropout keeps dropping and batch norm uses the batch, and "
    "moves its running statistics: the metrics are noisy and the model changes while it is "
    "measured."
)
def eval_mode_not_set(model, batches, loss_fn):
    with torch.no_grad():
        return means(sums(model, batches, loss_fn))


@evaluate.misconception(
    "The mode switch does not stop autograd: every batch builds a graph that nobody uses. Switch "
    "recording off as well."
)
def graph_recorded(model, batches, loss_fn):
    found = modes_of(model)
    model.eval()
    try:
        return means(sums(model, batches, loss_fn))
    finally:
        put_back(found)


@evaluate.misconception(
    "Neither switch is there: layers behave as in training, running statistics move, and each "
    "batch builds a graph that nobody uses."
)
def neither_switch(model, batches, loss_fn):
    return means(sums(model, batches, loss_fn))


@evaluate.misconception(
    "Both results are means of batch means. A last batch of one sample counts as much as a full "
    "one; weight by batch size. (And a generator has no len().)"
)
def mean_of_batch_means(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    return means([(loss, right / size, 1) for loss, right, size in rows])


@evaluate.misconception(
    "The accuracy is right, the loss is a mean of batch means. loss_fn has divided by the batch "
    "size already; multiply it back before you add."
)
def mean_of_batch_losses(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    _, accuracy = means(rows)
    return sum(loss for loss, *_ in rows) / len(rows), accuracy


@evaluate.misconception(
    "The loss is weighted by samples and the accuracy is not: it is a mean of batch accuracies. "
    "Count the correct predictions and divide by all samples once."
)
def mean_of_batch_accuracies(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    loss, _ = means(rows)
    return loss, sum(right / size for _, right, size in rows) / len(rows)


@evaluate.misconception(
    "The model stays in eval mode. The next epoch would run without dropout and with frozen batch "
    "norm. Put the modes back."
)
def leaves_the_model_in_eval(model, batches, loss_fn):
    model.eval()
    with torch.no_grad():
        return means(sums(model, batches, loss_fn))


@evaluate.misconception(
    "Everything is in train mode at the end, also layers that were frozen on purpose and a model "
    "that came in eval mode. Give each submodule its own flag back."
)
def model_train_at_the_end(model, batches, loss_fn):
    model.eval()
    try:
        with torch.no_grad():
            return means(sums(model, batches, loss_fn))
    finally:
        model.train()


@evaluate.misconception(
    "You end with model.train(), which wakes layers that were frozen on purpose, and when the "
    "model raises it is not reached at all. Each submodule has a flag of its own, to be put back "
    "in any case."
)
def model_train_as_the_last_line(model, batches, loss_fn):
    model.eval()
    with torch.no_grad():
        rows = sums(model, batches, loss_fn)
    model.train()
    return means(rows)


@evaluate.misconception(
    "Every submodule ends with the flag of the root: train(flag) writes it into all of them, so a "
    "batch norm that was frozen wakes up. Each submodule should get its own flag, and keep it."
)
def restores_the_root_flag(model, batches, loss_fn):
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return means(sums(model, batches, loss_fn))
    finally:
        model.train(training)


@evaluate.misconception(
    "You kept a flag for each submodule and gave it back with train(flag), which goes on down the "
    "tree. A layer that stands in two places is then overwritten by the second. Write the flag "
    "itself."
)
def train_called_on_every_submodule(model, batches, loss_fn):
    found = modes_of(model)
    try:
        return means(measured(model, batches, loss_fn))
    finally:
        for module, training in found:
            module.train(training)


@evaluate.misconception(
    "You wake the submodules that were training with train(), which goes on down the tree: from "
    "the root it wakes frozen layers too, and nothing puts these back."
)
def wakes_what_was_training(model, batches, loss_fn):
    found = modes_of(model)
    try:
        return means(measured(model, batches, loss_fn))
    finally:
        for module, training in found:
            if training:
                module.train()


@evaluate.misconception(
    "You restore in `except Exception` and after a pass that went well. The stop button raises "
    "KeyboardInterrupt, which is no Exception, and the model stays in eval mode. Put the restoring "
    "part where it runs in any case."
)
def restores_after_an_exception_only(model, batches, loss_fn):
    found = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            rows = sums(model, batches, loss_fn)
    except Exception:
        put_back(found)
        raise
    put_back(found)
    return means(rows)


@evaluate.misconception(
    "The logits are detached after the model has recorded its graph. The loss has none, and the "
    "memory for the activations was spent all the same. Recording has to be off before the model "
    "runs."
)
def detaches_the_logits(model, batches, loss_fn):
    found = modes_of(model)
    model.eval()
    try:
        return means(sums(model, batches, lambda logits, y: loss_fn(logits.detach(), y)))
    finally:
        put_back(found)


@evaluate.misconception(
    "You froze the parameters in place of recording. Afterwards all of them require grad, also "
    "those that were frozen before. Leave requires_grad alone; there is a switch for recording."
)
def freezes_the_parameters(model, batches, loss_fn):
    model.requires_grad_(False)
    try:
        return means(measured(model, batches, loss_fn))
    finally:
        model.requires_grad_(True)


@evaluate.misconception(
    "The loss gets something else than the logits, such as their softmax. The largest class stays "
    "the largest, so the accuracy is right; but loss_fn is made for what the model returns."
)
def softmax_before_the_loss(model, batches, loss_fn):
    def on_shares(logits, y):
        return loss_fn(logits.softmax(dim=1), y)

    return means(measured(model, batches, on_shares))


@evaluate.misconception(
    "loss_fn is called once, on all logits together. The numbers are right, but the logits of the "
    "whole pass are kept for it. Call it for each batch, and add up."
)
def one_loss_for_all_batches(model, batches, loss_fn):
    kept = []

    def keep(logits, y):
        kept.append((logits, y))
        return logits.sum()

    _, accuracy = means(measured(model, batches, keep))
    with torch.no_grad():
        logits, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return loss_fn(logits, y).item(), accuracy


@evaluate.misconception(
    "When the model raises, your restoring lines are never reached and the model stays in eval "
    "mode. Put them where they run in any case."
)
def no_try_finally(model, batches, loss_fn):
    found = modes_of(model)
    model.eval()
    with torch.no_grad():
        rows = sums(model, batches, loss_fn)
    put_back(found)
    return means(rows)


@evaluate.misconception(
    "Recording stays off afterwards. The switch belongs to the thread, not to your function; the "
    "next training step finds no graph."
)
def recording_stays_off(model, batches, loss_fn):
    torch.set_grad_enabled(False)
    return means(measured(model, batches, loss_fn))


@evaluate.misconception(
    "You switch recording on at the end, whatever it was before. Put back what you found."
)
def recording_on_at_the_end(model, batches, loss_fn):
    try:
        return means(measured(model, batches, loss_fn))
    finally:
        torch.set_grad_enabled(True)


@evaluate.misconception(
    "You cleared the gradients. Measuring a model leaves everything as it was, also what somebody "
    "may be accumulating in .grad."
)
def clears_the_gradients(model, batches, loss_fn):
    model.zero_grad()
    return means(measured(model, batches, loss_fn))


@evaluate.misconception(
    "The accuracy is in percent. Here it is a share, between 0 and 1."
)  # fmt: skip
def accuracy_in_percent(model, batches, loss_fn):
    loss, accuracy = means(measured(model, batches, loss_fn))
    return loss, 100 * accuracy


@evaluate.misconception(
    "You return how many predictions were right. The accuracy is their share of all samples."
)
def counts_and_does_not_divide(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    return means(rows)[0], float(sum(right for _, right, _ in rows))


@evaluate.misconception(
    "The argmax runs over the samples. Logits are (B, C): each row is one sample, and the largest "
    "entry of its row is the prediction."
)
def argmax_over_the_samples(model, batches, loss_fn):
    return means(measured(model, batches, loss_fn, dim=0))


@evaluate.misconception(
    "Without batches you divide by zero. Raise ValueError where there was nothing to measure."
)
def nothing_to_divide_by(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    return means(rows) if rows else 1 / 0


@evaluate.misconception(
    "You ask batches itself whether it is empty. A list answers; an iterator counts as True even "
    "when it has nothing to yield. That is known only once you have been through it."
)
def asks_batches_whether_it_is_empty(model, batches, loss_fn):
    if not batches:
        raise ValueError("no batches")
    return nothing_to_divide_by(model, batches, loss_fn)


@evaluate.misconception(
    "Without batches you return numbers. A loss of 0 would be the best there ever was; raise "
    "ValueError where there was nothing to measure."
)
def zeros_for_no_batches(model, batches, loss_fn):
    rows = measured(model, batches, loss_fn)
    return means(rows) if rows else (0.0, 0.0)


@evaluate.misconception(
    "You return tensors. The caller wants two Python floats to print and to keep: convert once, at "
    "the end."
)
def returns_tensors(model, batches, loss_fn):
    both = means(measured(model, batches, loss_fn))
    return tuple(next(model.parameters()).new_tensor(value).detach() for value in both)


evaluate.hints(
    "There are two switches, and both are needed.",
    "Count correct predictions, not rates, and add up losses that are worth a whole batch.",
    "In which mode is the model if its forward raises in the middle?",
)
