"""A bug hunt: losses and gradients of several batches, kept apart."""

from collections.abc import Callable, Iterable
from itertools import cycle

import torch

from course_utils.exercise import exercise


@exercise(objectives=("autograd.accumulation", "autograd.graph_lifetime", "autograd.zeroing"))
def gradient_history(
    loss_fn: Callable, params: list[torch.Tensor], batches: Iterable
) -> tuple[list[float], list[list[torch.Tensor]]]:
    """Loss and gradients of each batch on its own, all at the current parameters.

    `params` are leaves that require grad. `loss_fn(params, batch)` returns a scalar tensor that
    depends on at least one of them. It may draw random numbers, so loss and gradient of a batch
    must come from one and the same call. `batches` can be anything a for loop takes.

    Return (losses, history). losses[i] is the loss of batch i as a Python float. history[i][j] is
    the gradient of that loss for params[j]: in memory of its own that no other entry and no .grad
    shares, without a graph, in the shape and dtype of params[j], and zeros if the loss does not use
    params[j]. With no batches, return ([], []).

    The values of the parameters stay as they are. Every params[j].grad is afterwards the same
    object with the same content as before the call (None stays None).
    """
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        gradients = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        losses.append(loss.item())
        # Two parameters can be given one and the same gradient tensor, hence the clone.
        history.append([gradient.detach().clone() for gradient in gradients])
    return losses, history


def linear_problem(draw, *rows):
    """Parameters of a linear model, and one batch of each number of rows."""
    width = draw.whole(2, 5)
    params = [draw.normal(width, requires_grad=True), draw.normal(1, requires_grad=True)]
    batches = [(draw.normal(n, width), draw.normal(n)) for n in rows]
    return params, batches


def squared_error(params, batch):
    """Mean squared error of a linear model."""
    weight, bias = params
    x, y = batch
    return ((x @ weight + bias - y) ** 2).mean()


def separate_storages(result, params):
    """How many different memories the gradients of a result and the .grads use, or words."""
    try:
        tensors = [gradient for row in result[1] for gradient in row]
        tensors += [p.grad for p in params if p.grad is not None]
        return len({tensor.untyped_storage().data_ptr() for tensor in tensors})
    except Exception:
        return "the second result is not a list of lists of tensors"


@gradient_history.case
def batches_of_different_size(implementation, draw):
    # The first batch is large in its values too: nothing of it may be left in the next gradients.
    params, batches = linear_problem(draw, *draw.sizes(3))
    batches[0] = tuple(1e4 * values for values in batches[0])
    result = implementation(squared_error, params, batches)
    return {"result": result, "grads after the call": [p.grad for p in params]}


@gradient_history.case
def gradients_that_were_waiting(implementation, draw):
    params, batches = linear_problem(draw, 3, 2)
    before = [draw.normal(*p.shape) for p in params]
    for p, gradient in zip(params, before, strict=True):
        p.grad = gradient
    result = implementation(squared_error, params, batches)
    return {
        "result": result,
        "grads after the call": [p.grad for p in params],
        "still the same objects": [p.grad is g for p, g in zip(params, before, strict=True)],
    }


@gradient_history.case
def a_parameter_that_is_not_used(implementation, draw):
    params = [
        draw.normal(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2,), (), (1, 3))
    ]

    def loss_fn(params, batch):
        return (params[batch] ** 3).sum()

    result = implementation(loss_fn, params, [1, 0, 0])
    return {
        "result": result,
        "grads after the call": [p.grad for p in params],
        "number of memories": separate_storages(result, params),
    }


@gradient_history.case
def a_loss_that_is_another_at_every_call(implementation, draw):
    params, batches = linear_problem(draw, 2, 3)
    # The factors are small, so that a loss that was rounded shows.
    factors = cycle(draw.uniform(4, low=0.5e-3, high=2e-3))

    def loss_fn(params, batch):
        return next(factors) * squared_error(params, batch)

    return implementation(loss_fn, params, batches)


@gradient_history.case
def batches_that_come_from_a_generator(implementation, draw):
    params, batches = linear_problem(draw, 2, 4)
    return implementation(squared_error, params, (batch for batch in batches))


@gradient_history.case
def no_batches(implementation, draw):
    params, _ = linear_problem(draw)
    return implementation(squared_error, params, iter(()))


@gradient_history.case
def whether_every_gradient_has_its_own_memory(implementation, draw):
    params = [draw.normal(3, requires_grad=True) for _ in range(2)]
    params[0].grad = draw.normal(3)

    def loss_fn(params, batch):
        return ((params[0] + params[1]) * batch).sum()

    result = implementation(loss_fn, params, [draw.normal(3) for _ in range(2)])
    return {"result": result, "number of memories": separate_storages(result, params)}


def by_backward(loss_fn, params, batches, *, between, keep):
    """History by backward: `between(params)` before each batch, `keep(p)` of each parameter."""
    waiting = [p.grad for p in params]
    losses, history = [], []
    for p in params:
        p.grad = torch.zeros_like(p)
    for batch in batches:
        between(params)
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        history.append([keep(p) for p in params])
    for p, gradient in zip(params, waiting, strict=True):
        p.grad = gradient
    return losses, history


def clear(params):
    """Zeros in every .grad."""
    for p in params:
        p.grad.zero_()


@gradient_history.misconception(
    "Your second entry is the sum of the first two gradients: backward adds to what is there."
)
def never_cleared(loss_fn, params, batches):
    return by_backward(
        loss_fn, params, batches, between=lambda params: None, keep=lambda p: p.grad.clone()
    )


@gradient_history.misconception(
    "You let .grad add up and subtracted the sum before. After a batch with large gradients the "
    "sum has no digits left for small ones, and the difference is mostly rounding. Ask for each "
    "gradient on its own."
)
def differences_of_running_sums(loss_fn, params, batches):
    losses, sums = by_backward(
        loss_fn, params, batches, between=lambda params: None, keep=lambda p: p.grad.clone()
    )
    before = [[torch.zeros_like(p.detach()) for p in params], *sums]
    rows = zip(sums, before, strict=False)
    return losses, [[a - b for a, b in zip(*row, strict=True)] for row in rows]


@gradient_history.misconception(
    "You stored the tensor that later batches write into, so all entries end up showing the last "
    "batch. Store something of your own."
)
def aliases_grad(loss_fn, params, batches):
    return by_backward(loss_fn, params, batches, between=clear, keep=lambda p: p.grad)


@gradient_history.misconception(
    "All your entries for a parameter are one tensor, its .grad, and it holds the sum over all "
    "batches: backward adds to what is there, and you stored the tensor itself."
)
def stores_the_running_sum(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        history.append([p.grad for p in params])
    return losses, history


@gradient_history.misconception(
    "You stored the loss tensor, and a stored loss tensor keeps its graph. Take the number."
)
def keeps_loss_tensors(loss_fn, params, batches):
    losses = []

    def remembering(params, batch):
        losses.append(loss_fn(params, batch))
        return losses[-1]

    _, history = gradient_history.reference(remembering, params, batches)
    return losses, history


@gradient_history.misconception(
    "The losses you return are tensors, cut from their graphs. What is asked for is the number, a "
    "Python float."
)
def losses_are_tensors(loss_fn, params, batches):
    losses, history = keeps_loss_tensors(loss_fn, params, batches)
    return [loss.detach() for loss in losses], history


@gradient_history.misconception(
    "You rounded the losses. That is for printing; a small loss loses its digits. What is asked "
    "for is the number as it is."
)
def rounds_the_losses(loss_fn, params, batches):
    losses, history = gradient_history.reference(loss_fn, params, batches)
    return [round(loss, 4) for loss in losses], history


@gradient_history.misconception(
    "You called loss_fn twice for a batch. With dropout or any other chance in it the second loss "
    "is another one, and the gradient does not belong to the number you stored."
)
def two_forward_passes(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        losses.append(loss_fn(params, batch).item())
        history += gradient_history.reference(loss_fn, params, [batch])[1]
    return losses, history


@gradient_history.misconception(
    "You cloned .grad, so the entries are apart. But each is a running sum: backward adds to what "
    "is there, also to what was waiting before the call. And .grad is left filled, or is None where"
    " the loss does not use a parameter."
)
def clones_the_running_sum(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        history.append([p.grad.clone() for p in params])
    return losses, history


@gradient_history.misconception(
    "You zeroed .grad by hand, but before the first backward it is None and has nothing to zero. "
    "And where it is a tensor, it is the caller's."
)
def zeroes_what_may_be_none(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        clear(params)
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        history.append([p.grad.clone() for p in params])
    return losses, history


@gradient_history.misconception(
    "You emptied .grad after each batch. What the caller had waiting there was added to your first "
    "entry, and then it was lost."
)
def empties_after_each_batch(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        history.append([torch.zeros_like(p.detach()) if p.grad is None else p.grad for p in params])
        for p in params:
            p.grad = None
    return losses, history


@gradient_history.misconception(
    "Every .grad is the same object as before, but with other numbers in it: it was zeroed and "
    "filled in place while you worked. Set the object aside before the first backward."
)
def overwrites_what_was_waiting(loss_fn, params, batches):
    waiting = [p.grad for p in params]
    losses, history = [], []
    for batch in batches:
        for p in params:
            if p.grad is not None:
                p.grad.zero_()
        loss = loss_fn(params, batch)
        loss.backward()
        losses.append(loss.item())
        gradients = [torch.zeros_like(p.detach()) if p.grad is None else p.grad for p in params]
        history.append([gradient.clone() for gradient in gradients])
    for p, gradient in zip(params, waiting, strict=True):
        p.grad = gradient
    return losses, history


@gradient_history.misconception(
    "The zeros for unused parameters are one tensor, reused in several entries. Writing into one "
    "of these would change the others; make new zeros each time."
)
def shares_the_zeros(loss_fn, params, batches):
    zeros = [torch.zeros_like(p.detach()) for p in params]
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        losses.append(loss.item())
        history.append(
            [z if g is None else g.clone() for g, z in zip(gradients, zeros, strict=True)]
        )
    return losses, history


@gradient_history.misconception(
    "Your zeros for unused parameters are float32. A gradient has the dtype of its parameter."
)
def zeros_of_another_dtype(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        losses.append(loss.item())
        history.append(
            [
                torch.zeros(p.shape, device=p.device) if g is None else g.clone()
                for g, p in zip(gradients, params, strict=True)
            ]
        )
    return losses, history


@gradient_history.misconception(
    "The caller had gradients waiting in .grad, and they are gone. Leave every .grad as you found"
    " it, or never touch it."
)
def wipes_existing(loss_fn, params, batches):
    losses, history = gradient_history.reference(loss_fn, params, batches)
    for p in params:
        p.grad = None
    return losses, history


@gradient_history.misconception(
    "The gradients of the last batch were left in .grad. Whoever calls you and then calls "
    "backward gets the sum of both."
)
def leaves_gradients(loss_fn, params, batches):
    losses, history = gradient_history.reference(loss_fn, params, batches)
    for p, gradient in zip(params, history[-1] if history else (), strict=False):
        p.grad = gradient.clone()
    return losses, history


@gradient_history.misconception(
    "The .grad you put back has the old numbers but is another tensor. Whoever held the old one "
    "no longer sees what happens to it; put the same object back."
)
def puts_back_a_copy(loss_fn, params, batches):
    waiting = [None if p.grad is None else p.grad.clone() for p in params]
    result = gradient_history.reference(loss_fn, params, batches)
    for p, gradient in zip(params, waiting, strict=True):
        p.grad = gradient
    return result


@gradient_history.misconception(
    "A parameter that the loss does not touch is legal here, and its gradient is zero. You let "
    "autograd complain about it."
)
def unused_raises(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        history.append([g.clone() for g in torch.autograd.grad(loss, params)])
        losses.append(loss.item())
    return losses, history


@gradient_history.misconception(
    "For a parameter that the loss does not touch you stored None. Here its gradient is a tensor "
    "of zeros."
)
def unused_none(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        history.append([None if g is None else g.clone() for g in gradients])
        losses.append(loss.item())
    return losses, history


@gradient_history.misconception(
    "You asked the batches for their length or for a batch by number, or went through them twice."
    " They may come from a generator, which can only be looped over, once."
)
def needs_a_length(loss_fn, params, batches):
    batches = [batches[i] for i in range(len(batches))]
    return gradient_history.reference(loss_fn, params, batches)


@gradient_history.misconception(
    "What you stored still has a graph: you recorded the backward pass or did not cut the "
    "history. Nobody differentiates these gradients again."
)
def keeps_graph(loss_fn, params, batches):
    losses, history = gradient_history.reference(loss_fn, params, batches)
    return losses, [[g.requires_grad_() for g in row] for row in history]


@gradient_history.misconception(
    "Two entries share their memory. Views of one tensor do, and autograd.grad may hand out one "
    "tensor twice: in a sum both terms get the very same gradient. Writing into one entry would "
    "change the other, so give each its own."
)
def shares_memory(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        gradients = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        losses.append(loss.item())
        history.append(list(gradients))
    return losses, history


@gradient_history.misconception(
    "You moved the parameters after each batch. Every gradient is asked for at the current "
    "parameters, and these stay."
)
def steps_between(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        ([loss], [gradients]) = gradient_history.reference(loss_fn, params, [batch])
        losses.append(loss)
        history.append(gradients)
        with torch.no_grad():
            for p, g in zip(params, gradients, strict=True):
                p -= 0.1 * g
    return losses, history


@gradient_history.broken
def broken_gradient_history(loss_fn, params, batches):
    losses, history = [], []
    for batch in batches:
        loss = loss_fn(params, batch)
        loss.backward(retain_graph=True)
        losses.append(loss)
        history.append([p.grad for p in params])
    return losses, history


gradient_history.hints(
    "Print the history after two batches, and then the .grad of a parameter. Which tensors are "
    "the same object?",
    "There is a way to get gradients without touching any .grad.",
    "What does it return for a parameter that the loss does not use? And for two parameters that "
    "are added to each other, are the two gradients two tensors?",
)
