"""Adam for one parameter: averages as they are stored, and as they are read."""

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("optim.adam", "optim.state"), forbids=(adam, adamw))
def adam_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    state: dict,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One Adam step, in place on param.

    state belongs to this parameter. It is {} at first. Afterwards it has exactly the keys "step"
    (an int, the number of calls so far) and "m" and "v" (the averages as they are, not corrected,
    shaped like param, in memory of their own). With t = 1 at the first call, b1, b2 = betas:

    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    param -= lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)

    Entries of grad may be 0 or as small as 1e-8. param may be a leaf that requires grad: it stays
    the same tensor, in the memory it has, and no graph is recorded. grad is not modified. Return
    None. Do without torch.optim.
    """
    b1, b2 = betas
    with torch.no_grad():
        if not state:
            state.update(step=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
        state["step"] += 1
        state["m"] = b1 * state["m"] + (1 - b1) * grad
        state["v"] = b2 * state["v"] + (1 - b2) * grad * grad
        m = state["m"] / (1 - b1 ** state["step"])
        v = state["v"] / (1 - b2 ** state["step"])
        param -= lr * m / (v.sqrt() + eps)


def walk(implementation, param, grads, *, scale=1.0, lr=0.1, **settings):
    """Take a step with each gradient; the moves in units of lr and the scaled state, at both ends.

    Moves and state are put on a scale near 1, where a tolerance means something.
    """
    state, seen = {}, []
    for grad in grads:
        before = param.detach().clone()
        result = implementation(param, grad, state, lr=lr, **settings)
        kept = dict(state)
        for name, power in (("m", 1), ("v", 2)):
            if isinstance(kept.get(name), torch.Tensor):
                kept[name] = kept[name] / scale**power
        move = (before - param.detach()) / lr
        seen.append(observe({"move / lr": move, "returned": result, "state": kept}))
    return {"first step": seen[0], "last step": seen[-1]}


@adam_step.case
def five_steps(implementation, draw):
    shape = draw.sizes(2, high=4)
    return walk(implementation, draw.normal(*shape), [draw.normal(*shape) for _ in range(5)])


@adam_step.case
def gradients_near_eps(implementation, draw):
    size = draw.whole(3, 5)
    param = draw.normal(size, dtype=torch.float64)
    grads = [1e-8 * draw.normal(size, dtype=torch.float64) for _ in range(3)]
    return walk(implementation, param, grads, scale=1e-8)


@adam_step.case
def large_gradients_with_zeros(implementation, draw):
    size = draw.whole(4, 6)
    grads = [1e3 * draw.normal(size) for _ in range(3)]
    for grad in grads[:2]:
        grad[:2] = 0
    return walk(implementation, draw.normal(size), grads, scale=1e3)


@adam_step.case
def a_large_eps(implementation, draw):
    shape = draw.sizes(2, high=4)
    grads = [0.02 * draw.normal(*shape) for _ in range(2)]
    return walk(implementation, draw.normal(*shape), grads, scale=0.02, eps=1e-2)


@adam_step.case
def other_betas(implementation, draw):
    size = draw.whole(3, 5)
    betas = draw.number(0.4, 0.7), draw.number(0.8, 0.95)
    grads = [draw.normal(size, dtype=torch.float64) for _ in range(4)]
    return walk(implementation, draw.normal(size, dtype=torch.float64), grads, betas=betas)


@adam_step.case
def one_number_and_the_default_rate(implementation, draw):
    param, state, places = draw.normal(dtype=torch.float64), {}, []
    for _ in range(2):
        implementation(param, draw.normal(dtype=torch.float64), state)
        places.append(1000 * param)
    return places


@adam_step.case
def a_gradient_of_zeros_after_another(implementation, draw):
    size = draw.whole(3, 5)
    return walk(implementation, draw.normal(size), [draw.normal(size), draw.tensor([0.0] * size)])


@adam_step.case
def a_state_from_a_run_before(implementation, draw):
    size = draw.whole(3, 5)
    m, v = draw.normal(size).clone(), draw.normal(size).square()
    param, state = draw.normal(size), {"step": draw.whole(2, 9), "m": m, "v": v}
    implementation(param, draw.normal(size), state, lr=0.1)
    return {"param": param, "state": state}


@adam_step.case
def a_leaf_that_requires_grad(implementation, draw):
    param = draw.normal(3, requires_grad=True)
    view = param.detach()
    seen = walk(implementation, param, [draw.normal(3) for _ in range(2)])
    return seen | {"leaf": param.is_leaf, "a view of its memory": view}


@adam_step.case
def a_gradient_that_the_caller_reuses(implementation, draw):
    param, grad, state = draw.normal(3), draw.normal(3), {}
    for _ in range(3):
        implementation(param, grad, state, lr=0.1)
        grad.copy_(draw.normal(3))
    return {"param": param, "state": state}


def steps(
    param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, *, first=None, second=None, move=None
):
    """One step of which a part can be exchanged.

    first(m) and second(v) return the new averages, move(m, v, t) what is subtracted over lr.
    """
    b1, b2 = betas
    with torch.no_grad():
        if not state:
            state.update(step=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
        state["step"] += 1
        m, v, t = state["m"], state["v"], state["step"]
        state["m"] = m = first(m) if first else b1 * m + (1 - b1) * grad
        state["v"] = v = second(v) if second else b2 * v + (1 - b2) * grad * grad
        usual = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        param -= lr * (move(m, v, t) if move else usual)


@adam_step.misconception(
    "You left the correction out. Both averages start at zero, but the root makes v's deficit "
    "smaller than m's stays: with the usual betas the first step comes out 3.16 times too long."
)
def no_bias_correction(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    steps(param, grad, state, lr, betas, eps, move=lambda m, v, t: m / (v.sqrt() + eps))


@adam_step.misconception(
    "You corrected only m. v started at zero as well, and at the first call it is a thousandth "
    "of the squared gradient: its root makes the early steps some thirty times too long."
)
def second_average_not_corrected(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / (v.sqrt() + eps)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "Your eps stands inside the root. There its floor is 1e-4 instead of 1e-8, and gradients "
    "below that are damped away."
)
def epsilon_inside_the_root(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / (v / (1 - betas[1] ** t) + eps).sqrt()

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "You add eps before you correct v. Then eps is divided by the correction too, and in the first "
    "steps it weighs some thirty times as much. It is added last."
)
def epsilon_before_the_correction(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / ((v.sqrt() + eps) / (1 - betas[1] ** t) ** 0.5)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "You stored the corrected averages. The correction undoes the zero start when the averages "
    "are read; written back, the same history is corrected again at the next call."
)
def corrected_moments_stored(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    steps(param, grad, state, lr, betas, eps)
    for name, beta in zip("mv", betas, strict=True):
        state[name] = state[name] / (1 - beta ** state["step"])


@adam_step.misconception(
    "Your t is 1 at every call. The correction then keeps multiplying by ten and by a thousand "
    "long after the averages have filled up. Count the calls in the state."
)
def step_counter_never_advances(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    state.pop("step", None)
    kept = {"step": 0, **state} if state else state
    steps(param, grad, kept, lr, betas, eps)
    state.update(kept)


@adam_step.misconception(
    "You count the call after you have used t. At the first call that is 0, the correction "
    "divides by 1 - 1, and nan comes out. t counts this call as well."
)
def counts_afterwards(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - betas[0] ** (t - 1)) / ((v / (1 - betas[1] ** (t - 1))).sqrt() + eps)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "You count the call after you have used t. At the first call that is 0, and Python refuses to "
    "divide by 1 - 1. t counts this call as well."
)
def counts_afterwards_in_python(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        1 / (1 - betas[0] ** (t - 1))

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "You made a new tensor and moved that. The optimizer's contract is to change the tensor it was "
    "given: the model never sees a local name that points elsewhere, nor what you return."
)
def returns_a_new_parameter(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    fresh = param.detach().clone()
    adam_step.reference(fresh, grad, state, lr, betas, eps)
    return fresh


@adam_step.misconception(
    "The state is right and the parameter has not moved: `param = param - ...` gives your local "
    "name to a new tensor. Change the tensor itself."
)
def moves_a_local_name(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    adam_step.reference(param.detach().clone(), grad, state, lr, betas, eps)


@adam_step.misconception(
    "`param.data = ...` gives the parameter other memory. Its values are right, but a view of the "
    "old memory, or whatever else shares it, keeps the old ones. Write into the memory that is "
    "there."
)
def memory_exchanged(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    fresh = param.detach().clone()
    adam_step.reference(fresh, grad, state, lr, betas, eps)
    param.data = fresh


@adam_step.misconception(
    "The averages stay in local names, or in another dict, and are lost when the function returns. "
    "Every call is a first call then. Write them into the state that came in."
)
def averages_not_stored(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    adam_step.reference(param, grad, {}, lr, betas, eps)


@adam_step.misconception(
    "You keep the averages in a place of your own and do not read the state that comes in. A run "
    "that goes on from a checkpoint hands them over there. Go on from state."
)
def averages_kept_elsewhere(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    param.averages = getattr(param, "averages", {})
    adam_step.reference(param, grad, param.averages, lr, betas, eps)
    state.update(param.averages)


@adam_step.misconception(
    "You do nothing when all of grad is 0. A gradient of zero is a gradient: the call counts, both "
    "averages decay, and m still moves the parameter."
)
def gradients_of_zeros_skipped(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    if grad.any():
        adam_step.reference(param, grad, state, lr, betas, eps)


@adam_step.misconception(
    "m is summed up like SGD's velocity, without the factor (1 - b1). Adam's averages are "
    "averages: what the old one gives up, the new gradient gets."
)
def sums_instead_of_averages(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    steps(param, grad, state, lr, betas, eps, first=lambda m: betas[0] * m + grad)


@adam_step.misconception(
    "Your v averages the size of the gradient, not its square, and then you take a root of it. "
    "The step then depends on the scale of the gradient."
)
def second_average_not_squared(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def second(v):
        return betas[1] * v + (1 - betas[1]) * grad.abs()

    steps(param, grad, state, lr, betas, eps, second=second)


@adam_step.misconception(
    "Your step divides by v itself. Only its root has the unit of a gradient, so that the size of "
    "the gradient cancels."
)
def divides_without_a_root(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - betas[0] ** t) / (v / (1 - betas[1] ** t) + eps)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "You move by the averages as they were before this gradient. Update m and v first, then move "
    "by the new ones."
)
def moves_by_the_old_averages(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    zeros = torch.zeros_like(param.detach())
    old = {"m": zeros, "v": zeros, **state}

    def move(m, v, t):
        return old["m"] / (1 - betas[0] ** t) / ((old["v"] / (1 - betas[1] ** t)).sqrt() + eps)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "The two betas are swapped: the first, shorter memory belongs to m, the second to v."
)
def betas_swapped(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    adam_step.reference(param, grad, state, lr, betas[::-1], eps)


@adam_step.misconception(
    "The averages are right, but you correct them for 0.9 and 0.999 whatever betas is. Those are "
    "its defaults. The correction undoes the zero start of these averages, with the betas that "
    "made them."
)
def corrected_by_the_usual_betas(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    def move(m, v, t):
        return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps)

    steps(param, grad, state, lr, betas, eps, move=move)


@adam_step.misconception(
    "m and v start as one and the same tensor, and an update in place of one of them changes the "
    "other. `a = b = zeros` makes one tensor with two names."
)
def one_tensor_with_two_names(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    with torch.no_grad():
        if not state:
            state["m"] = state["v"] = torch.zeros_like(param)
            state["step"] = 0
        state["step"] += 1
        state["m"].mul_(betas[0]).add_((1 - betas[0]) * grad)
        state["v"].mul_(betas[1]).add_((1 - betas[1]) * grad * grad)
        m, v = (state[n] / (1 - b ** state["step"]) for n, b in zip("mv", betas, strict=True))
        param -= lr * m / (v.sqrt() + eps)


@adam_step.misconception(
    "The first gradient itself became m, and your updates in place write into it. The gradient "
    "belongs to the caller, m is yours; and it starts at zero."
)
def first_average_is_the_gradient(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    if not state:
        state.update(step=0, m=grad, v=torch.zeros_like(param.detach()))
    with torch.no_grad():
        state["v"] = betas[1] * state["v"] + (1 - betas[1]) * grad * grad
        state["step"] += 1
        state["m"].mul_(betas[0]).add_((1 - betas[0]) * grad)
        m, v = (state[n] / (1 - b ** state["step"]) for n, b in zip("mv", betas, strict=True))
        param -= lr * m / (v.sqrt() + eps)


@adam_step.misconception(
    "The state has torch's names, exp_avg and exp_avg_sq. The task asks for m and v: whoever "
    "reads the state looks there."
)
def names_of_torch_in_the_state(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    names = {"exp_avg": "m", "exp_avg_sq": "v"}
    kept = {names.get(name, name): value for name, value in state.items()}
    adam_step.reference(param, grad, kept, lr, betas, eps)
    back = {new: old for old, new in names.items()}
    state.update({back.get(name, name): value for name, value in kept.items()})


@adam_step.misconception(
    "You changed a leaf that requires grad while autograd was recording, which it refuses. An "
    "update is not part of any loss: say that nothing shall be recorded."
)
def autograd_still_recording(param, grad, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    if not state:
        state.update(step=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
    state["step"] += 1
    state["m"] = betas[0] * state["m"] + (1 - betas[0]) * grad
    state["v"] = betas[1] * state["v"] + (1 - betas[1]) * grad * grad
    m, v = (state[n] / (1 - b ** state["step"]) for n, b in zip("mv", betas, strict=True))
    param -= lr * m / (v.sqrt() + eps)


adam_step.hints(
    "Update the two averages first, and store them as they are. Correct them only to read them.",
    "t counts this call: what is 1 - b1**t at the very first one?",
    "What should the step be when every gradient so far was the same number? Try it by hand.",
)
