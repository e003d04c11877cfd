"""AdamW for several parameters: decay beside the gradient, and absent gradients skipped whole."""

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("optim.adamw", "optim.state"), forbids=(adam, adamw))
def adamw_step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor | None],
    states: list[dict],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> None:
    """One AdamW step, in place on every params[i], each with its own states[i].

    First param = param * (1 - lr * weight_decay). Then the Adam update, computed from the raw
    gradient as in adam_step, is subtracted.

    A state is {} at first and has afterwards exactly the keys "step" (an int, the number of steps
    this parameter took part in), "m" and "v", as in adam_step. It stays the same dict. Where
    grads[i] is None there is no decay and no update, and states[i] stays as it is, {} included.

    Parameters may be leaves that require grad: they stay the same tensors, in the memory they have,
    and no graph is recorded. Gradients are not modified. Return None. Do without torch.optim.
    """
    b1, b2 = betas
    with torch.no_grad():
        for param, grad, state in zip(params, grads, states, strict=True):
            if grad is None:
                continue
            if not state:
                state.update(step=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
            state["step"] += 1
            state["m"] = b1 * state["m"] + (1 - b1) * grad
            state["v"] = b2 * state["v"] + (1 - b2) * grad * grad
            m = state["m"] / (1 - b1 ** state["step"])
            v = state["v"] / (1 - b2 ** state["step"])
            param *= 1 - lr * weight_decay
            param -= lr * m / (v.sqrt() + eps)


def scene(draw, *, dtype=torch.float32, count=2):
    """Two-dimensional, one-dimensional and further parameters, and a function for gradients."""
    shapes = [draw.sizes(2, high=4), (draw.whole(2, 4),), (2, 1)][:count]
    params = [3 * draw.normal(*shape, dtype=dtype) for shape in shapes]
    return params, lambda: [draw.normal(*shape, dtype=dtype) for shape in shapes]


def walk(implementation, params, rows, **settings):
    """Take a step with each row of gradients; the tensors handed in, after first and last."""
    tensors, states, seen = list(params), [{} for _ in params], []
    for grads in rows:
        result = implementation(params, grads, states, **settings)
        seen.append(observe({"params": tensors, "returned": result, "states": states}))
    return {"after the first step": seen[0], "after the last step": seen[-1]}


@adamw_step.case
def three_steps(implementation, draw):
    params, gradients = scene(draw)
    rows = [gradients() for _ in range(3)]
    return walk(implementation, params, rows, lr=0.1, weight_decay=draw.number(0.3, 0.6))


@adamw_step.case
def a_falling_rate(implementation, draw):
    params, gradients = scene(draw, count=1)
    states = [{}]
    for lr in (0.3, 0.05):
        implementation(params, gradients(), states, lr=lr, weight_decay=0.5)
    return {"params": params, "states": states}


@adamw_step.case
def the_default_decay(implementation, draw):
    params, gradients = scene(draw, count=1)
    params[0].mul_(3)
    return walk(implementation, params, [gradients()], lr=0.2)


@adamw_step.case
def no_decay(implementation, draw):
    params, gradients = scene(draw)
    return walk(implementation, params, [gradients()], lr=0.1, weight_decay=0.0)


@adamw_step.case
def gradients_of_zero(implementation, draw):
    params, gradients = scene(draw)
    rows = [[torch.zeros_like(param) for param in params], gradients()]
    return walk(implementation, params, rows, lr=0.1, weight_decay=0.5)


@adamw_step.case
def gradients_that_are_none_now_and_then(implementation, draw):
    params, gradients = scene(draw, count=3)
    rows = []
    for missing in ((0, 1), (0,), (0, 2)):
        rows.append([None if i in missing else g for i, g in enumerate(gradients())])
    return walk(implementation, params, rows, lr=0.1, weight_decay=0.5)


@adamw_step.case
def other_betas_and_eps_in_float64(implementation, draw):
    params, gradients = scene(draw, dtype=torch.float64)
    betas = draw.number(0.4, 0.7), draw.number(0.8, 0.95)
    rows = [gradients() for _ in range(2)]
    return walk(implementation, params, rows, lr=0.1, betas=betas, eps=0.3, weight_decay=0.2)


@adamw_step.case
def a_state_from_a_run_before(implementation, draw):
    params, gradients = scene(draw, count=1)
    (m,), (root,) = gradients(), gradients()
    states = [{"step": draw.whole(2, 9), "m": m.clone(), "v": root.square()}]
    (state,) = states
    implementation(params, gradients(), states, lr=0.1, weight_decay=0.5)
    return {"params": params, "states": states, "the same dict": states[0] is state}


@adamw_step.case
def leaves_that_require_grad(implementation, draw):
    params, gradients = scene(draw)
    params = [param.requires_grad_() for param in params]
    tensors, views = list(params), [param.detach() for param in params]
    seen = walk(implementation, params, [gradients()], lr=0.1, weight_decay=0.5)
    return seen | {"leaves": [p.is_leaf for p in tensors], "views of their memory": views}


def steps(params, grads, states, lr, betas, eps, weight_decay, *, fed=None, before=None,
          after=None):  # fmt: skip
    """One step of which a part can be exchanged.

    fed(param, grad) is the gradient Adam gets, before(param) and after(param) change the parameter
    before and after the update; without `before` the usual decay is done there.
    """
    with torch.no_grad():
        for param, grad, state in zip(params, grads, states, strict=True):
            if grad is None:
                continue
            raw = fed(param, grad) if fed else grad
            if before:
                before(param)
            elif not after:
                param *= 1 - lr * weight_decay
            adamw_step.reference([param], [raw], [state], lr, betas, eps, 0.0)
            if after:
                after(param)


def update(params, grads, states, lr, betas, eps, weight_decay, move):
    """One step whose update is move(m, v, t), the averages after this gradient, times lr."""
    for param, grad, state in zip(params, grads, states, strict=True):
        if grad is not None:
            scratch = param.detach().clone()
            adamw_step.reference([scratch], [grad], [state], lr, betas, eps, weight_decay)
            with torch.no_grad():
                param *= 1 - lr * weight_decay
                param -= lr * move(state["m"], state["v"], state["step"])


@adamw_step.misconception(
    "You added the decay to the gradient. That is L2: Adam divides it by the gradient's own "
    "magnitude, so that noisy parameters hardly decay. The moments get the raw gradient."
)
def decay_added_to_the_gradient(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def fed(param, grad):
        return grad + weight_decay * param

    steps(params, grads, states, lr, betas, eps, weight_decay, fed=fed, before=lambda p: None)


@adamw_step.misconception(
    "Your moments get the decay as well as the parameter. It belongs in one place, the factor on "
    "the parameter; the gradient stays raw."
)
def decays_twice(params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    def fed(param, grad):
        return grad + weight_decay * param

    steps(params, grads, states, lr, betas, eps, weight_decay, fed=fed)


@adamw_step.misconception(
    "Each step shrinks the weights by weight_decay itself. AdamW's factor contains the rate as "
    "well, so that a schedule scales the decay too."
)
def decay_not_scaled_by_lr(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def before(param):
        param *= 1 - weight_decay

    steps(params, grads, states, lr, betas, eps, weight_decay, before=before)


@adamw_step.misconception(
    "You decay after the update, which shrinks the update too. The order in the task is: shrink "
    "first, then subtract."
)
def decays_after_the_update(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def after(param):
        param *= 1 - lr * weight_decay

    steps(params, grads, states, lr, betas, eps, weight_decay, after=after)


@adamw_step.misconception(
    "The decay is missing: this is Adam. The weight has to shrink by its factor whatever the "
    "gradient is."
)
def no_decay_at_all(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    steps(params, grads, states, lr, betas, eps, 0.0)


@adamw_step.misconception(
    "The weights grow: the sign of the decay is turned around. Decay pulls toward zero."
)
def decay_with_the_wrong_sign(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    steps(params, grads, states, lr, betas, eps, -weight_decay)


@adamw_step.misconception(
    "You decay parameters that have no gradient. A parameter without a gradient is skipped whole, "
    "decay included."
)
def decays_parameters_without_a_gradient(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    with torch.no_grad():
        for param in params:
            param *= 1 - lr * weight_decay
    adamw_step.reference(params, grads, states, lr, betas, eps, 0.0)


@adamw_step.misconception(
    "You treat None as a gradient of zero. That makes a state, counts a step, decays, and lets "
    "old momentum move a parameter that took no part."
)
def none_treated_as_a_zero_gradient(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    adamw_step.reference(params, grads, states, lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "You fill in the state before you look at the gradient. A parameter that never had a gradient "
    "keeps its state {}: that is why frozen weights cost no memory."
)
def state_made_for_absent_gradients(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    for param, state in zip(params, states, strict=True):
        if not state:
            zeros = torch.zeros_like(param.detach())
            state.update(step=0, m=zeros, v=zeros.clone())
    adamw_step.reference(params, grads, states, lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "One counter serves all parameters. A parameter that skipped a step has taken fewer, and its "
    "averages need the correction for its own number of steps."
)
def one_counter_for_all(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    most = max(state.get("step", 0) for state in states)
    for param, grad, state in zip(params, grads, states, strict=True):
        if grad is not None:
            if not state:
                zeros = torch.zeros_like(param.detach())
                state.update(m=zeros, v=zeros.clone())
            state["step"] = most
            adamw_step.reference([param], [grad], [state], lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "The averages end up in a dict of your own and are lost when the function returns. Every step "
    "is a first step then. Write into the states that came in."
)
def states_not_stored(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    copies = [dict(state) for state in states]
    adamw_step.reference(params, grads, copies, lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "You keep the averages in a place of your own and do not read the states that come in. A run "
    "that goes on from a checkpoint hands them over there. Go on from states[i]."
)
def averages_kept_elsewhere(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    mine = [getattr(param, "averages", {}) for param in params]
    adamw_step.reference(params, grads, mine, lr, betas, eps, weight_decay)
    for param, state, kept in zip(params, states, mine, strict=True):
        param.averages = kept
        state.update(kept)


@adamw_step.misconception(
    "You put a new dict into states[i]. It holds the right numbers, but whoever else holds the old "
    "one, as an optimizer does for its checkpoints, never sees them. Fill the dict that is there."
)
def states_replaced(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    states[:] = [dict(state) for state in states]
    adamw_step.reference(params, grads, states, lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "At the first gradient that is None you leave the loop, and the parameters behind it are not "
    "moved. Only this one is to be skipped."
)
def stops_at_the_first_none(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    count = next((i for i, grad in enumerate(grads) if grad is None), len(grads))
    adamw_step.reference(
        params[:count], grads[:count], states[:count], lr, betas, eps, weight_decay
    )


@adamw_step.misconception(
    "Your correction is missing. Both averages start at zero; without the correction the first "
    "steps are about three times too long."
)
def no_bias_correction(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def move(m, v, t):
        return m / (v.sqrt() + eps)

    update(params, grads, states, lr, betas, eps, weight_decay, move)


@adamw_step.misconception(
    "Your eps stands inside the root. There its floor is 1e-4 instead of 1e-8, and gradients "
    "below that are damped away."
)
def epsilon_inside_the_root(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / (v / (1 - betas[1] ** t) + eps).sqrt()

    update(params, grads, states, lr, betas, eps, weight_decay, move)


@adamw_step.misconception(
    "You add eps before you correct v. Then eps is divided by the correction too, and in the first "
    "steps it weighs some thirty times as much. It is added last."
)
def epsilon_before_the_correction(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / ((v.sqrt() + eps) / (1 - betas[1] ** t) ** 0.5)

    update(params, grads, states, lr, betas, eps, weight_decay, move)


@adamw_step.misconception(
    "The averages are right, but you correct them for 0.9 and 0.999 whatever betas is. Those are "
    "its defaults. The correction undoes the zero start of these averages, with the betas that "
    "made them."
)
def corrected_by_the_usual_betas(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def move(m, v, t):
        return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps)

    update(params, grads, states, lr, betas, eps, weight_decay, move)


@adamw_step.misconception(
    "`param.data = ...` gives the parameter other memory. Its values are right, but a view of the "
    "old memory, or whatever else shares it, keeps the old ones. Write into the memory that is "
    "there."
)
def memory_exchanged(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    fresh = [param.detach().clone() for param in params]
    adamw_step.reference(fresh, grads, states, lr, betas, eps, weight_decay)
    for param, moved in zip(params, fresh, strict=True):
        param.data = moved


@adamw_step.misconception(
    "`param = param * ...` makes a new tensor and gives it your local name; the caller's parameter "
    "has not moved. Change the tensor itself."
)
def moves_a_local_name(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    fresh = [param.detach().clone() for param in params]
    adamw_step.reference(fresh, grads, states, lr, betas, eps, weight_decay)


@adamw_step.misconception(
    "You changed a leaf that requires grad while autograd was recording, which it refuses. An "
    "update is not part of any loss: say that nothing shall be recorded."
)
def autograd_still_recording(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    for param, grad, state in zip(params, grads, states, strict=True):
        if grad is not None:
            param *= 1 - lr * weight_decay
            adamw_step.reference([param], [grad], [state], lr, betas, eps, 0.0)


@adamw_step.misconception(
    "You added the decay to the caller's gradient in place. Gradients are read only, and AdamW's "
    "decay has no business in them anyway."
)
def edits_the_gradients(
    params, grads, states, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    def fed(param, grad):
        return grad.add_(param, alpha=weight_decay)

    steps(params, grads, states, lr, betas, eps, weight_decay, fed=fed, before=lambda p: None)


adamw_step.hints(
    "The gradient that feeds the averages stays raw. Where else can the decay act?",
    "Shrink first. What should one step do to a weight whose gradient is exactly zero?",
    "A parameter without a gradient is left alone before anything is made, counted or shrunk.",
)
