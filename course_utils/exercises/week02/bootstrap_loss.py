"""A loss whose goal must not move: gradients through one half only."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(objectives=("autograd.detach", "autograd.grad_modes"))
def bootstrap_loss(
    value_net: nn.Module,
    target_net: nn.Module,
    states: torch.Tensor,
    next_states: torch.Tensor,
    rewards: torch.Tensor,
    discount: float,
) -> torch.Tensor:
    """Mean over rows of (V(s) - (r + discount * V_target(s')))**2, the goal in brackets a constant.

    V is `value_net`, V_target is `target_net`; both map (N, D) to (N, 1). `states` and
    `next_states` are (N, D), `rewards` is (N,) without grad, N is 1 or more.

    The result is a scalar. Its gradient reaches the parameters of `value_net` and `states` only
    through V(s). Nothing reaches the parameters of `target_net` or `next_states`, also when
    `target_net` is `value_net`. Each network itself (not a copy) is run, in the train or eval mode
    that it and its parts are in. Modes, requires_grad flags, every .grad and the grad mode are left
    as they were, also when recording is off. The tensors handed in are not modified.
    """
    with torch.no_grad():
        goal = rewards + discount * target_net(next_states).squeeze(1)
    return F.mse_loss(value_net(states).squeeze(1), goal)


def make_net(draw, inputs, dtype=torch.float32):
    """A small network from (N, inputs) to (N, 1), its weights drawn by the seed of the case."""
    return nn.Sequential(nn.Linear(inputs, 1), nn.Tanh()).to(draw.device, dtype)


def scene(draw, rows, inputs, dtype=torch.float32):
    """states and next_states that require grad, rewards and a discount."""
    states, next_states = (draw.normal(rows, inputs, dtype=dtype, requires_grad=True) for _ in "ab")
    return states, next_states, 2 * draw.normal(rows, dtype=dtype), draw.number(0.5, 0.99)


def flow(loss, states, next_states, value_net, target_net):
    """The loss and where its gradient arrives."""
    places = {"states": [states], "next_states": [next_states]}
    places["value_net"], places["target_net"] = [
        [*net.parameters()] for net in (value_net, target_net)
    ]
    flat = gradients(loss, [tensor for place in places.values() for tensor in place])
    if isinstance(flat, str):
        return {"loss": loss, "gradients": flat}
    arrived = iter(flat)
    return {"loss": loss} | {
        f"gradient of {name}": [next(arrived) for _ in place] for name, place in places.items()
    }


@bootstrap_loss.case
def two_networks(implementation, draw):
    inputs = draw.whole(2, 4)
    value_net, target_net = make_net(draw, inputs), make_net(draw, inputs)
    states, next_states, rewards, discount = scene(draw, 5, inputs)
    loss = implementation(value_net, target_net, states, next_states, rewards, discount)
    return flow(loss, states, next_states, value_net, target_net)


@bootstrap_loss.case
def one_network_in_both_places(implementation, draw):
    inputs = draw.whole(2, 4)
    net = make_net(draw, inputs)
    states, next_states, rewards, discount = scene(draw, 4, inputs)
    loss = implementation(net, net, states, next_states, rewards, discount)
    return flow(loss, states, next_states, net, net)


@bootstrap_loss.case(tolerance=(1e-10, 1e-12))
def a_single_row_in_float64(implementation, draw):
    inputs = draw.whole(2, 4)
    value_net, target_net = (make_net(draw, inputs, torch.float64) for _ in "ab")
    states, next_states, rewards, discount = scene(draw, 1, inputs, torch.float64)
    loss = implementation(value_net, target_net, states, next_states, rewards, discount)
    return flow(loss, states, next_states, value_net, target_net)


@bootstrap_loss.case
def flags_modes_and_grads_of_the_networks(implementation, draw):
    # What the networks look like after the call is compared for every argument. Dropout with
    # probability 1 is a difference between the modes without chance, and batch norm remembers that
    # it ran.
    inputs = draw.whole(2, 4)
    value_net, target_net = make_net(draw, inputs).eval(), make_net(draw, inputs)
    target_net.append(nn.BatchNorm1d(1, device=draw.device)).append(nn.Dropout(1.0))
    target_net[0].eval()
    value_net[0].bias.requires_grad_(False)
    target_net[0].weight.requires_grad_(False)
    for net in (value_net, target_net):
        net[0].weight.grad = draw.normal(1, inputs)
    states, next_states, rewards, discount = scene(draw, 3, inputs)
    states, next_states = states.detach(), next_states.detach()
    loss = implementation(value_net, target_net, states, next_states, rewards, discount)
    recording = torch.is_grad_enabled()
    return [
        loss,
        gradients(loss, value_net[0].weight),
        "recording" if recording else "not recording",
    ]


@bootstrap_loss.case
def no_discount_while_recording_is_off(implementation, draw):
    inputs = draw.whole(2, 4)
    value_net, target_net = make_net(draw, inputs), make_net(draw, inputs)
    states, next_states, rewards, _ = scene(draw, 3, inputs)
    with torch.no_grad():
        loss = implementation(value_net, target_net, states, next_states, rewards, 0.0)
        recording = torch.is_grad_enabled()
    value = loss.detach() if isinstance(loss, torch.Tensor) else loss
    return {"loss": value, "afterwards": "recording" if recording else "not recording"}


@bootstrap_loss.case
def a_target_network_that_hands_back_its_input(implementation, draw):
    value_net = make_net(draw, 1)
    states, next_states, rewards, discount = scene(draw, 3, 1)
    next_states = next_states.detach()
    return implementation(value_net, nn.Identity(), states, next_states, rewards, discount)


def pieces(value_net, target_net, states, next_states, rewards, discount):
    """Prediction and goal, both with their graphs."""
    goal = rewards + discount * target_net(next_states).squeeze(1)
    return value_net(states).squeeze(1), goal


@bootstrap_loss.misconception(
    "The goal moved too: gradients flowed into the target side and pull the goal toward the "
    "prediction."
)
def goal_attached(value_net, target_net, states, next_states, rewards, discount):
    prediction, goal = pieces(value_net, target_net, states, next_states, rewards, discount)
    return ((prediction - goal) ** 2).mean()


@bootstrap_loss.misconception(
    "You cut next_states, but the target network stands behind that cut: its own parameters still"
    " receive gradients. The goal as a whole is the constant."
)
def cuts_before_the_network(value_net, target_net, states, next_states, rewards, discount):
    return goal_attached(value_net, target_net, states, next_states.detach(), rewards, discount)


@bootstrap_loss.misconception(
    "You cut the prediction instead of the goal, so the network to be trained receives nothing."
)
def wrong_side_detached(value_net, target_net, states, next_states, rewards, discount):
    prediction, goal = pieces(value_net, target_net, states, next_states, rewards, discount)
    return ((prediction.detach() - goal) ** 2).mean()


@bootstrap_loss.misconception(
    "The number is right and no parameter has a path to it: either both halves were cut, or the "
    "loss was made anew out of a number. Switching requires_grad on later brings no graph back."
)
def both_detached(value_net, target_net, states, next_states, rewards, discount):
    prediction, goal = pieces(value_net, target_net, states, next_states, rewards, discount)
    return ((prediction.detach() - goal.detach()) ** 2).mean().requires_grad_()


@bootstrap_loss.misconception(
    "Switching off requires_grad changes the caller's network. If it is the same network, nothing"
    " trains; and next_states still receives a gradient through it."
)
def freezes_parameters(value_net, target_net, states, next_states, rewards, discount):
    target_net.requires_grad_(False)
    prediction, goal = pieces(value_net, target_net, states, next_states, rewards, discount)
    return ((prediction - goal) ** 2).mean()


@bootstrap_loss.misconception(
    "You switched requires_grad off and then on again for all parameters of the target network. "
    "Those that were frozen before are trainable now."
)
def unfreezes_everything(value_net, target_net, states, next_states, rewards, discount):
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    target_net.requires_grad_(True)
    return loss


@bootstrap_loss.misconception(
    "(N, 1) minus (N,) is (N, N): every prediction is compared with every goal."
)
def row_against_column(value_net, target_net, states, next_states, rewards, discount):
    goal = rewards + discount * target_net(next_states).squeeze(1).detach()
    return ((value_net(states) - goal) ** 2).mean()


@bootstrap_loss.misconception(
    "(N,) plus (N, 1) is (N, N): every reward is combined with every next state."
)
def reward_against_column(value_net, target_net, states, next_states, rewards, discount):
    goal = rewards + discount * target_net(next_states).detach()
    return ((value_net(states) - goal) ** 2).mean()


@bootstrap_loss.misconception(
    "Inside no_grad nothing is recorded, so this loss cannot be trained on. Only the goal belongs"
    " there."
)
@torch.no_grad()
def all_no_grad(value_net, target_net, states, next_states, rewards, discount):
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "Gradients stop before states. They may pass through V(s) to whatever produced the states; "
    "only next_states is cut off."
)
def states_detached(value_net, target_net, states, next_states, rewards, discount):
    return bootstrap_loss.reference(
        value_net, target_net, states.detach(), next_states, rewards, discount
    )


@bootstrap_loss.misconception(
    "You put the target network into eval mode. That does not stop gradients; it changes dropout "
    "and batch norm, and the caller finds another mode than before."
)
def switches_to_eval(value_net, target_net, states, next_states, rewards, discount):
    target_net.eval()
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You switched the target network to eval mode and back. The goal was computed in the wrong "
    "mode, and one word for the whole network does not bring back the modes of its parts."
)
def switches_to_eval_and_back(value_net, target_net, states, next_states, rewards, discount):
    was = target_net.training
    target_net.eval()
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    target_net.train(was)
    return loss


@bootstrap_loss.misconception(
    "The goal was computed in eval mode. That does not stop gradients, and it changes what dropout "
    "and batch norm give. Run the target network in the mode it is in."
)
def goal_in_eval_mode(value_net, target_net, states, next_states, rewards, discount):
    modes = [(part, part.training) for part in target_net.modules()]
    target_net.eval()
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    for part, mode in modes:
        part.training = mode
    return loss


@bootstrap_loss.misconception(
    "You put the value network into train mode. Which mode it is in is the caller's business."
)
def switches_to_train(value_net, target_net, states, next_states, rewards, discount):
    value_net.train()
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You switched on requires_grad of the caller's states. The gradient reaches the parameters "
    "without that; states receive one only if the caller wants it."
)
def switches_on_states(value_net, target_net, states, next_states, rewards, discount):
    states.requires_grad_()
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You cleared the gradients that were waiting in the target network. That belongs to whoever "
    "calls backward, not into a loss."
)
def clears_the_target(value_net, target_net, states, next_states, rewards, discount):
    target_net.zero_grad()
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You cleared the gradients that were waiting in the value network. That belongs to whoever "
    "calls backward, not into a loss."
)
def clears_the_value_net(value_net, target_net, states, next_states, rewards, discount):
    value_net.zero_grad()
    return bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "Recording is still switched off when your function is done, so the caller's next forward pass "
    "has no graph. A with block switches back by itself."
)
def leaves_recording_off(value_net, target_net, states, next_states, rewards, discount):
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    torch.set_grad_enabled(False)
    return loss


@bootstrap_loss.misconception(
    "You switched recording off and then on again. The caller may have switched it off for more "
    "than your call, and finds it on. A with block brings back what was there before."
)
def switches_recording_on(value_net, target_net, states, next_states, rewards, discount):
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    torch.set_grad_enabled(True)
    return loss


@bootstrap_loss.misconception(
    "A discount of 0 is a discount too: the next state then counts nothing. `or` and a plain `if` "
    "take 0.0 for nothing given."
)
def zero_discount_means_default(value_net, target_net, states, next_states, rewards, discount):
    return bootstrap_loss.reference(
        value_net, target_net, states, next_states, rewards, discount or 0.99
    )


@bootstrap_loss.misconception(
    "You ran a copy of the target network. What a layer notes down when it runs, as batch norm "
    "does in train mode, is lost with the copy, and copying costs time and memory at every step. "
    "Gradients can be stopped without one."
)
def runs_a_copy(value_net, target_net, states, next_states, rewards, discount):
    twin = copy.deepcopy(target_net)
    return bootstrap_loss.reference(value_net, twin, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You wrote into what the target network returned. That may be memory of somebody else, here "
    "next_states itself: a network can hand back its input or a view of it. Make a new tensor."
)
def edits_the_networks_output(value_net, target_net, states, next_states, rewards, discount):
    with torch.no_grad():
        goal = target_net(next_states).squeeze(1)
        goal *= discount
        goal += rewards
    return F.mse_loss(value_net(states).squeeze(1), goal)


@bootstrap_loss.misconception(
    "You added to the caller's rewards in place, and the next call finds them changed. Make a new "
    "tensor."
)
def edits_rewards(value_net, target_net, states, next_states, rewards, discount):
    with torch.no_grad():
        rewards += discount * target_net(next_states).squeeze(1)
    return F.mse_loss(value_net(states).squeeze(1), rewards)


@bootstrap_loss.misconception(
    "The goal is computed with value_net. It is the target network that says what the next state "
    "is worth."
)
def value_net_in_goal(value_net, target_net, states, next_states, rewards, discount):
    return bootstrap_loss.reference(value_net, value_net, states, next_states, rewards, discount)


@bootstrap_loss.misconception(
    "You discounted the reward as well. Only the value of the next state is discounted."
)
def discounts_the_reward(value_net, target_net, states, next_states, rewards, discount):
    return bootstrap_loss.reference(
        value_net, target_net, states, next_states, discount * rewards, discount
    )


@bootstrap_loss.misconception("You added the squares up. The loss is their mean over the rows.")
def sum_over_rows(value_net, target_net, states, next_states, rewards, discount):
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    return loss * len(rewards)


@bootstrap_loss.misconception(
    "You called backward inside the loss, which wrote into the parameters' .grad. Return the loss"
    " and let the caller decide."
)
def calls_backward(value_net, target_net, states, next_states, rewards, discount):
    loss = bootstrap_loss.reference(value_net, target_net, states, next_states, rewards, discount)
    loss.backward(retain_graph=True)
    return loss


bootstrap_loss.hints(
    "Which half of the difference is data, like a label, and which half is the model's?",
    "Stop the flow at a tensor, not at a module: switching a module's flags changes it for "
    "everybody.",
    "Print the shapes of prediction, reward and goal just before you subtract.",
)
