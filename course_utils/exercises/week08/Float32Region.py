"""A float32 island inside autocast."""

import copy
import warnings
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("amp.float32_region", "amp.autocast"))
class Float32Region(nn.Module):
    """Run `inner` in float32 even when the caller is inside torch.autocast.

    Float32Region(inner: nn.Module); forward(*args) returns inner(*args), where float16 and
    bfloat16 tensors among the arguments are first converted to float32, differentiably, and
    autocast is disabled for the device type of the tensors while inner runs. All other arguments
    (float32, float64, integer and bool tensors, Python values, lists whatever they hold) are passed
    on unchanged. The result is returned as inner gives it.

    inner is registered as the attribute `inner`, and its weights are not modified. Afterwards, also
    after an exception, the caller's autocast state is what it was.

    At least one argument is a tensor, not necessarily the first, and all tensors share one device.
    There are no keyword arguments.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        narrow = torch.float16, torch.bfloat16
        wide = [
            arg.float() if isinstance(arg, torch.Tensor) and arg.dtype in narrow else arg
            for arg in args
        ]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return self.inner(*wide)


class Witness(nn.Module):
    """Notes what it is given and whether autocast is on; returns its first tensor doubled."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen, self.given = device, [], ()

    def forward(self, *args):
        self.given = args
        kinds = [arg.dtype if isinstance(arg, torch.Tensor) else type(arg).__name__ for arg in args]
        self.seen.append({"given": kinds, "autocast": self.autocast()})
        return 2 * next(arg for arg in args if isinstance(arg, torch.Tensor))

    def autocast(self):
        """Whether it is on here and, if so, whether somebody switched off that of CUDA instead."""
        if not torch.is_autocast_enabled(self.device.type):
            return "off"
        if not torch.is_autocast_enabled("cuda"):
            return "on for the CPU, off for CUDA"
        return f"on, for {torch.get_autocast_dtype(self.device.type)}"


class OnCUDA(torch.Tensor):
    """A tensor that says it lies on a GPU, so that no GPU is needed to ask it."""

    device = torch.device("cuda", 0)
    is_cuda, is_cpu = True, False


class Head(nn.Module):
    """A linear layer and a loss with a temperature."""

    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x, targets, temperature):
        return F.cross_entropy(self.linear(x) * temperature, targets)


class Failing(nn.Module):
    """A module that cannot run."""

    def forward(self, x):
        raise ValueError("this one never works")


def autocast(draw, dtype=torch.bfloat16, enabled=True, device=None):
    """Autocast on the device under test."""
    return torch.autocast((device or draw.device).type, dtype=dtype, enabled=enabled)


def state(draw):
    """Whether autocast is on, and for which dtype."""
    kind = draw.device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def witness(implementation, draw, dtypes, cast):
    """What inner saw of an input of each dtype, and what came back."""
    inner = Witness(draw.device)
    region = implementation(inner)
    with autocast(draw, cast or torch.bfloat16, enabled=cast is not None):
        results = [region(draw.normal(2, 3).to(dtype)) for dtype in dtypes]
    return {"inner saw": inner.seen, "results": results}


ALL = torch.bfloat16, torch.float16, torch.float32


@Float32Region.case
def inside_bfloat16_autocast(implementation, draw):
    return witness(implementation, draw, ALL, torch.bfloat16)


@Float32Region.case
def inside_float16_autocast(implementation, draw):
    return witness(implementation, draw, (torch.float16, torch.float32), torch.float16)


@Float32Region.case
def without_autocast(implementation, draw):
    return witness(implementation, draw, ALL, None)


@Float32Region.case
def on_the_CPU_while_autocast_is_on_for_CUDA_too(implementation, draw):
    cpu = torch.device("cpu")
    inner = Witness(cpu)
    region = implementation(inner)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with autocast(draw, device=cpu):
            region(draw.normal(3).cpu().bfloat16())
    finally:
        torch.set_autocast_enabled("cuda", before)
    return inner.seen


@Float32Region.case
def on_CUDA_while_autocast_is_on_there(implementation, draw):
    inner = Witness(torch.device("cuda"))
    region = implementation(inner)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        # What autocast asks before it believes in CUDA; with no GPU here it would only warn.
        with mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False):
            attempt(region, 2, draw.normal(3).half().as_subclass(OnCUDA))
    finally:
        torch.set_autocast_enabled("cuda", before)
    return inner.seen


@Float32Region.case
def several_tensors_of_16_bits(implementation, draw):
    inner = Witness(draw.device)
    with autocast(draw):
        result = implementation(inner)(
            draw.normal(3), draw.normal(2).half(), 2, draw.normal(2).bfloat16()
        )
    return [result, inner.seen]


@Float32Region.case
def a_linear_layer_and_a_loss(implementation, draw):
    features, classes, batch = draw.sizes(3)
    region = implementation(head(draw, features, classes))
    x, targets = draw.normal(batch, features), draw.integers(0, classes - 1, batch)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        with autocast(draw):
            results.append(attempt(region, x.to(dtype), targets, draw.number(2, 3)))
    results.append(attempt(region, x.half(), targets, 1))
    return results


def head(draw, features, classes):
    """A head with known weights."""
    made = Head(features, classes).to(draw.device)
    with torch.no_grad():
        made.linear.weight.copy_(draw.normal(classes, features))
        made.linear.bias.copy_(draw.normal(classes))
    return made


@Float32Region.case
def numbers_whose_products_leave_float16(implementation, draw):
    features = draw.whole(3, 7)
    inner = nn.Linear(features, 2, bias=False, device=draw.device)
    with torch.no_grad():
        inner.weight.copy_(100 + 200 * draw.uniform(2, features))
    x = (300 + 100 * draw.uniform(4, features)).half()
    with autocast(draw, torch.float16):
        return attempt(implementation(inner), x)


@Float32Region.case
def a_float64_inner(implementation, draw):
    features, outputs = draw.sizes(2)
    inner = nn.Linear(features, outputs, dtype=torch.float64, device=draw.device)
    with torch.no_grad():
        inner.weight.copy_(draw.normal(outputs, features, dtype=torch.float64))
    region = implementation(inner)
    x = draw.normal(3, features, dtype=torch.float64)
    with autocast(draw):
        return [attempt(region, x) if on else attempt(inner, x) for on in (True, False)]


@Float32Region.case
def arguments_that_are_not_to_be_touched(implementation, draw):
    inner = Witness(draw.device)
    args = (3, "mean", draw.normal(2).bfloat16(), draw.integers(0, 5, 3), draw.normal(3) > 0,
            draw.normal(2), draw.normal(2, dtype=torch.float64), None,
            draw.integers(0, 5, 2, dtype=torch.int16), [draw.normal(2).bfloat16()])  # fmt: skip
    with autocast(draw):
        error = attempt(implementation(inner), *args)
    passed_on = [mine is given for mine, given in zip(inner.given, args, strict=False)]
    return [error, inner.seen, {"the same object": passed_on}]


@Float32Region.case
def the_state_of_autocast_afterwards(implementation, draw):
    x, states = draw.normal(2).bfloat16(), []
    with autocast(draw, enabled=False):  # whatever is left behind ends here
        for inner in (Witness(draw.device), Failing()):
            region = implementation(inner)
            for dtype, enabled in ((torch.float16, True), (torch.bfloat16, False)):
                with autocast(draw, dtype, enabled):
                    result = attempt(region, x)
                    states.append([state(draw), isinstance(result, Exception)])
    return states


@Float32Region.case
def gradients_of_input_and_weight(implementation, draw):
    features, classes, batch = draw.sizes(3)
    inner = head(draw, features, classes)
    region = implementation(inner)
    x = draw.normal(batch, features).bfloat16().requires_grad_()
    with autocast(draw):
        loss = region(x, draw.integers(0, classes - 1, batch), draw.number(1, 2))
    (loss * draw.number(2, 4)).backward()
    return {"of x": x.grad, "of the weight": inner.linear.weight.grad}


@Float32Region.case
def what_is_registered(implementation, draw):
    inner = head(draw, *draw.sizes(2)).bfloat16().eval()
    region = implementation(inner)
    region.train()
    names = {name: parameter.dtype for name, parameter in region.named_parameters()}
    return [names, getattr(region, "inner", None) is inner, inner.training]


@Float32Region.case
def hooks_and_results_of_inner(implementation, draw):
    extra, results = draw.number(1, 2), []
    for change in (
        lambda module, args, out: {"out": out.half(), "extra": [extra]},
        lambda module, args, out: (out, extra),
    ):
        inner = Witness(draw.device)
        inner.register_forward_hook(change)
        with autocast(draw):
            results.append(implementation(inner)(draw.normal(3).bfloat16()))
    return results


def is_narrow(value):
    """Whether this is a tensor in a 16-bit float format."""
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def device_type(args):
    """The device type of the first tensor."""
    return next(arg.device.type for arg in args if isinstance(arg, torch.Tensor))


@Float32Region.misconception(
    "You convert the inputs and leave autocast on. A linear layer inside casts them straight back "
    "to 16 bits; autocast has to be switched off as well."
)
class autocast_left_on(Float32Region.reference):
    def forward(self, *args):
        return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "You switch autocast off and pass 16-bit inputs on. Now they meet float32 weights, and a "
    "matrix product of two dtypes raises; convert the inputs as well."
)
class inputs_left_in_16_bits(Float32Region.reference):
    def forward(self, *args):
        with torch.autocast(device_type(args), enabled=False):
            return self.inner(*args)


@Float32Region.misconception(
    'Your device type is the word "cuda". Autocast has a state for each device type; switching '
    "it off for CUDA does nothing for tensors on the CPU."
)
class device_type_hard_coded(Float32Region.reference):
    def forward(self, *args):
        with torch.autocast("cuda", enabled=False):
            return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    'Your device type is the word "cpu". Autocast has a state for each device type; on a GPU it '
    "stays on while inner runs. Ask the tensors."
)
class device_type_is_the_cpu(Float32Region.reference):
    def forward(self, *args):
        with torch.autocast("cpu", enabled=False):
            return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "You ask autocast for float32 instead of switching it off. On the CPU it refuses, warns and "
    "happens to be off; on CUDA it stays on. What it needs is enabled=False."
)
class autocast_to_float32(Float32Region.reference):
    def forward(self, *args):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device_type(args), dtype=torch.float32):
                return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "You convert every tensor with elements of two bytes. int16 is one of them, and it holds whole "
    "numbers; ask for the dtype."
)
class everything_of_two_bytes(Float32Region.reference):
    def forward(self, *args):
        wide = [
            arg.float() if isinstance(arg, torch.Tensor) and arg.element_size() == 2 else arg
            for arg in args
        ]
        with torch.autocast(device_type(args), enabled=False):
            return self.inner(*wide)


@Float32Region.misconception(
    "You run a copy of inner. Weights, hooks and notes of the module that was passed are then no "
    "longer those that run; keep the module itself."
)
class a_copy_of_inner(Float32Region.reference):
    def __init__(self, inner):
        super().__init__(copy.deepcopy(inner))


@Float32Region.misconception(
    "You convert every tensor. Class indices, masks and other integers are not measurements: a "
    "loss or an embedding needs them as they are."
)
class integers_converted(Float32Region.reference):
    def forward(self, *args):
        wide = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
        with torch.autocast(device_type(args), enabled=False):
            return self.inner(*wide)


@Float32Region.misconception(
    "You convert every floating tensor to float32. That widens 16-bit tensors, and it narrows "
    "float64 ones; leave those alone."
)
class float64_narrowed(Float32Region.reference):
    def forward(self, *args):
        wide = [
            arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
            for arg in args
        ]
        with torch.autocast(device_type(args), enabled=False):
            return self.inner(*wide)


@Float32Region.misconception(
    "You convert the result only. The damage, overflow and rounding, was done before; float32 has "
    "to hold while inner runs."
)
class only_the_result_cast(Float32Region.reference):
    def forward(self, *args):
        result = self.inner(*args)
        return result.float() if is_narrow(result) else result


@Float32Region.misconception(
    "You convert the result back to the dtype of the input. The task asks for the result as inner "
    "gives it: a loss, above all, should stay in float32."
)
class result_cast_back(Float32Region.reference):
    def forward(self, *args):
        result = super().forward(*args)
        narrow = next((arg.dtype for arg in args if is_narrow(arg)), None)
        back = narrow and isinstance(result, torch.Tensor)
        return result.to(narrow) if back else result


@Float32Region.misconception(
    "Only bfloat16 is converted. float16 is a 16-bit format too, and the one with the smaller "
    "range."
)
class only_bfloat16_converted(Float32Region.reference):
    def forward(self, *args):
        wide = [
            arg.float() if is_narrow(arg) and arg.dtype is torch.bfloat16 else arg for arg in args
        ]
        with torch.autocast(device_type(args), enabled=False):
            return self.inner(*wide)


@Float32Region.misconception(
    "You convert the dtype that autocast is set to. The other 16-bit format can come in as well, "
    "from another autocast or from none; convert both."
)
class only_the_dtype_of_autocast(Float32Region.reference):
    def forward(self, *args):
        kind = device_type(args)
        cast = torch.get_autocast_dtype(kind)
        wide = [arg.float() if is_narrow(arg) and arg.dtype is cast else arg for arg in args]
        with torch.autocast(kind, enabled=False):
            return self.inner(*wide)


@Float32Region.misconception(
    "Only the first argument is converted, and it is the one you ask for the device. Go through "
    "all of them: each may be a tensor of 16 bits, and the first may be a number."
)
class only_the_first_argument(Float32Region.reference):
    def forward(self, first, *others):
        with torch.autocast(first.device.type, enabled=False):
            return self.inner(first.float() if is_narrow(first) else first, *others)


@Float32Region.misconception(
    "You ask the first argument for its device. It may be a number or a string; look for the first "
    "tensor among them."
)
class first_argument_asked_for_the_device(Float32Region.reference):
    def forward(self, *args):
        with torch.autocast(args[0].device.type, enabled=False):
            return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "The converted inputs are cut from the graph, so nothing before this region learns. A change "
    "of dtype is differentiable; do not detach."
)
class graph_cut_by_the_conversion(Float32Region.reference):
    def forward(self, *args):
        return super().forward(*[arg.detach() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "Autocast stays off after your region. Everything that the caller runs afterwards is in "
    "float32, without a word; use the context manager, which puts back what was there."
)
class autocast_stays_off(Float32Region.reference):
    def forward(self, *args):
        torch.set_autocast_enabled(device_type(args), False)
        return self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "Autocast is on after your region, whether it was before or not. Put back the caller's state; "
    "the context manager does it for you."
)
class autocast_always_on_afterwards(Float32Region.reference):
    def forward(self, *args):
        try:
            return super().forward(*args)
        finally:
            torch.set_autocast_enabled(device_type(args), True)


@Float32Region.misconception(
    "When inner raises, autocast stays off. What has to happen in any case is the business of a "
    "context manager, or of `finally`."
)
class state_lost_after_an_exception(Float32Region.reference):
    def forward(self, *args):
        kind = device_type(args)
        before = torch.is_autocast_enabled(kind)
        torch.set_autocast_enabled(kind, False)
        result = self.inner(*[arg.float() if is_narrow(arg) else arg for arg in args])
        torch.set_autocast_enabled(kind, before)
        return result


@Float32Region.misconception(
    "You convert the weights of inner to float32. They are not yours to change: a float64 module "
    "loses digits, and the caller's dtype is gone."
)
class weights_converted(Float32Region.reference):
    def __init__(self, inner):
        super().__init__(inner.float())


@Float32Region.misconception(
    "inner is not registered as `inner`. Kept in a list or under another name, its parameters are "
    "missed by the optimizer or have other names in a checkpoint."
)
class inner_not_registered(Float32Region.reference):
    def __init__(self, inner):
        nn.Module.__init__(self)
        object.__setattr__(self, "inner", inner)


@Float32Region.misconception(
    "inner is registered under another name. The task asks for the attribute `inner`; keys of "
    "checkpoints are built from it."
)
class inner_under_another_name(Float32Region.reference):
    def __init__(self, inner):
        nn.Module.__init__(self)
        self.module = inner

    def forward(self, *args):
        with torch.autocast(device_type(args), enabled=False):
            return self.module(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "You call inner.forward. That passes by the hooks of inner; call the module itself."
)
class hooks_passed_by(Float32Region.reference):
    def forward(self, *args):
        with torch.autocast(device_type(args), enabled=False):
            return self.inner.forward(*[arg.float() if is_narrow(arg) else arg for arg in args])


@Float32Region.misconception(
    "Your region does something only where autocast is on. Without it, 16-bit inputs go to inner "
    "as they are; convert them always."
)
class only_where_autocast_is_on(Float32Region.reference):
    def forward(self, *args):
        if torch.is_autocast_enabled(device_type(args)):
            return super().forward(*args)
        return self.inner(*args)


Float32Region.hints(
    "Two things are needed, and either alone is not enough. What happens to a float32 tensor that "
    "meets a linear layer under autocast? And to a bfloat16 one without autocast?",
    "torch.autocast can be entered with enabled=False. Which device type does it want, and which "
    "argument knows?",
    "Which tensors are to be converted? Those of two bytes that hold fractions; nothing else.",
)
