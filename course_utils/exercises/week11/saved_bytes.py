"""What autograd keeps for the backward pass, measured storage by storage."""

import torch
from torch import nn

from course_utils.exercise import exercise


@exercise(objectives=("ckpt.what_is_saved",))
def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass while module(x) runs once.

    Gradients are recorded during that run, even when the caller is inside no_grad. Count every
    storage in which a saved tensor lives exactly once, with all its bytes: a view keeps its whole
    storage alive. Storages of the module's parameters and buffers are left out; that memory exists
    anyway. x counts if it is saved.

    Return a Python int. No backward runs, and no mode, gradient or requires_grad changes.
    """
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # holding it keeps its address from being used again
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        module(x)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


class Square(nn.Module):
    """x * x: the same tensor is saved twice."""

    def forward(self, x):
        return x * x


class SharedSum(nn.Module):
    """Two uses of one layer, and an output that nobody saves."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(self.layer(x).tanh()) + x


class RowsAndColumns(nn.Module):
    """A parameter is used through views, and a product saves two views of one activation."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 2 * width)
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, x):
        gate, value = self.layer(x).chunk(2, dim=-1)
        return gate * value * self.scale


def measured(implementation, module, x):
    """The number, and what the call left on the module and on x."""
    result = implementation(module, x)
    return {
        "bytes": result,
        "training": [part.training for part in module.modules()],
        "gradients": [p.grad for p in (*module.parameters(), x)],
        "x.requires_grad": x.requires_grad,
    }


@saved_bytes.case
def linear_relu_linear(implementation, draw):
    inputs, hidden, outputs, batch = draw.sizes(4, high=19)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    model[2].requires_grad_(False)  # its weight is saved all the same: the first layer learns
    return measured(implementation, model.to(draw.device), draw.normal(batch, inputs))


@saved_bytes.case
def one_layer_used_twice(implementation, draw):
    width, batch = draw.sizes(2, high=19)
    model = SharedSum(width).to(draw.device)
    return measured(implementation, model, draw.normal(batch, width, requires_grad=True))


@saved_bytes.case
def batch_norm_in_evaluation_mode(implementation, draw):
    width, batch = draw.sizes(2, high=19)
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)).to(draw.device).eval()
    return measured(implementation, model, draw.normal(batch, width)) | {
        "batches that were counted": model[1].num_batches_tracked
    }


@saved_bytes.case
def float64(implementation, draw):
    width, batch = draw.sizes(2, high=19)
    model = nn.Sequential(nn.Linear(width, 3 * width), nn.Tanh()).to(draw.device, torch.float64)
    return measured(implementation, model, draw.normal(batch, width, dtype=torch.float64))


@saved_bytes.case
def x_is_a_small_view_of_a_large_tensor(implementation, draw):
    width, batch = draw.sizes(2, high=9)
    large = draw.normal(40 * batch, width)
    model = nn.Linear(width, draw.whole(2, 9)).to(draw.device)
    return measured(implementation, model, large[batch : 2 * batch])


@saved_bytes.case
def two_halves_of_one_activation(implementation, draw):
    width, batch = draw.sizes(2, high=19)
    model = RowsAndColumns(width).to(draw.device)
    return measured(implementation, model, draw.normal(batch, width))


@saved_bytes.case
def x_times_x(implementation, draw):
    x = draw.normal(*draw.sizes(2, high=19), requires_grad=True)
    return [measured(implementation, Square(), x), implementation(Square(), x.detach())]


@saved_bytes.case
def inside_no_grad(implementation, draw):
    width, batch = draw.sizes(2, high=19)
    model = nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, 2))
    with torch.no_grad():
        seen = measured(implementation, model.to(draw.device), draw.normal(batch, width))
        return seen | {"gradients are enabled afterwards": torch.is_grad_enabled()}


@saved_bytes.case
def dropout_and_a_long_chain(implementation, draw):
    width, batch = draw.whole(100, 120), draw.whole(120, 150)
    chain = [nn.Linear(width, width + 20), nn.Dropout(0.5), *(nn.Tanh() for _ in range(6))]
    model, runs = nn.Sequential(*chain).to(draw.device), []
    model[0].register_forward_hook(lambda *_: runs.append(1))
    seen = measured(implementation, model, draw.normal(batch, width))
    return seen | {"times the model ran": len(runs)}


def keep(module, x, count=lambda tensors, own: None, grad=torch.enable_grad):
    """All tensors that are saved and the storages of the module's own, handed to `count`."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        module(x)
    return count(saved, own)


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def distinct(tensors):
    """One tensor for each storage."""
    return {address(t): t for t in tensors}.values()


def whole(tensors):
    return sum(t.untyped_storage().nbytes() for t in tensors)


@saved_bytes.misconception(
    "You add up every save. A tensor is often saved more than once, as the output of one operation "
    "and the input of the next: one storage, one cost."
)
def every_save_counted(module, x):
    return keep(module, x, lambda saved, own: whole(t for t in saved if address(t) not in own))


@saved_bytes.misconception(
    "Parameters and buffers are among your bytes. A linear layer does save its weight, but that "
    "memory is there with or without a backward pass."
)
def parameters_included(module, x):
    return keep(module, x, lambda saved, own: whole(distinct(saved)))


@saved_bytes.misconception(
    "You left out the parameters and counted the buffers. Batch norm saves its running statistics, "
    "and they exist anyway as well."
)
def buffers_included(module, x):
    own = {address(p) for p in module.parameters()}
    return keep(
        module, x, lambda saved, _: whole(t for t in distinct(saved) if address(t) not in own)
    )


@saved_bytes.misconception(
    "Only parameters that require grad are left out. A frozen weight is saved where a layer before "
    "it learns, and it is a parameter as much as the others."
)
def frozen_parameters_included(module, x):
    learning = [p for p in module.parameters() if p.requires_grad]
    own = {address(t) for t in (*learning, *module.buffers())}
    return keep(
        module, x, lambda saved, _: whole(t for t in distinct(saved) if address(t) not in own)
    )


@saved_bytes.misconception(
    "You leave out what is in the state dict. A buffer may be registered as not persistent: then "
    "it is not in there, and the module owns it all the same."
)
def state_dict_left_out(module, x):
    own = {address(t) for t in module.state_dict().values()}
    return keep(
        module, x, lambda saved, _: whole(t for t in distinct(saved) if address(t) not in own)
    )


@saved_bytes.misconception(
    "You recognize parameters as objects. What a layer saves may be another tensor on the same "
    "memory, such as the transposed weight; compare storages."
)
def parameters_known_by_identity(module, x):
    own = {id(t) for t in (*module.parameters(), *module.buffers())}
    return keep(module, x, lambda saved, _: whole(distinct([t for t in saved if id(t) not in own])))


@saved_bytes.misconception(
    "You add up the outputs of the modules. Not every output is saved, and some saved tensors, "
    "such as the input or a dropout mask, are no module's output."
)
def sums_module_outputs(module, x):
    outputs = []
    parts = [part for part in module.modules() if not list(part.children())]
    handles = [part.register_forward_hook(lambda m, i, out: outputs.append(out)) for part in parts]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    return whole(distinct(outputs))


@saved_bytes.misconception(
    "Inside no_grad your answer is 0. Without gradients nothing is saved; the function has to "
    "switch them on itself."
)
def measured_under_no_grad(module, x):
    def as_it_is():
        return torch.set_grad_enabled(torch.is_grad_enabled())

    def count(saved, own):
        return whole(t for t in distinct(saved) if address(t) not in own)

    return keep(module, x, count, grad=as_it_is)


@saved_bytes.misconception(
    "Of a view you count what it shows. As long as it is kept, its whole storage is: a slice of "
    "one row can hold a table in memory."
)
def views_count_what_they_show(module, x):
    def count(saved, own):
        return sum(t.numel() * t.element_size() for t in distinct(saved) if address(t) not in own)

    return keep(module, x, count)


@saved_bytes.misconception(
    "Two views of one storage were counted as two. data_ptr() of a tensor tells where its first "
    "element is; the storage has an address of its own."
)
def told_apart_by_the_first_element(module, x):
    def count(saved, own):
        tensors = {t.data_ptr(): t for t in saved}.values()
        return whole(t for t in tensors if address(t) not in own)

    return keep(module, x, count)


@saved_bytes.misconception(
    "x is left out. It is no parameter: where a layer saves it, it cannot be freed before the "
    "backward pass."
)
def input_left_out(module, x):
    def count(saved, own):
        return whole(t for t in distinct(saved) if address(t) not in own | {address(x)})

    return keep(module, x, count)


@saved_bytes.misconception(
    "x is always counted. Where the layer needs no gradient for anything that depends on x, "
    "autograd does not keep it."
)
def input_always_counted(module, x):
    def count(saved, own):
        return whole(t for t in distinct([*saved, x]) if address(t) not in own)

    return keep(module, x, count)


@saved_bytes.misconception(
    "You measure with x detached. What autograd saves depends on whether x requires grad; hand x "
    "over as it is."
)
def x_detached(module, x):
    return saved_bytes.reference(module, x.detach())


@saved_bytes.misconception(
    "You measure with a copy of x. The copy has a storage of its own, of its own size; x may be a "
    "small view of a large one."
)
def x_copied(module, x):
    return saved_bytes.reference(module, x.clone())


@saved_bytes.misconception(
    "Gradients are switched on for good: a caller inside no_grad finds them enabled after your "
    "function. Switch them on for a block that ends."
)
def gradients_left_on(module, x):
    torch.set_grad_enabled(True)
    return saved_bytes.reference(module, x)


@saved_bytes.misconception(
    "Every element is taken for 4 bytes. How many it has depends on the dtype; a storage knows its "
    "size in bytes."
)
def four_bytes_each(module, x):
    def count(saved, own):
        kept = [t for t in distinct(saved) if address(t) not in own]
        return sum(4 * t.untyped_storage().nbytes() // t.element_size() for t in kept)

    return keep(module, x, count)


@saved_bytes.misconception(
    "Your function puts the module into training mode, and batch norm then counts a batch and "
    "saves other tensors. Measure in the mode it is in."
)
def switches_to_train(module, x):
    module.train()
    return saved_bytes.reference(module, x)


@saved_bytes.misconception(
    "A backward pass ran, and the gradients it left are now on the parameters. What is saved is "
    "known after the forward pass."
)
def runs_backward(module, x):
    with torch.enable_grad():
        output = module(x)
        if output.requires_grad:
            output.sum().backward()
    return saved_bytes.reference(module, x)


@saved_bytes.misconception(
    "requires_grad of x was switched on, and autograd saved more for its sake. Measure what "
    "happens with x as it is."
)
def makes_x_require_grad(module, x):
    return saved_bytes.reference(module, x.requires_grad_())


saved_bytes.hints(
    "torch.autograd.graph.saved_tensors_hooks shows you each tensor at the moment it is saved.",
    "Two tensors share a storage exactly when their untyped_storage() begins at the same address.",
    "Hold on to what you have seen until you have counted it: an address that was freed may be "
    "given to the next tensor.",
)
