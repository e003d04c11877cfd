"""What DDP does in backward: every replica gets the mean of all gradients."""

import torch
from torch import nn

from course_utils.cases import same_storage
from course_utils.exercise import exercise


@exercise(objectives=("dist.ddp_semantics",))
def average_gradients(replicas: list[nn.Module]) -> None:
    """Give every replica the mean gradient, parameter by parameter, and return None.

    replicas are at least one model of the same build, one for each rank; their parameters come in
    the same order. The mean is over all replicas: where a .grad is None, it counts as zeros, and
    that replica gets the mean as well. A parameter without a gradient in any replica keeps None.

    Every .grad is a tensor of its own, shared with no other replica, and has no graph, even where
    the given gradients have one. Weights, buffers and modes stay as they are.
    """
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        found = [parameter.grad.detach() for parameter in group if parameter.grad is not None]
        if found:
            mean = sum(found) / len(replicas)
            for parameter in group:
                parameter.grad = mean.clone()


def replicas_of(draw, count, *, norm=False, dtype=torch.float32):
    """Models of one build with weights, and buffers, of their own."""
    inputs, outputs = draw.whole(3, 4), 2
    models = []
    for _ in range(count):
        model = nn.ModuleDict({"first": nn.Linear(inputs, outputs)})
        if norm:
            model["norm"] = nn.BatchNorm1d(outputs, affine=False)
            model["norm"].running_mean = draw.normal(outputs)
        models.append(model.to(draw.device, dtype).train(draw.choice((True, False))))
    return models


def give(draw, models, holders):
    """Draw gradients; holders: for each parameter's name the numbers of the replicas with one."""
    for number, model in enumerate(models):
        for name, parameter in model.named_parameters():
            if number in holders[name.rpartition(".")[2]]:
                parameter.grad = 3 * draw.normal(*parameter.shape, dtype=parameter.dtype)
    return models


def averaged(implementation, models):
    """What came back, the gradients, and which replicas share one; weights are watched anyway."""
    result = implementation(models)
    named = [dict(model.named_parameters()) for model in models]
    return {
        "1. result": result,
        "2. gradients": [{f"{k}.grad": p.grad for k, p in part.items()} for part in named],
        "3. replicas with one memory": [
            f"{other} and {number}: {name}.grad"
            for number, mine in enumerate(named)
            for other in range(number)
            for name in mine
            if mine[name].grad is not None
            and named[other][name].grad is not None
            and same_storage(mine[name].grad, named[other][name].grad)
        ],
    }


@average_gradients.case
def two_replicas(implementation, draw):
    models = give(draw, replicas_of(draw, 2), {"weight": (0, 1), "bias": (0, 1)})
    return averaged(implementation, models)


@average_gradients.case(tolerance=(1e-10, 1e-12))
def three_replicas_with_buffers(implementation, draw):
    models = replicas_of(draw, 3, norm=True, dtype=torch.float64)
    return averaged(implementation, give(draw, models, {"weight": (0, 1, 2), "bias": (0, 1, 2)}))


@average_gradients.case
def one_of_three_has_no_gradient(implementation, draw):
    first, second = draw.python_random.sample(range(1, 3), 2)
    holders = {"weight": {0, 1, 2} - {first}, "bias": {0, 1, 2} - {second}}
    return averaged(implementation, give(draw, replicas_of(draw, 3), holders))


@average_gradients.case
def only_one_of_three_has_a_gradient(implementation, draw):
    holders = {"weight": (draw.whole(1, 2),), "bias": (0,)}
    return averaged(implementation, give(draw, replicas_of(draw, 3), holders))


@average_gradients.case
def a_gradient_of_zeros(implementation, draw):
    models = give(draw, replicas_of(draw, 2), {"weight": (0, 1), "bias": (draw.whole(0, 1),)})
    for model in models:
        if model["first"].bias.grad is not None:
            model["first"].bias.grad.zero_()
    return averaged(implementation, models)


@average_gradients.case
def a_parameter_without_any_gradient(implementation, draw):
    models = replicas_of(draw, 2)
    for model in models:
        model["first"].bias.requires_grad_(False)
    return averaged(implementation, give(draw, models, {"weight": (0, 1), "bias": ()}))


@average_gradients.case
def a_single_replica(implementation, draw):
    models = give(draw, replicas_of(draw, 1), {"weight": (0,), "bias": ()})
    return averaged(implementation, models)


@average_gradients.case
def gradients_with_a_graph(implementation, draw):
    return with_a_graph(implementation, replicas_of(draw, draw.whole(2, 3)), draw)


@average_gradients.case
def a_single_replica_whose_gradients_have_a_graph(implementation, draw):
    return with_a_graph(implementation, replicas_of(draw, 1), draw)


def with_a_graph(implementation, models, draw):
    """As averaged, for gradients that can be differentiated themselves."""
    for model in models:
        loss = model["first"](draw.normal(4, model["first"].in_features)).square().sum()
        own = list(model.parameters())
        for parameter, grad in zip(own, torch.autograd.grad(loss, own, create_graph=True),
                                   strict=True):  # fmt: skip
            parameter.grad = grad
    seen = averaged(implementation, models)
    for model in models:  # gradients with a graph refer to the model, which refers to them
        for parameter in model.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad.detach()
    return seen


def mean_of(replicas, *, divisor=None, holders="all", own=True, empty="skip", detach=True):
    """The answer in parts that can be exchanged.

    divisor(number of replicas, number of gradients); holders: "all" get the mean, or those "with"
    a gradient, or the "first" replica; empty: "skip", or "zeros" for a parameter without any.
    """
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        found = [p.grad.detach() if detach else p.grad for p in group if p.grad is not None]
        if not found and empty == "skip":
            continue
        count = divisor(len(replicas), len(found)) if divisor else len(replicas)
        mean = sum(found) / count if found else torch.zeros_like(group[0])
        for number, parameter in enumerate(group):
            if (holders == "with" and parameter.grad is None) or (holders == "first" and number):
                continue
            parameter.grad = mean.clone() if own else mean


@average_gradients.misconception(
    "The gradients are summed and not divided. The step then grows with the number of ranks."
)
def sum_not_mean(replicas):
    return mean_of(replicas, divisor=lambda replicas, found: 1)


@average_gradients.misconception(
    "All replicas hold the same gradient tensor. Zeroing or clipping that of one would change "
    "all: give each a tensor of its own."
)
def shared_tensor(replicas):
    return mean_of(replicas, own=False)


@average_gradients.misconception(
    "You average the weights too. DDP exchanges gradients only; equal weights follow from equal "
    "starts and equal steps."
)
def weights_averaged(replicas):
    mean_of(replicas)
    with torch.no_grad():
        for group in zip(*(replica.parameters() for replica in replicas), strict=True):
            mean = sum(p.detach() for p in group) / len(group)
            for parameter in group:
                parameter.copy_(mean)


@average_gradients.misconception(
    "You average the weights and leave the gradients as they are. Look at what DDP exchanges in "
    "backward."
)
def only_weights_averaged(replicas):
    with torch.no_grad():
        for group in zip(*(replica.parameters() for replica in replicas), strict=True):
            mean = sum(p.detach() for p in group) / len(group)
            for parameter in group:
                parameter.copy_(mean)


@average_gradients.misconception(
    "You divide by the number of replicas that have a gradient. The divisor is the world size, "
    "whoever had one: a missing gradient counts as zeros."
)
def smaller_count(replicas):
    return mean_of(replicas, divisor=lambda replicas, found: found)


@average_gradients.misconception(
    "A replica without a gradient does not get the mean. It would stay behind when the others "
    "step; every replica gets it."
)
def missing_stays_missing(replicas):
    return mean_of(replicas, holders="with")


@average_gradients.misconception(
    "You skip a parameter as soon as one replica has no gradient for it. Only where no replica "
    "has one is there nothing to do; any and all are different questions."
)
def skipped_unless_all_have_one(replicas):
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        if all(p.grad is not None for p in group):
            mean = sum(p.grad.detach() for p in group) / len(group)
            for parameter in group:
                parameter.grad = mean.clone()


@average_gradients.misconception(
    "The first replica decides for all: without a gradient there, the parameter is skipped. "
    "Another replica may have one."
)
def first_replica_decides(replicas):
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        if group[0].grad is not None:
            mean = sum(p.grad.detach() for p in group if p.grad is not None) / len(group)
            for parameter in group:
                parameter.grad = mean.clone()


@average_gradients.misconception(
    "A parameter without a gradient in any replica gets zeros. Leave None: an optimizer skips "
    "None, but applies weight decay and momentum to zeros."
)
def zeros_where_nobody_has_one(replicas):
    return mean_of(replicas, empty="zeros")


@average_gradients.misconception(
    "Only the first replica gets the mean. There is no special rank: all replicas step, each with "
    "the mean."
)
def mean_only_on_rank_0(replicas):
    return mean_of(replicas, holders="first")


@average_gradients.misconception(
    "You overwrite gradients while later replicas still have to read them. Compute the mean from "
    "the gradients as given, then hand it out."
)
def overwritten_while_averaging(replicas):
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        if any(p.grad is not None for p in group):
            for parameter in group:
                total = sum(p.grad.detach() for p in group if p.grad is not None)
                parameter.grad = total / len(group)


@average_gradients.misconception(
    "The gradients still hang on a graph, which keeps all activations alive and makes "
    "requires_grad true. Detach them."
)
def graph_kept(replicas):
    return mean_of(replicas, detach=False)


@average_gradients.misconception(
    "A single replica is handed back as it came. Its mean is its own gradient, and that has to be "
    "without a graph, too."
)
def single_replica_left_alone(replicas):
    return mean_of(replicas) if len(replicas) > 1 else None


@average_gradients.misconception(
    "Where the gradients are all zeros you act as if there were none. Zeros are a gradient, None "
    "is the lack of one: ask with `is None`, and not for the values."
)
def zeros_taken_for_none(replicas):
    for group in zip(*(replica.parameters() for replica in replicas), strict=True):
        found = [p.grad.detach() for p in group if p.grad is not None]
        if any(grad.any() for grad in found):
            mean = sum(found) / len(replicas)
            for parameter in group:
                parameter.grad = mean.clone()


@average_gradients.misconception(
    "You average the buffers as well. DDP never averages them; it copies those of rank 0 before a "
    "forward."
)
def buffers_averaged(replicas):
    mean_of(replicas)
    for group in zip(*(replica.buffers() for replica in replicas), strict=True):
        if group[0].is_floating_point():
            mean = sum(group) / len(group)
            for buffer in group:
                buffer.copy_(mean)


average_gradients.hints(
    "zip over the parameters of all replicas gives you the same parameter of each rank together.",
    "Is there no gradient at all, or only some? any and all are two questions. The divisor does "
    "not depend on the answer.",
    "If several replicas are handed one tensor, they share it. Which method makes a tensor of its "
    "own?",
)
