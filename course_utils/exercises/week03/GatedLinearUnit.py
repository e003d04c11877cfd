"""A gated unit: one projection, cut in two along the features."""

import torch
from torch import nn

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week03._modules import named_part, place, registered


@exercise(
    objectives=("module.composition", "module.layer_shapes"),
    forbids=(nn.functional.glu, torch._C._nn.glu),
)
class GatedLinearUnit(nn.Module):
    """A linear layer whose output is gated: x (..., in_features) -> (..., out_features).

    One nn.Linear named proj, with bias, maps to 2 * out_features. The first half of its output is
    the value, the second half the gate; return value * sigmoid(gate).

    Works for any number of leading dimensions, including none, for an empty batch, and for gates
    as far from 0 as -1000 and 1000. All gradients flow and are finite. x is not modified and need
    not be contiguous. Do it without F.glu and nn.GLU.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


def unit(implementation, draw, inputs, outputs, dtype=torch.float32):
    """A unit with known weights."""
    weight = draw.normal(2 * outputs, inputs, dtype=dtype)
    values = {"proj.weight": weight, "proj.bias": draw.normal(2 * outputs, dtype=dtype)}
    return place(implementation(inputs, outputs).to(draw.device, dtype), values)


@GatedLinearUnit.case
def what_is_registered(implementation, draw):
    model = implementation(*draw.sizes(2))
    return registered(model) | {"proj": type(named_part(model, "proj")).__name__}


@GatedLinearUnit.case
def a_batch_of_rows(implementation, draw):
    inputs, outputs, batch = draw.sizes(3)
    x = draw.normal(batch, inputs)
    return {"output": unit(implementation, draw, inputs, outputs)(x), "the input afterwards": x}


@GatedLinearUnit.case
def as_many_rows_as_features(implementation, draw):
    inputs, outputs = draw.sizes(2)
    return unit(implementation, draw, inputs, outputs)(draw.normal(2 * outputs, inputs))


@GatedLinearUnit.case
def a_single_output_feature(implementation, draw):
    inputs, batch = draw.sizes(2)
    return unit(implementation, draw, inputs, 1)(draw.normal(batch, inputs))


@GatedLinearUnit.case
def one_and_three_dimensions_and_an_empty_batch(implementation, draw):
    inputs, outputs, steps = draw.sizes(3)
    model = unit(implementation, draw, inputs, outputs)
    return {
        "output for one dimension": model(draw.normal(inputs)),
        "output for three dimensions": model(draw.normal(2, steps, inputs)),
        "output for a transposed input": attempt(
            model, draw.normal(steps, 2, inputs).transpose(0, 1)
        ),
        "output for an empty batch": model(draw.normal(0, inputs)),
    }


@GatedLinearUnit.case
def gates_far_from_zero(implementation, draw):
    model = implementation(1, 2).to(draw.device)
    weight = torch.cat([draw.uniform(2, low=1, high=2), draw.tensor([-1000.0, 1000.0])])
    place(model, {"proj.weight": weight[:, None], "proj.bias": torch.zeros(4)})
    x = draw.tensor([[1.0], [-1.0]], requires_grad=True)
    output = model(x)
    found = gradients(output, [x, named_part(model, "proj.weight")], draw.normal(2, 2))
    return {"1. output": output, "2. gradients of x and proj.weight": found}


@GatedLinearUnit.case
def in_float64(implementation, draw):
    inputs, outputs, batch = draw.sizes(3)
    model = unit(implementation, draw, inputs, outputs, torch.float64)
    return model(draw.normal(batch, inputs, dtype=torch.float64))


@GatedLinearUnit.case
def gradients_of_input_weight_and_bias(implementation, draw):
    inputs, outputs, batch = draw.sizes(3)
    model = unit(implementation, draw, inputs, outputs)
    x = draw.normal(batch, inputs, requires_grad=True)
    wanted = [x, named_part(model, "proj.weight"), named_part(model, "proj.bias")]
    found = gradients(model(x), wanted, draw.normal(batch, outputs))
    if isinstance(found, str):
        return found
    return dict(zip(("gradient of x", "of proj.weight", "of proj.bias"), found, strict=True))


@GatedLinearUnit.misconception(
    "The halves traded roles: the first half is the value and stays as it is, the second is the "
    "gate. You gated with the first."
)
class halves_swapped(GatedLinearUnit.reference):
    def forward(self, x):
        gate, value = self.proj(x).chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


@GatedLinearUnit.misconception(
    "You split along dim 1. That is the feature dimension of two-dimensional input only; features "
    "are the last dimension, however many come before."
)
class wrong_axis(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


@GatedLinearUnit.misconception(
    "You split the first dimension, the rows of the batch: the second half of the examples gates "
    "the first. Each example should be gated by its own features."
)
class splits_batch(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2)
        return value * torch.sigmoid(gate)


@GatedLinearUnit.misconception(
    "The gate multiplies as it is. Without a sigmoid this is a bilinear layer; a gate lies "
    "between 0 and 1."
)
class no_sigmoid(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * gate


@GatedLinearUnit.misconception(
    "Both halves went through a sigmoid. Only the gate is squashed; the value keeps its sign and "
    "its size."
)
class both_squashed(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = torch.sigmoid(self.proj(x)).chunk(2, dim=-1)
        return value * gate


@GatedLinearUnit.misconception(
    "The gate goes through tanh, which lies between -1 and 1 and can turn the sign of the value. "
    "The task asks for a sigmoid."
)
class gate_through_tanh(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * torch.tanh(gate)


@GatedLinearUnit.misconception(
    "You multiplied the value by gate * sigmoid(gate). That is another unit of the family (with "
    "SiLU); here the sigmoid alone is the factor."
)
class gate_through_silu(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.silu(gate)


@GatedLinearUnit.misconception(
    "You took every second feature as the value and the others as the gate. The halves lie one "
    "after the other, not interleaved."
)
class interleaved(GatedLinearUnit.reference):
    def forward(self, x):
        both = self.proj(x)
        return both[..., 0::2] * torch.sigmoid(both[..., 1::2])


@GatedLinearUnit.misconception(
    "For gates far from 0 an exponential overflows, and inf divided by inf is NaN, in the output "
    "or in the gradient. Is there a function that takes care of both ends?"
)
class sigmoid_by_hand(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value / (1 + torch.exp(-gate))


@GatedLinearUnit.misconception(
    "The gate is cut from the graph, so the second half of proj gets no gradient and never learns "
    "when to open."
)
class gate_detached(GatedLinearUnit.reference):
    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * torch.sigmoid(gate.detach())


@GatedLinearUnit.misconception(
    "proj has no bias. The task asks for a layer with one: look at the state dict."
)
class without_bias(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features, bias=False)

    forward = GatedLinearUnit.reference.forward


@GatedLinearUnit.misconception(
    "proj makes only out_features numbers, which serve as value and as gate. It should make twice "
    "as many, half of them for each role."
)
class gates_itself(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)

    def forward(self, x):
        both = self.proj(x)
        return both * torch.sigmoid(both)


@GatedLinearUnit.misconception(
    "A result with one output feature lost its last dimension. (..., in_features) becomes "
    "(..., out_features), also when out_features is 1."
)
class squeezes_one_feature(GatedLinearUnit.reference):
    def forward(self, x):
        return super().forward(x).squeeze(-1)


GatedLinearUnit.hints(
    "What is the shape of proj's output for x of shape (5, 3)? And for x of shape (2, 5, 3)?",
    "Count dimensions from the end: which number means the last one, whatever comes before?",
    "Work out an example with 2 output features by hand, with a gate so large that it is open.",
)
