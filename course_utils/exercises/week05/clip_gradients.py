"""Clipping: one length for all gradients, one factor, and never a longer arrow."""

from collections.abc import Iterable

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise

FORBIDDEN = [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_]
FORBIDDEN += [
    getattr(nn.utils, name)
    for name in ("clip_grads_with_norm_", "get_total_norm")
    if hasattr(nn.utils, name)
]


@exercise(objectives=("optim.clip",), forbids=tuple(FORBIDDEN))
def clip_gradients(
    parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float
) -> torch.Tensor:
    """Clip gradients by their global L2 norm, in place; return the norm before clipping.

    parameters: one tensor or any iterable of different tensors, possibly a generator. Those whose
    .grad is None are skipped, and only those; if none is left, return tensor(0.0). All gradients
    have one dtype, float32 or float64, and may be non-contiguous.

    The norm is that of all gradients taken as one long vector, a 0-d tensor that needs no grad.
    Every gradient is multiplied by min(1, max_norm / (norm + 1e-6)), also for a max_norm of 0; each
    .grad stays the same tensor, in the memory it has. If the norm is inf or nan (finite entries can
    have such a norm), raise RuntimeError and leave all gradients as they are. Parameters keep their
    values. Do without torch's own clipping functions.
    """
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    with torch.no_grad():
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        if not norm.isfinite():
            raise RuntimeError(f"the norm of the gradients is {norm}")
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor)
    return norm


def scene(draw, *shapes, scale=1.0, dtype=torch.float32):
    """Parameters of the shapes, with gradients of about that scale."""
    params = [draw.normal(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = scale * draw.normal(*param.shape, dtype=dtype)
    return params


def clip(implementation, params, max_norm, *, given=None):
    """What came back, the gradients afterwards, and whether they are the same, memory included."""
    before = [param.grad for param in params]
    views = [grad if grad is None else grad.detach() for grad in before]
    norm = attempt(implementation, params if given is None else given, max_norm)
    return {
        "returned": norm,
        "gradients": [param.grad for param in params],
        "same objects": [p.grad is g for p, g in zip(params, before, strict=True)],
        "views of their memory": views,
    }


@clip_gradients.case
def large_gradients(implementation, draw):
    params = scene(draw, (draw.whole(2, 4), 5), (3,), (3,), scale=3)
    params[0].grad = 3 * draw.normal(5, len(params[0])).t()  # not contiguous
    return clip(implementation, params, draw.number(0.5, 2.0))


@clip_gradients.case
def small_gradients(implementation, draw):
    params = scene(draw, draw.sizes(2, high=4), (3,), scale=0.1)
    return clip(implementation, params, draw.number(5.0, 9.0))


@clip_gradients.case
def gradients_of_zero_and_a_limit_of_zero(implementation, draw):
    still = clip(implementation, scene(draw, (3,), scale=0.0), 1.0)
    return {
        "gradients of zero": still,
        "max_norm of zero": clip(implementation, scene(draw, (3,)), 0.0),
    }


@clip_gradients.case
def tiny_gradients_and_a_tiny_limit(implementation, draw):
    # Here the 1e-6 of the contract is visible.
    params = scene(draw, (2, 3), scale=1e-5, dtype=torch.float64)
    seen = clip(implementation, params, 1e-6)
    return seen | {"gradients * 1e6": [1e6 * param.grad for param in params]}


@clip_gradients.case
def none_among_them_and_one_that_was_frozen(implementation, draw):
    params = scene(draw, (2, 2), (3,), (4,))
    params[1].grad = None
    params[2].requires_grad_(False)  # after its backward: the gradient is still there
    return clip(implementation, params, 0.7)


@clip_gradients.case
def no_gradients_at_all(implementation, draw):
    params = scene(draw, (2,), (3,))
    for param in params:
        param.grad = None
    results = [attempt(implementation, given, 1.0) for given in (params, iter(()))]
    # There is nothing whose device the result could follow.
    return [result.cpu() if isinstance(result, torch.Tensor) else result for result in results]


@clip_gradients.case
def a_generator_and_a_parameter_without_dimensions(implementation, draw):
    params = scene(draw, (), (3,), (2, 1), scale=2)
    return clip(implementation, params, 1.0, given=(param for param in params))


@clip_gradients.case
def a_single_tensor_in_float64(implementation, draw):
    params = scene(draw, (3, 2), scale=2, dtype=torch.float64)
    return clip(implementation, params, draw.number(0.5, 2.0), given=params[0])


@clip_gradients.case
def an_infinite_entry(implementation, draw):
    params = scene(draw, (3,), (2, 2))
    params[1].grad[0, 1] = draw.choice((float("inf"), float("-inf")))
    return clip(implementation, params, 1.0)


@clip_gradients.case
def finite_entries_whose_norm_is_infinite(implementation, draw):
    params = scene(draw, (3,), (2, 2))
    params[1].grad[0] = draw.tensor([3e38, -3e38])
    return clip(implementation, params, 1.0)


@clip_gradients.case
def an_entry_that_is_nan(implementation, draw):
    params = scene(draw, (3,), (2, 2))
    params[0].grad[2] = float("nan")
    return clip(implementation, params, 1.0)


@clip_gradients.case
def gradients_with_a_graph_of_their_own(implementation, draw):
    weight = draw.normal(3, requires_grad=True)
    (weight**3).sum().backward(create_graph=True)
    norm = attempt(implementation, [weight], 0.5)
    gradient = weight.grad.detach()
    weight.grad = None  # a graph that leads back to its own leaf would stay in memory
    return {"returned": norm, "gradient": gradient, "weight": weight.detach()}


def gradients_of(parameters):
    """The gradients that are there, as the contract counts them."""
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    return [p.grad for p in tensors if p.grad is not None]


def rescale(parameters, max_norm, *, factor=None, norm=None, returned=None):
    """Clipping of which a part can be exchanged: norm(grads), factor(norm), and what comes back."""
    grads = gradients_of(parameters)
    if not grads:
        return torch.tensor(0.0)
    with torch.no_grad():
        total = norm(grads) if norm else torch.cat([g.flatten() for g in grads]).norm()
        if not total.isfinite():
            raise RuntimeError("not finite")
        scale = factor(total) if factor else (max_norm / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad *= scale
    return returned(total, scale) if returned else total


@clip_gradients.misconception(
    "You clipped each tensor by itself. That changes the sizes of the layers' gradients against "
    "each other, and so the direction. There is one norm for all."
)
def each_tensor_clipped_by_itself(parameters, max_norm):
    grads = gradients_of(parameters)
    total = rescale(parameters if isinstance(parameters, torch.Tensor) else [], max_norm)
    if not isinstance(parameters, torch.Tensor) and grads:
        total = torch.cat([g.flatten() for g in grads]).norm().detach()
        if not total.isfinite():
            raise RuntimeError("not finite")
        for grad in grads:
            grad.data.mul_((max_norm / (grad.norm() + 1e-6)).clamp(max=1.0).detach())
    return total


@clip_gradients.misconception(
    "You cut the entries to ±max_norm. Cutting changes the direction of the gradient; scaling all "
    "of it by one factor keeps it."
)
def clips_values(parameters, max_norm):
    grads = gradients_of(parameters)
    total = rescale([], max_norm) if not grads else None
    if grads:
        total = torch.cat([g.flatten() for g in grads]).norm().detach()
        if not total.isfinite():
            raise RuntimeError("not finite")
        for grad in grads:
            grad.data.clamp_(-max_norm, max_norm)
    return total


@clip_gradients.misconception(
    "You return the norm after clipping. It would always read about max_norm; a log is for the "
    "size before."
)
def returns_the_norm_after_clipping(parameters, max_norm):
    return rescale(parameters, max_norm, returned=lambda norm, scale: norm * scale)


@clip_gradients.misconception(
    "Small gradients come out larger: you scale to max_norm whatever the norm is. Clipping only "
    "shrinks, so the factor never exceeds 1."
)
def enlarges_small_gradients(parameters, max_norm):
    return rescale(parameters, max_norm, factor=lambda norm: max_norm / (norm + 1e-6))


@clip_gradients.misconception(
    "You scale by a norm that is not finite. finite / inf is 0 and inf / inf is nan: the step is "
    "poisoned without a word. Raise RuntimeError instead, before anything is changed."
)
def scales_by_a_non_finite_norm(parameters, max_norm):
    grads = gradients_of(parameters)
    if not grads:
        return torch.tensor(0.0)
    with torch.no_grad():
        total = torch.cat([g.flatten() for g in grads]).norm()
        for grad in grads:
            grad *= (max_norm / (total + 1e-6)).clamp(max=1.0)
    return total


@clip_gradients.misconception(
    "You ask whether the entries are finite. The squares of finite entries can overflow, so that "
    "the norm is inf: all gradients become 0 without a word. Ask the norm."
)
def entries_asked_instead_of_the_norm(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    if all(grad.isfinite().all() for grad in gradients_of(kept)):
        return scales_by_a_non_finite_norm(kept, max_norm)
    return rescale(kept, max_norm)


@clip_gradients.misconception(
    "You raise the error too late: the gradients have been scaled by then, and are 0 or nan. Look "
    "at the norm before you touch anything."
)
def raises_after_scaling(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    total = scales_by_a_non_finite_norm(kept, max_norm)
    if not total.isfinite():
        raise RuntimeError("not finite")
    return total


@clip_gradients.misconception(
    "You ask only whether the norm is inf. It can also be nan, which equals nothing, not even "
    "itself."
)
def nan_goes_through(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    if any(p.grad is not None and p.grad.isnan().any() for p in kept):
        return scales_by_a_non_finite_norm(kept, max_norm)
    return rescale(kept, max_norm)


@clip_gradients.misconception(
    "You go through the parameters twice, and a generator is empty the second time: the norm is "
    "right and no gradient is scaled. Make a list first."
)
def generator_read_twice(parameters, max_norm):
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    total = rescale(parameters, max_norm, factor=lambda norm: 1.0)
    if isinstance(parameters, list):
        rescale(parameters, max_norm)
    return total


@clip_gradients.misconception(
    "You put a new tensor into .grad. Whoever holds the old one, an optimizer's buffer or a hook, "
    "sees unclipped numbers; multiply in place."
)
def new_gradient_tensors(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    for p in kept:
        if p.grad is not None and gradients_are_finite(kept):
            p.grad = p.grad.clone()
    return rescale(kept, max_norm)


@clip_gradients.misconception(
    "`.data = ...` gives a gradient other memory. It is still the same object with the right "
    "values, but whoever shares its old memory sees unclipped numbers; multiply in place."
)
def memory_exchanged(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    for grad in gradients_of(kept) if gradients_are_finite(kept) else ():
        grad.data = grad.data.clone()
    return rescale(kept, max_norm)


def gradients_are_finite(parameters):
    """Whether the norm of all gradients is a number."""
    return all(bool(grad.norm().isfinite()) for grad in gradients_of(parameters))


@clip_gradients.misconception(
    "You added up the norms of the tensors. Norms of parts do not add; their squares do."
)
def norms_added_up(parameters, max_norm):
    def norm(grads):
        return torch.stack([grad.norm() for grad in grads]).sum()

    return rescale(parameters, max_norm, norm=norm)


@clip_gradients.misconception("The root is missing: that is the squared norm.")
def root_forgotten(parameters, max_norm):
    def norm(grads):
        return torch.stack([grad.square().sum() for grad in grads]).sum()

    return rescale(parameters, max_norm, norm=norm)


@clip_gradients.misconception(
    "You measured and scaled the parameters. What is to be clipped is in their .grad; the "
    "parameters keep their values."
)
def clips_the_parameters(parameters, max_norm):
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    kept = [p.data for p in tensors if p.grad is not None]
    if not kept:
        return torch.tensor(0.0)
    if not gradients_are_finite(tensors):
        raise RuntimeError("not finite")
    total = torch.cat([p.flatten() for p in kept]).norm()
    for p in kept:
        p.mul_((max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


@clip_gradients.misconception(
    "A parameter without a gradient stopped you. Its .grad is None, which has no norm; leave it "
    "out."
)
def stumbles_over_none(parameters, max_norm):
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    for p in tensors:
        p.grad.shape  # noqa: B018
    return rescale(tensors, max_norm)


@clip_gradients.misconception(
    "You leave out parameters that do not require grad. One that was frozen after backward still "
    "holds a gradient, and that belongs to the norm. Look at .grad alone."
)
def frozen_parameters_left_out(parameters, max_norm):
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    return rescale([p for p in tensors if p.requires_grad], max_norm)


@clip_gradients.misconception(
    "You take a max_norm of 0 for no limit at all. 0.0 counts as false in an `if`, and yet it is a "
    "number: the formula gives a factor for it like for any other."
)
def limit_of_zero_ignored(parameters, max_norm):
    return rescale(parameters, max_norm or float("inf"))


@clip_gradients.misconception(
    "A single tensor is an iterable too: you walked through its rows, which have no .grad. Ask "
    "first whether one tensor was given."
)
def walks_through_a_single_tensor(parameters, max_norm):
    if isinstance(parameters, torch.Tensor):
        return torch.tensor(0.0)
    return rescale(parameters, max_norm)


@clip_gradients.misconception(
    "You return a Python float. The contract is a 0-d tensor: reading a number out of it makes a "
    "GPU wait, so the caller decides when."
)
def returns_a_float(parameters, max_norm):
    return float(rescale(parameters, max_norm))


@clip_gradients.misconception(
    "The norm you return requires grad, since it was computed while autograd was recording. It is "
    "a number for the log; nothing shall be recorded."
)
def norm_with_a_graph(parameters, max_norm):
    kept = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    grads = gradients_of(kept)
    if not grads:
        return torch.tensor(0.0)
    total = torch.cat([g.flatten() for g in grads]).norm() if gradients_are_finite(kept) else None
    if total is None:
        raise RuntimeError("not finite")
    total = total.clone()
    rescale(kept, max_norm)
    return total


@clip_gradients.misconception(
    "The 1e-6 is missing in the denominator. It shows when the norm itself is about as small, and "
    "for gradients of zero it is what keeps the factor a number."
)
def denominator_without_1e_6(parameters, max_norm):
    return rescale(parameters, max_norm, factor=lambda norm: (max_norm / norm).clamp(max=1.0))


clip_gradients.hints(
    "You need the parameters twice, once to measure and once to scale. Which kinds of iterable "
    "allow that?",
    "Add squares over everything that is there, then take one root.",
    "Look at the norm before you change anything; then change the tensors in .grad themselves.",
)
