"""Which samples of a batch influence which, by derivatives."""

import torch
from torch import nn

from course_utils.exercise import exercise
from course_utils.exercises.week10._debugging import Spreads


@exercise(objectives=("debug.batch_leak",))
def leaks_across_batch(model: nn.Module, x: torch.Tensor, index: int) -> list[int]:
    """Which other samples influence the output of sample `index`? A sorted list of their indices.

    x has shape (N, ...) and is floating point; model(x) has shape (N, ...) and is differentiable in
    x; 0 <= index < N. Sample j belongs in the list when j != index and *some* element of
    model(x)[index] has a derivative that is not exactly 0 with respect to *some* element of x[j].

    Call the model once, in the mode it is in. Leave x (its values, requires_grad and grad), the
    .grad of every parameter, and the mode as they are.
    """
    own = x.detach().clone().requires_grad_()
    output = model(own)[index]
    touched = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for element in output.flatten():
        (grad,) = torch.autograd.grad(element, own, retain_graph=True, allow_unused=True)
        if grad is not None:
            touched |= grad.flatten(1).any(dim=1) if grad.dim() > 1 else grad != 0
    touched[index] = False
    return touched.nonzero().flatten().tolist()


class LastColumn(nn.Module):
    """The last output column is the mean of that column over all rows; the others stand alone."""

    def forward(self, x):
        mean = x[:, -1:].mean(0, keepdim=True).expand(len(x), 1)
        return torch.cat([x[:, :-1] * 2, mean], dim=1)


class Cancels(nn.Module):
    """Adds the next row to one column and subtracts it from the other."""

    def forward(self, x):
        other = x.roll(-1, dims=0).sum(1)
        return torch.stack([x[:, 0] + other, x[:, 1] - other], dim=1)


class Contrast(nn.Module):
    """Adds the difference of the two columns of the next row."""

    def forward(self, x):
        other = x.roll(-1, dims=0)
        return x + other[:, :1] - other[:, 1:]


class FromFirst(nn.Module):
    """Every row sees the rows before it."""

    def forward(self, x):
        return x.cumsum(dim=0)


def calls_of(model):
    """A list that grows by one with each forward of the model."""
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
    return calls


def seen(implementation, draw, model, x, *indices):
    """The answers, the modes in which the model ran, and what x requires afterwards."""
    model.to(draw.device)
    calls = calls_of(model)
    found = [implementation(model, x, index) for index in indices]
    return {"found": found, "mode in each forward": calls, "x": (x.requires_grad, x.grad)}


@leaks_across_batch.case
def samples_that_stand_alone(implementation, draw):
    batch, inputs, hidden = draw.sizes(3, low=3)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 2))
    return seen(implementation, draw, model, draw.normal(batch, inputs), 0, batch - 1)


@leaks_across_batch.case
def each_row_sees_the_one_before(implementation, draw):
    batch, inputs = draw.sizes(2, low=3)
    model = nn.Sequential(nn.Linear(inputs, 3), Spreads(draw.number(0.5, 1.5)))
    return seen(implementation, draw, model, draw.normal(batch, inputs), 0, 2)


@leaks_across_batch.case
def influences_that_cancel_in_the_sum(implementation, draw):
    return seen(implementation, draw, Cancels(), draw.normal(draw.whole(3, 6), 2), 1)


@leaks_across_batch.case
def influences_that_cancel_within_a_sample(implementation, draw):
    return seen(implementation, draw, Contrast(), draw.normal(draw.whole(3, 6), 2), 0)


@leaks_across_batch.case
def a_weak_influence(implementation, draw):
    factor = draw.number(1e-20, 3e-20)
    return seen(implementation, draw, Spreads(factor), draw.normal(draw.whole(3, 6), 3), 1)


@leaks_across_batch.case
def a_batch_of_zeros(implementation, draw):
    x = draw.normal(draw.whole(3, 6), 2) * 0
    return seen(implementation, draw, Spreads(draw.number(0.5, 2)), x, 2)


@leaks_across_batch.case
def a_leak_in_the_last_output_column_only(implementation, draw):
    batch = draw.whole(4, 6)
    return seen(implementation, draw, LastColumn(), draw.normal(batch, 3), draw.whole(0, batch - 1))


@leaks_across_batch.case
def batch_norm_in_training_mode(implementation, draw):
    batch = draw.whole(4, 6)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    found = seen(implementation, draw, model, draw.normal(batch, 3), draw.whole(0, batch - 1))
    return found | {"batches that were counted": model[1].num_batches_tracked}


@leaks_across_batch.case
def batch_norm_in_evaluation_mode(implementation, draw):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    return seen(implementation, draw, model, draw.normal(draw.whole(4, 6), 3), 1)


@leaks_across_batch.case
def gradients_from_before_stay(implementation, draw):
    model = nn.Sequential(nn.Linear(2, 2), Spreads(1.0)).to(draw.device)
    for parameter in model.parameters():
        parameter.grad = draw.normal(*parameter.shape)
    x = draw.normal(4, 2, requires_grad=True)
    x.grad = draw.normal(4, 2)
    return seen(implementation, draw, model, x, 3)


@leaks_across_batch.case
def only_the_rows_before(implementation, draw):
    batch = draw.whole(5, 7)
    return seen(implementation, draw, FromFirst(), draw.normal(batch, 2, 3), batch - 2, 0)


@leaks_across_batch.case
def one_number_per_sample(implementation, draw):
    return seen(implementation, draw, Spreads(2.0), draw.normal(draw.whole(3, 6)), 2)


def leaks(model, x, index, *, elements=None, keep_self=False, limit=0.0, swap=False, answer=list):
    """The reference in parts, each of which can be done another way."""
    own = x.detach().clone().requires_grad_()
    output = model(own)
    if swap:  # which samples does this one influence?
        rows = [row for row in range(len(x)) if row != index]
        return [
            row
            for row in rows
            if any(bool(row_gradient(e, own)[index].any()) for e in output[row].flatten())
        ]
    chosen = output[index].flatten() if elements is None else elements(output[index])
    touched = set()
    for element in chosen:
        grad = row_gradient(element, own).reshape(len(x), -1)
        touched |= {j for j in range(len(x)) if bool((grad[j].abs() > limit).any())}
    if not keep_self:
        touched.discard(index)
    return answer(sorted(touched))


def row_gradient(element, own):
    """The derivative of one output element with respect to the whole input."""
    (grad,) = torch.autograd.grad(element, own, retain_graph=True, allow_unused=True)
    return torch.zeros_like(own) if grad is None else grad


@leaks_across_batch.misconception(
    "You differentiate the sum of the row. Contributions of opposite sign cancel in a sum; take "
    "one output element at a time."
)
def differentiates_the_rows_sum(model, x, index):
    return leaks(model, x, index, elements=lambda row: [row.sum()])


@leaks_across_batch.misconception(
    "You differentiate the sum of the squared row. The factor in front of each derivative is then "
    "the output itself, which may be 0 where the derivative is not."
)
def differentiates_the_squares(model, x, index):
    return leaks(model, x, index, elements=lambda row: [row.square().sum()])


@leaks_across_batch.misconception(
    "You report the sample itself. A sample is supposed to influence its own output."
)
def reports_the_sample_itself(model, x, index):
    return leaks(model, x, index, keep_self=True)


@leaks_across_batch.misconception(
    "The model was switched to evaluation mode. That hides the coupling of BatchNorm, the very "
    "thing to be found."
)
def eval_mode(model, x, index):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return leaks(model, x, index)
    finally:
        for module, mode in modes:
            module.training = mode


@leaks_across_batch.misconception(
    "You call backward. It adds to the .grad of every parameter; torch.autograd.grad returns what "
    "you ask for and leaves the rest alone."
)
def calls_backward(model, x, index):
    own = x.detach().clone().requires_grad_()
    touched = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for element in model(own)[index].flatten():
        own.grad = None
        element.backward(retain_graph=True)
        touched |= own.grad.reshape(len(x), -1).any(dim=1)
    touched[index] = False
    return touched.nonzero().flatten().tolist()


@leaks_across_batch.misconception(
    "You change each sample and compare outputs. A tolerance hides weak influences, and each trial "
    "is another call of the model; derivatives are exact."
)
def perturbs_and_compares(model, x, index):
    with torch.no_grad():
        base = model(x)[index]
        found = []
        for j in range(len(x)):
            moved = x.clone()
            moved[j] += 1.0
            if j != index and not torch.allclose(model(moved)[index], base, atol=1e-5):
                found.append(j)
    return found


@leaks_across_batch.misconception(
    "Weak derivatives were taken for none. A derivative of 1e-7 is a leak as well; only an exact 0 "
    "proves independence."
)
def ignores_weak_influences(model, x, index):
    return leaks(model, x, index, limit=1e-6)


@leaks_across_batch.misconception(
    "Only the first output element was looked at. A leak may sit in any column."
)
def first_element_only(model, x, index):
    return leaks(model, x, index, elements=lambda row: row.flatten()[:1])


@leaks_across_batch.misconception(
    "You looked the other way: which outputs this sample influences. The question is whose inputs "
    "reach the output of this sample."
)
def the_other_direction(model, x, index):
    return leaks(model, x, index, swap=True)


@leaks_across_batch.misconception(
    "The caller's x was made to require gradients and kept that. Work on a detached copy."
)
def works_on_the_callers_tensor(model, x, index):
    found = leaks(model, x, index)
    x.requires_grad_()
    return found


@leaks_across_batch.misconception(
    "The model ran once for each output element. BatchNorm counts every forward; one graph can be "
    "differentiated many times."
)
def one_forward_per_element(model, x, index):
    found = leaks(model, x, index)
    with torch.no_grad():
        for _ in range(model(x)[index].numel() - 1):
            model(x)
    return found


@leaks_across_batch.misconception(
    "You add up the derivatives with respect to the entries of a sample before you test them. They "
    "can cancel too; ask whether any of them differs from 0."
)
def adds_up_the_derivatives(model, x, index):
    own = x.detach().clone().requires_grad_()
    touched = set()
    for element in model(own)[index].flatten():
        sums = row_gradient(element, own).double().reshape(len(x), -1).sum(dim=1)
        touched |= set(sums.nonzero().flatten().tolist())
    return sorted(touched - {index})


@leaks_across_batch.misconception("You return a tensor. The task asks for a list of ints.")
def returns_a_tensor(model, x, index):
    return leaks(model, x, index, answer=torch.tensor)


@leaks_across_batch.misconception(
    "You answer whether there is a leak. The task asks for the samples it comes from."
)
def answers_yes_or_no(model, x, index):
    return bool(leaks(model, x, index))


leaks_across_batch.hints(
    "Autograd can give the derivative of one element with respect to an input without touching any "
    "parameter. The graph has to live for more than one such question.",
    "Work on a detached copy of x that requires gradients.",
    "Collect over the output elements with a logical or, not with a sum.",
)
