"""SGD with momentum: a velocity that outlives the call, and parameters changed where they are."""

import torch
from torch.optim.sgd import sgd

from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("optim.sgd", "optim.api"), forbids=(sgd,))
def sgd_momentum_step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor | None],
    velocities: list[torch.Tensor | None],
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step of SGD with momentum, in place on every params[i]; the lists have equal length.

    d = grad + weight_decay * param
    v = momentum * v_old + d, where v_old is 0 if velocities[i] is None
    param -= lr * (d + momentum * v if nesterov else v)

    Store v in the slot velocities[i], for every momentum including 0, in memory that the gradient
    does not share. Where grads[i] is None, leave param and velocities[i] as they are. A gradient of
    0 is a gradient like any other.

    Parameters may be leaves that require grad: they stay the same tensors and the same leaves, in
    the memory they have, and no graph is recorded. Gradients are not modified. Return None. Do
    without torch.optim.
    """
    with torch.no_grad():
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                continue
            d = grad + weight_decay * param
            v = d if velocities[i] is None else momentum * velocities[i] + d
            velocities[i] = v
            param -= lr * (d + momentum * v if nesterov else v)


def scene(draw, *shapes, dtype=torch.float32):
    """Parameters of the shapes, and a function that draws their gradients."""
    shapes = shapes or (draw.sizes(2, high=4), (draw.whole(2, 4),))
    params = [draw.normal(*shape, dtype=dtype) for shape in shapes]
    return params, lambda: [draw.normal(*shape, dtype=dtype) for shape in shapes]


def walk(implementation, params, steps, **settings):
    """Take the steps, (lr, grads) each; the tensors handed in, after the first and the last."""
    tensors, velocities, seen = list(params), [None] * len(params), []
    for lr, grads in steps:
        result = implementation(params, grads, velocities, lr=lr, **settings)
        seen.append(observe({"params": tensors, "velocities": velocities, "returned": result}))
    return {"after the first step": seen[0], "after the last step": seen[-1]}


@sgd_momentum_step.case
def four_steps_with_a_falling_rate(implementation, draw):
    params, gradients = scene(draw)
    start = draw.number(0.5, 1.0)
    return walk(implementation, params, [(start / 2**k, gradients()) for k in range(4)])


@sgd_momentum_step.case
def a_momentum_of_zero(implementation, draw):
    params, gradients = scene(draw)
    steps = [(draw.number(0.1, 0.5), gradients()) for _ in range(2)]
    return walk(implementation, params, steps, momentum=0.0)


@sgd_momentum_step.case
def weight_decay(implementation, draw):
    params, gradients = scene(draw)
    steps = [(draw.number(0.1, 0.3), gradients()) for _ in range(2)]
    return walk(implementation, params, steps, momentum=0.8, weight_decay=draw.number(0.2, 0.6))


@sgd_momentum_step.case
def nesterov_with_weight_decay(implementation, draw):
    params, gradients = scene(draw)
    steps = [(draw.number(0.1, 0.3), gradients()) for _ in range(3)]
    settings = {"momentum": 0.8, "weight_decay": draw.number(0.2, 0.6), "nesterov": True}
    return walk(implementation, params, steps, **settings)


@sgd_momentum_step.case
def gradients_that_are_none_now_and_then(implementation, draw):
    params, gradients = scene(draw, (2, 3), (3,), (2,))
    absent = [(0,), (1,), (1, 2)]
    steps = []
    for missing in absent:
        grads = [None if i in missing else g for i, g in enumerate(gradients())]
        steps.append((draw.number(0.1, 0.3), grads))
    return walk(implementation, params, steps, weight_decay=0.3)


@sgd_momentum_step.case
def one_number_in_float64(implementation, draw):
    params, gradients = scene(draw, (), dtype=torch.float64)
    steps = [(draw.number(0.1, 0.3), gradients()) for _ in range(2)]
    return walk(implementation, params, steps, weight_decay=0.2, nesterov=True)


@sgd_momentum_step.case
def gradients_that_the_caller_clears_and_reuses(implementation, draw):
    params, gradients = scene(draw)
    grads, velocities, seen = gradients(), [None, None], []
    for _ in range(2):
        implementation(params, grads, velocities, lr=0.2, momentum=0.7)
        for old, new in zip(grads, gradients(), strict=True):
            old.copy_(new)
        seen.append(observe(velocities))
    return {"params": params, "velocities": seen[0], "velocities after the last": seen[-1]}


@sgd_momentum_step.case
def velocities_from_a_run_before(implementation, draw):
    params, gradients = scene(draw)
    velocities = [velocity.clone() for velocity in gradients()]
    implementation(params, gradients(), velocities, lr=0.2, momentum=draw.number(0.5, 0.8))
    return {"params": params, "velocities": velocities}


@sgd_momentum_step.case
def gradients_of_zero_after_others(implementation, draw):
    params, gradients = scene(draw, (2, 3), (3,))
    velocities = [velocity.clone() for velocity in gradients()]
    grads = gradients()
    grads[0].zero_()
    grads[1][1] = 0
    implementation(params, grads, velocities, lr=0.2, momentum=0.6, weight_decay=0.5)
    return {"params": params, "velocities": velocities}


@sgd_momentum_step.case
def leaves_that_require_grad(implementation, draw):
    params, gradients = scene(draw)
    params = [param.requires_grad_() for param in params]
    steps = [(draw.number(0.1, 0.3), gradients()) for _ in range(2)]
    tensors, views = list(params), [param.detach() for param in params]
    seen = walk(implementation, params, steps, weight_decay=0.4)
    return seen | {"leaves": [p.is_leaf for p in tensors], "views of their memory": views}


def steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, *, d=None, v=None,
          move=None):  # fmt: skip
    """One step of which a part can be exchanged.

    d(param, grad), v(d, old or None, i) and move(param, d, v) return what the contract calls d, v
    and the amount that is subtracted.
    """
    with torch.no_grad():
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                continue
            my_d = d(param, grad) if d else grad + weight_decay * param
            old = velocities[i]
            my_v = v(my_d, old, i) if v else my_d if old is None else momentum * old + my_d
            velocities[i] = my_v
            usual = lr * (my_d + momentum * my_v if nesterov else my_v)
            param -= move(param, my_d, my_v) if move else usual


@sgd_momentum_step.misconception(
    "Your velocity is an average: the factor (1 - momentum) shrinks every step, tenfold at 0.9. "
    "Torch's velocity is a decayed sum, and its gradients come in whole."
)
def velocity_as_an_average(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def v(d, old, i):
        return (1 - momentum) * d + (0 if old is None else momentum * old)

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, v=v)


@sgd_momentum_step.misconception(
    "The first velocity is right, the later ones are too short: you scale each new gradient by "
    "(1 - momentum). That is what torch does with dampening=momentum. Here nothing is dampened."
)
def dampens_after_the_first_step(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def v(d, old, i):
        return d if old is None else momentum * old + (1 - momentum) * d

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, v=v)


@sgd_momentum_step.misconception(
    "The learning rate went into the velocity. Old gradients then keep the rate of their own "
    "step, so that lowering it acts late. The rate belongs to the move, not to the memory."
)
def learning_rate_inside_the_velocity(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def v(d, old, i):
        return lr * d + (0 if old is None else momentum * old)

    def move(param, d, v):
        return lr * d + momentum * v if nesterov else v

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, v=v, move=move)


@sgd_momentum_step.misconception(
    "The first velocity you store is the caller's gradient itself. When the caller clears or "
    "reuses that gradient, your velocity changes with it. Keep memory of your own."
)
def first_velocity_aliases_the_gradient(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def d(param, grad):
        return grad + weight_decay * param if weight_decay else grad

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, d=d)


@sgd_momentum_step.misconception(
    "You treat None as a gradient of zero. None means that the parameter took no part in this "
    "step: it neither coasts on its velocity nor decays."
)
def none_treated_as_zero(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    sgd_momentum_step.reference(params, grads, velocities, lr, momentum, weight_decay, nesterov)


@sgd_momentum_step.misconception(
    "You do nothing when all of a gradient is 0. A gradient of zero is a gradient: the velocity "
    "shrinks, the parameter coasts on it and decays. Only None takes no part."
)
def gradients_of_zero_skipped(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    grads = [g if g is not None and g.any() else None for g in grads]
    sgd_momentum_step.reference(params, grads, velocities, lr, momentum, weight_decay, nesterov)


@sgd_momentum_step.misconception(
    "You fill in a velocity of zeros before looking at the gradient. Where the gradient is None, "
    "the velocity stays as it is, and that includes None."
)
def velocity_made_for_absent_gradients(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    for i, param in enumerate(params):
        if velocities[i] is None:
            velocities[i] = torch.zeros_like(param, requires_grad=False)
    sgd_momentum_step.reference(params, grads, velocities, lr, momentum, weight_decay, nesterov)


@sgd_momentum_step.misconception(
    "Where the gradient is None you throw the velocity away. It stays as it is: the parameter goes "
    "on with it at the next step it takes part in."
)
def velocity_dropped_where_the_gradient_is_none(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    sgd_momentum_step.reference(params, grads, velocities, lr, momentum, weight_decay, nesterov)
    for i, grad in enumerate(grads):
        if grad is None:
            velocities[i] = None


@sgd_momentum_step.misconception(
    "Your first velocity is zero, so the first step moves nothing. With no velocity from before, "
    "v is d: the 0 stands for v_old alone."
)
def first_velocity_is_zero(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def v(d, old, i):
        return torch.zeros_like(d) if old is None else momentum * old + d

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, v=v)


@sgd_momentum_step.misconception(
    "You keep the velocities in a place of your own and do not read the list that comes in. A run "
    "that goes on from a checkpoint hands its velocities over there. Take v_old from velocities[i]."
)
def velocities_kept_elsewhere(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    mine = [getattr(param, "velocity", None) for param in params]
    sgd_momentum_step.reference(params, grads, mine, lr, momentum, weight_decay, nesterov)
    for i, (param, velocity) in enumerate(zip(params, mine, strict=True)):
        param.velocity = velocities[i] = velocity


@sgd_momentum_step.misconception(
    "At the first gradient that is None you leave the loop, and the parameters behind it are "
    "not moved. Only this one is to be skipped."
)
def stops_at_the_first_none(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    count = next((i for i, grad in enumerate(grads) if grad is None), len(grads))
    tail = velocities[count:]
    head = velocities[:count]
    sgd_momentum_step.reference(
        params[:count], grads[:count], head, lr, momentum, weight_decay, nesterov
    )
    velocities[:] = head + tail


@sgd_momentum_step.misconception(
    "Your Nesterov step is ordinary momentum. Nesterov looks ahead with the velocity of this step; "
    "with the one from the step before, or with the flag forgotten, there is no looking ahead."
)
def nesterov_with_the_old_velocity(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def v(d, old, i):
        before[0] = torch.zeros_like(d) if old is None else old
        return d + momentum * before[0]

    def move(param, d, v):
        return lr * (d + momentum * before[0] if nesterov else v)

    before = [None]
    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, v=v, move=move)


@sgd_momentum_step.misconception(
    "Your Nesterov step is v + momentum * v. The term that is not multiplied is d, the gradient "
    "of this step with its decay, not the velocity."
)
def nesterov_adds_the_velocity_twice(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def move(param, d, v):
        return lr * (v + momentum * v if nesterov else v)

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, move=move)


@sgd_momentum_step.misconception(
    "You apply the decay to the parameter and keep it out of the velocity. That is decoupled "
    "decay, as in AdamW. In SGD the decay is part of d, and so it gathers momentum."
)
def decay_outside_the_velocity(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def move(param, d, v):
        return lr * ((d + momentum * v if nesterov else v) + weight_decay * param)

    steps(params, grads, velocities, lr, momentum, 0.0, nesterov, move=move)


@sgd_momentum_step.misconception(
    "You added the decay to the caller's gradient in place. Gradients are read only; build d as "
    "a tensor of its own."
)
def edits_the_gradients(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    def d(param, grad):
        return grad.add_(param, alpha=weight_decay).clone()

    steps(params, grads, velocities, lr, momentum, weight_decay, nesterov, d=d)


@sgd_momentum_step.misconception(
    "You put a new tensor into the list, and the tensor that stood there has not moved. The model "
    "holds that one and never sees your list. Write into the tensor."
)
def parameters_replaced(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    fresh = [param.detach().clone() for param in params]
    sgd_momentum_step.reference(fresh, grads, velocities, lr, momentum, weight_decay, nesterov)
    params[:] = [p.requires_grad_(q.requires_grad) for p, q in zip(fresh, params, strict=True)]


@sgd_momentum_step.misconception(
    "`param.data = ...` gives the parameter other memory. Its values are right, but a view of the "
    "old memory, or whatever else shares it, keeps the old ones. Write into the memory that is "
    "there."
)
def memory_exchanged(params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False):
    fresh = [param.detach().clone() for param in params]
    sgd_momentum_step.reference(fresh, grads, velocities, lr, momentum, weight_decay, nesterov)
    for param, moved in zip(params, fresh, strict=True):
        param.data = moved


@sgd_momentum_step.misconception(
    "The velocities are right and no parameter has moved. `param = param - ...` makes a new tensor "
    "and gives it your local name; the caller's tensor never hears of it. Change it in place."
)
def moves_a_local_name(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    fresh = [param.detach().clone() for param in params]
    sgd_momentum_step.reference(fresh, grads, velocities, lr, momentum, weight_decay, nesterov)


@sgd_momentum_step.misconception(
    "The new velocity is lost when the function returns: it stands in a local name, and the slot "
    "velocities[i] still holds what it held. Every call starts at zero speed."
)
def velocity_never_stored(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    sgd_momentum_step.reference(
        params, grads, list(velocities), lr, momentum, weight_decay, nesterov
    )


@sgd_momentum_step.misconception(
    "With a momentum of 0 you store no velocity. The task asks for it always: a caller may turn "
    "the momentum up later."
)
def no_velocity_without_momentum(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    kept = velocities if momentum else list(velocities)
    sgd_momentum_step.reference(params, grads, kept, lr, momentum, weight_decay, nesterov)


@sgd_momentum_step.misconception(
    "You changed a leaf that requires grad while autograd was recording, which it refuses. An "
    "update is not part of any loss: say that nothing shall be recorded."
)
def autograd_still_recording(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None:
            d = grad + weight_decay * param
            v = d if velocities[i] is None else momentum * velocities[i] + d
            velocities[i] = v
            param -= lr * (d + momentum * v if nesterov else v)


@sgd_momentum_step.misconception(
    "The parameters move without a graph, but d was computed from them while autograd was "
    "recording. So the stored velocity carries a graph, one step longer at every call."
)
def velocity_with_a_graph(
    params, grads, velocities, lr, momentum=0.9, weight_decay=0.0, nesterov=False
):
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None:
            d = grad + weight_decay * param
            v = d if velocities[i] is None else momentum * velocities[i] + d
            velocities[i] = v
            param.data -= lr * (d + momentum * v if nesterov else v).data


sgd_momentum_step.hints(
    "Three lists come in. Which of them has to remember something until the next call?",
    "Build d without touching the gradient. Whose memory is it in when weight_decay is 0?",
    "For a velocity, write to the slot of the list. For a parameter, write to the tensor itself.",
)
