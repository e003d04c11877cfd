"""Where the bytes of training are, counted tensor by tensor."""

import torch
from torch import nn

from course_utils.exercise import exercise


@exercise(objectives=("memory.budget",))
def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that live at this moment, by kind: keys "params", "buffers", "grads", "optimizer".

    params and buffers: all distinct parameters and buffers of the model and its submodules. Tied
    weights count once; frozen ones and non-persistent buffers count. grads: the gradients of these
    parameters that exist now. optimizer: all tensors in the optimizer's per-parameter state that
    exist now, those without dimensions included, whether the parameter belongs to model or not.
    Python numbers and None in that state count nothing; it holds no tensors inside lists. What is
    in param_groups, such as a learning rate that is a tensor, is no part of it.

    Count the number of elements times the element size, and change nothing. All tensors are dense
    and own their memory.
    """

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    values = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "params": size(model.parameters()),
        "buffers": size(model.buffers()),
        "grads": size(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": size(value for value in values if isinstance(value, torch.Tensor)),
    }


def give_gradients(*modules):
    """A gradient for every trainable parameter of the modules."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)


def layer(draw, dtype=torch.float32):
    """A linear layer of random size."""
    return nn.Linear(*draw.sizes(2), device=draw.device, dtype=dtype)


def trained(model, optimizer):
    """One step with a gradient everywhere."""
    give_gradients(model)
    optimizer.step()
    return model, optimizer


def count(implementation, model, optimizer):
    """The bytes, and how many parameters the optimizer keeps something for afterwards."""
    return {"bytes": implementation(model, optimizer), "states": len(optimizer.state)}


@state_bytes.case
def before_anything_ran(implementation, draw):
    model = nn.Sequential(layer(draw), nn.Sequential(layer(draw), nn.ReLU()))
    return count(implementation, model, torch.optim.AdamW(model.parameters()))


@state_bytes.case
def AdamW_from_backward_to_zero_grad(implementation, draw):
    model = layer(draw)
    optimizer = torch.optim.AdamW(model.parameters())
    give_gradients(model)
    seen = [count(implementation, model, optimizer)]
    optimizer.step()
    seen.append(count(implementation, model, optimizer))
    optimizer.zero_grad()
    return [*seen, count(implementation, model, optimizer)]


@state_bytes.case
def SGD_without_momentum(implementation, draw):
    model = layer(draw)
    return count(implementation, *trained(model, torch.optim.SGD(model.parameters(), lr=0.1)))


@state_bytes.case
def SGD_with_momentum(implementation, draw):
    model = layer(draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return count(implementation, *trained(model, optimizer))


@state_bytes.case
def Adam_with_amsgrad_and_a_learning_rate_that_is_a_tensor(implementation, draw):
    model = layer(draw)
    optimizer = torch.optim.Adam(model.parameters(), lr=draw.tensor(0.1), amsgrad=True)
    return count(implementation, *trained(model, optimizer))


@state_bytes.case
def an_optimizer_that_counts_in_Python_numbers(implementation, draw):
    model = layer(draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trained(model, optimizer)
    optimizer.state[model.bias] |= {"n_iter": draw.whole(1, 9), "prev_loss": None}  # like LBFGS
    return count(implementation, model, optimizer)


@state_bytes.case
def tied_embedding_and_output(implementation, draw):
    words, width = draw.sizes(2)
    model = nn.Sequential(nn.Embedding(words, width), nn.Linear(width, words)).to(draw.device)
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return count(implementation, *trained(model, optimizer))


@state_bytes.case
def a_frozen_bias(implementation, draw):
    model = layer(draw)
    model.bias.requires_grad_(False)
    return count(implementation, *trained(model, torch.optim.AdamW(model.parameters())))


@state_bytes.case
def a_layer_frozen_after_its_backward(implementation, draw):
    model = nn.ModuleList([layer(draw), layer(draw)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    give_gradients(model)
    model[0].requires_grad_(False)
    return count(implementation, model, optimizer)


@state_bytes.case
def a_second_group_from_outside_the_model(implementation, draw):
    model, outside = layer(draw), layer(draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": list(outside.parameters())})
    give_gradients(model, outside)
    optimizer.step()
    optimizer.zero_grad()
    return count(implementation, model, optimizer)


@state_bytes.case
def a_head_that_was_not_used(implementation, draw):
    model = nn.ModuleList([layer(draw), layer(draw)])
    optimizer = torch.optim.AdamW(model.parameters())
    give_gradients(model[0])
    optimizer.step()
    return count(implementation, model, optimizer)


@state_bytes.case
def batch_norm_and_a_mask_that_is_not_saved(implementation, draw):
    features, steps = draw.sizes(2)
    model = nn.Sequential(nn.BatchNorm1d(features), nn.Identity()).to(draw.device)
    model[1].register_buffer("mask", draw.normal(steps, steps) > 0, persistent=False)
    model.register_buffer("same_mask", model[1].mask, persistent=False)
    return count(implementation, model, torch.optim.SGD(model.parameters(), lr=0.1))


@state_bytes.case
def bfloat16_and_float64(implementation, draw):
    model = nn.ModuleList([layer(draw, torch.bfloat16), layer(draw, torch.float64)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return count(implementation, *trained(model, optimizer))


@state_bytes.case
def gradients_filled_with_zeros(implementation, draw):
    model = layer(draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    give_gradients(model)
    optimizer.zero_grad(set_to_none=False)
    return count(implementation, model, optimizer)


@state_bytes.case
def a_parameter_of_the_model_itself(implementation, draw):
    model = nn.Sequential(layer(draw))
    model.temperature = nn.Parameter(draw.normal(draw.whole(2, 5)))
    model.register_buffer("offset", draw.normal(draw.whole(2, 5), dtype=torch.float64))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    model.temperature.grad = torch.ones_like(model.temperature)
    return count(implementation, model, optimizer)


def size(tensors):
    """Bytes of the elements of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_tensors(optimizer):
    """All tensors in the optimizer's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def existing_gradients(model):
    """The gradients that are there."""
    return [p.grad for p in model.parameters() if p.grad is not None]


@state_bytes.misconception(
    "You count four bytes per element. A bfloat16 number takes 2, a float64 one 8, a bool 1; ask "
    "each tensor."
)
def four_bytes_per_element(model, optimizer):
    groups = (model.parameters(), model.buffers(), existing_gradients(model))
    names = "params", "buffers", "grads", "optimizer"
    counts = [4 * sum(t.numel() for t in group) for group in (*groups, state_tensors(optimizer))]
    return dict(zip(names, counts, strict=True))


@state_bytes.misconception(
    "You count elements. Bytes were asked for: multiply by the size of an element."
)
def elements_instead_of_bytes(model, optimizer):
    groups = (model.parameters(), model.buffers(), existing_gradients(model))
    names = "params", "buffers", "grads", "optimizer"
    counts = [sum(t.numel() for t in group) for group in (*groups, state_tensors(optimizer))]
    return dict(zip(names, counts, strict=True))


@state_bytes.misconception(
    "Your params are more than the parameters, as in a sum over the state_dict: it lists tied "
    "weights once for each name, and the buffers among them."
)
def sums_the_state_dict(model, optimizer):
    saved = size(model.state_dict().values())
    return state_bytes.reference(model, optimizer) | {"params": saved}


@state_bytes.misconception(
    "Your buffers are those of the state_dict. Non-persistent ones are not saved, and yet they "
    "take memory."
)
def buffers_from_the_state_dict(model, optimizer):
    saved = model.state_dict()
    buffers = [saved[name] for name, _ in model.named_buffers() if name in saved]
    return state_bytes.reference(model, optimizer) | {"buffers": size(buffers)}


@state_bytes.misconception(
    "You put twice the parameters for the optimizer. Its state appears at the first step, only for "
    "parameters that had a gradient, and how much it is depends on the optimizer; look into it."
)
def twice_the_parameters_for_the_optimizer(model, optimizer):
    right = state_bytes.reference(model, optimizer)
    return right | {"optimizer": 2 * right["params"]}


@state_bytes.misconception(
    "You count a gradient for every parameter. Frozen, unused and cleared parameters have none; "
    "look at .grad."
)
def gradients_for_every_parameter(model, optimizer):
    right = state_bytes.reference(model, optimizer)
    return right | {"grads": right["params"]}


@state_bytes.misconception(
    "You count a gradient for every parameter that requires one. Before backward and after "
    "zero_grad there is none; look at .grad."
)
def gradients_for_every_trainable_parameter(model, optimizer):
    trainable = [p for p in model.parameters() if p.requires_grad]
    return state_bytes.reference(model, optimizer) | {"grads": size(trainable)}


@state_bytes.misconception(
    "Tied weights are counted twice. One tensor under two names is one allocation; going through "
    "the submodules one by one does not notice."
)
def tied_weights_twice(model, optimizer):
    every = [p for module in model.modules() for p in module.parameters(recurse=False)]
    gradients = [p.grad for p in every if p.grad is not None]
    return state_bytes.reference(model, optimizer) | {
        "params": size(every),
        "grads": size(gradients),
    }


@state_bytes.misconception(
    "Your gradients are those of parameters that require one. A layer that was frozen after its "
    "backward still holds one; look at .grad alone."
)
def gradients_of_trainable_parameters(model, optimizer):
    trainable = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    return state_bytes.reference(model, optimizer) | {"grads": size(trainable)}


@state_bytes.misconception(
    "You look up the state of some parameters only, those of the model or of the first group. The "
    "optimizer may hold more; go through all of its state."
)
def state_of_the_model_only(model, optimizer):
    states = [optimizer.state.get(p, {}) for p in model.parameters()]
    values = [value for state in states for value in state.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return state_bytes.reference(model, optimizer) | {"optimizer": size(tensors)}


@state_bytes.misconception(
    "A buffer that two modules share is counted twice. It is one tensor; model.buffers() lists it "
    "once."
)
def shared_buffers_twice(model, optimizer):
    every = [b for module in model.modules() for b in module.buffers(recurse=False)]
    return state_bytes.reference(model, optimizer) | {"buffers": size(every)}


@state_bytes.misconception(
    "You left out frozen parameters. They are not trained, but they lie in memory all the same."
)
def frozen_left_out(model, optimizer):
    trainable = [p for p in model.parameters() if p.requires_grad]
    return state_bytes.reference(model, optimizer) | {"params": size(trainable)}


@state_bytes.misconception(
    "The step counters of Adam are missing. They are tensors without dimensions, 4 bytes each, and "
    "they count too."
)
def step_counters_left_out(model, optimizer):
    averages = [value for value in state_tensors(optimizer) if value.dim()]
    return state_bytes.reference(model, optimizer) | {"optimizer": size(averages)}


@state_bytes.misconception(
    "You count the two averages of Adam by name. Other optimizers, and Adam with amsgrad, keep "
    "something else; take whatever tensors the state holds."
)
def only_the_averages_of_Adam(model, optimizer):
    states = optimizer.state.values()
    known = [s[name] for s in states for name in ("step", "exp_avg", "exp_avg_sq") if name in s]
    return state_bytes.reference(model, optimizer) | {"optimizer": size(known)}


@state_bytes.misconception(
    "Your numbers are right, and optimizer.state has entries that it did not have before. It is a "
    "dictionary that makes an entry for each key it is asked for; go through what is there."
)
def looking_makes_entries(model, optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]
    return state_bytes.reference(model, optimizer)


@state_bytes.misconception(
    "You count the parameters that the optimizer holds. A model can have others, tied or frozen "
    "ones or a part that is trained elsewhere; ask the model."
)
def parameters_of_the_optimizer(model, optimizer):
    held = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in held if p.grad is not None]
    return state_bytes.reference(model, optimizer) | {
        "params": size(held),
        "grads": size(gradients),
    }


@state_bytes.misconception(
    "Buffers are counted as parameters as well. They have a line of their own."
)
def buffers_among_the_parameters(model, optimizer):
    right = state_bytes.reference(model, optimizer)
    return right | {"params": right["params"] + right["buffers"]}


@state_bytes.misconception("You look only at what the model itself holds, not at its submodules.")
def submodules_left_out(model, optimizer):
    own = list(model.parameters(recurse=False))
    return state_bytes.reference(model, optimizer) | {
        "params": size(own), "buffers": size(model.buffers(recurse=False)),
        "grads": size(p.grad for p in own if p.grad is not None),
    }  # fmt: skip


@state_bytes.misconception(
    "You take every value of the state for a tensor. Some optimizers keep Python numbers or None "
    "beside them, and those have no elements to count; ask what it is."
)
def every_value_is_a_tensor(model, optimizer):
    values = [value for state in optimizer.state.values() for value in state.values()]
    return state_bytes.reference(model, optimizer) | {"optimizer": size(values)}


state_bytes.hints(
    "model.parameters() lists each tensor once, however many names it has. What does the "
    "state_dict do?",
    "When does the state of Adam appear, and for whom? Print optimizer.state before and after a "
    "step.",
    "A tensor knows the number of its elements and the size of one. Which entries of the state are "
    "tensors?",
)
