"""A bug hunt: a module whose parameters do not all learn."""

import torch
from torch import nn

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(objectives=("debug.flow", "debug.inplace", "debug.batch_leak", "debug.grad_report"))
class GatedBranches(nn.Module):
    """A gated body with several heads: x (N, d_in) -> (N, n_heads, d_out).

    Parameters: gate and body, each nn.Linear(d_in, d_hidden), made in this order; log_temp, a 0-d
    parameter that starts at 0; heads, an nn.ModuleList of n_heads separate
    nn.Linear(d_hidden, d_out).

    g = sigmoid(gate(x) * exp(log_temp)); h = tanh(body(x)) * g, then each row of h minus its own
    mean over the features; output[:, k] = heads[k](h). All parameters and x get correct gradients.
    """

    def __init__(self, d_in: int, d_hidden: int, d_out: int, n_heads: int):
        super().__init__()
        self.gate = nn.Linear(d_in, d_hidden)
        self.body = nn.Linear(d_in, d_hidden)
        self.log_temp = nn.Parameter(torch.zeros(()))
        self.heads = nn.ModuleList(nn.Linear(d_hidden, d_out) for _ in range(n_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = torch.sigmoid(self.gate(x) * self.log_temp.exp())
        h = torch.tanh(self.body(x)) * g
        h = h - h.mean(dim=1, keepdim=True)
        return torch.stack([head(h) for head in self.heads], dim=1)


def loaded(implementation, draw, *, temperature, batch=None):
    """A module with drawn weights and log_temp, and an input that requires grad."""
    inputs, hidden, outputs, heads, rows = draw.sizes(5)
    made = implementation(inputs, hidden, outputs, heads)
    shapes = {
        "log_temp": (),
        "gate.weight": (hidden, inputs),
        "gate.bias": (hidden,),
        "body.weight": (hidden, inputs),
        "body.bias": (hidden,),
    }
    for k in range(heads):
        shapes |= {f"heads.{k}.weight": (outputs, hidden), f"heads.{k}.bias": (outputs,)}
    state = {name: draw.normal(*shape) for name, shape in shapes.items()}
    state["log_temp"].fill_(temperature)
    made = made.to(draw.device)
    refused = attempt(made.load_state_dict, state)
    x = draw.normal(batch or rows, inputs, requires_grad=True)
    return made, x, "loaded" if not isinstance(refused, Exception) else refused


def output_and_gradients(made, x, draw):
    """What comes out, and the gradients of x and of each parameter."""
    output = attempt(made, x)
    upstream = draw.normal(*output.shape) if isinstance(output, torch.Tensor) else None
    wanted = {"x": x} | dict(made.named_parameters())
    found = attempt(gradients, output, list(wanted.values()), upstream)
    named = dict(zip(wanted, found, strict=True)) if isinstance(found, tuple) else found
    return {"2. output": output, "3. gradients": named}


@GatedBranches.case
def a_state_dict_from_the_contract(implementation, draw):
    made, x, loading = loaded(implementation, draw, temperature=draw.number(0.5, 1.0))
    return {"1. loading": loading} | output_and_gradients(made, x, draw)


@GatedBranches.case
def a_low_temperature(implementation, draw):
    made, x, loading = loaded(implementation, draw, temperature=-draw.number(0.5, 1.5))
    return {"1. loading": loading} | output_and_gradients(made, x, draw)


@GatedBranches.case
def a_batch_of_one(implementation, draw):
    made, x, loading = loaded(implementation, draw, temperature=0.3, batch=1)
    return {"1. loading": loading} | output_and_gradients(made, x, draw)


@GatedBranches.case
def as_it_is_made(implementation, draw):
    inputs, hidden, outputs, heads = draw.sizes(4)
    made = implementation(inputs, hidden, outputs, heads).to(draw.device)
    names = {name: tuple(p.shape) for name, p in made.named_parameters()}
    apart = len({id(p) for p in made.parameters()})
    made_first = [name for name, _ in made.named_children()][:2]
    return {
        "1. parameters": names,
        "2. how many": apart,
        "3. log_temp": made.log_temp.detach(),
        "4. the first two parts": made_first,
        "5. heads in a ModuleList": isinstance(made.heads, nn.ModuleList),
    }


@GatedBranches.case
def after_one_step_of_sgd(implementation, draw):
    made, x, _ = loaded(implementation, draw, temperature=0.4)
    made.zero_grad()
    loss = (made(x).mean(dim=(1, 2)) - draw.normal(len(x))).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    return {"loss": loss.detach(), "output after the step": made(x.detach()).detach()}


def variant(explanation):
    """Record a class, which is GatedBranches but for one thing, as a misconception."""
    return GatedBranches.misconception(explanation)


Right = GatedBranches.reference


class Parts(Right):
    """The reference in parts, each of which can be done another way."""

    def temperature(self):
        return self.log_temp.exp()

    def gated(self, h, g):
        return h * g

    def centered(self, h):
        return h - h.mean(dim=1, keepdim=True)

    def squashed(self, x):
        return torch.tanh(self.body(x))

    def forward(self, x):
        g = torch.sigmoid(self.gate(x) * self.temperature())
        h = self.centered(self.gated(self.squashed(x), g))
        return torch.stack([head(h) for head in self.heads], dim=1)


@variant(
    "The temperature leaves the graph through item(): a Python number has no gradient, so log_temp "
    "is none in the report."
)
class temperature_through_item(Parts):
    def temperature(self):
        return self.log_temp.exp().item()


@variant(
    "tanh saves its output for backward, and multiplying that output in place invalidates what was "
    "saved. The error names the version; the cure is a new tensor for the product."
)
class in_place_product(Parts):
    def gated(self, h, g):
        h *= g
        return h


@variant(
    "The error is gone, and so is the gradient of the gate. detach cuts the branch; a new tensor "
    "for the product keeps it."
)
class silenced_with_detach(Parts):
    def gated(self, h, g):
        return h * g.detach()


@variant(
    "The error is gone because the edit goes through .data, which the version counter does not "
    "see. backward now uses the product where it should use tanh, and the gradients are wrong."
)
class silenced_with_data(Parts):
    def gated(self, h, g):
        h.data *= g.data
        return h


@variant(
    "The mean is taken over the batch. dim 0 couples the samples: each output depends on who else "
    "is in the batch. Center each row."
)
class mean_over_the_batch(Parts):
    def centered(self, h):
        return h - h.mean(dim=0, keepdim=True)


@variant(
    "The heads are in a plain list. Modules there are not registered: no parameters, no state, no "
    "move to a device, and no optimizer ever sees them."
)
class plain_list(Parts):
    def __init__(self, d_in, d_hidden, d_out, n_heads):
        nn.Module.__init__(self)
        self.gate = nn.Linear(d_in, d_hidden)
        self.body = nn.Linear(d_in, d_hidden)
        self.log_temp = nn.Parameter(torch.zeros(()))
        self.heads = [nn.Linear(d_hidden, d_out) for _ in range(n_heads)]

    def to(self, *args, **kwargs):
        for head in self.heads:
            head.to(*args, **kwargs)
        return super().to(*args, **kwargs)


@variant(
    "All heads are one and the same layer under several names. The task asks for separate ones; a "
    "list times n repeats the object, not the weights."
)
class one_head_repeated(Parts):
    def __init__(self, d_in, d_hidden, d_out, n_heads):
        super().__init__(d_in, d_hidden, d_out, 1)
        self.heads = nn.ModuleList([self.heads[0]] * n_heads)


@variant(
    "The temperature multiplies as it is. log_temp is a logarithm; its exponential multiplies, "
    "which is 1 at the start."
)
class temperature_without_exp(Parts):
    def temperature(self):
        return self.log_temp


@variant("The temperature divides. The task multiplies by exp(log_temp).")
class divides_by_the_temperature(Parts):
    def temperature(self):
        return (-self.log_temp).exp()


@variant("The rows are not centered. Subtract from each row of h its own mean over the features.")
class not_centered(Parts):
    def centered(self, h):
        return h


@variant(
    "The mean was detached. It is a function of h as well, and its share of the gradient is "
    "missing."
)
class detached_mean(Parts):
    def centered(self, h):
        return h - h.mean(dim=1, keepdim=True).detach()


@variant(
    "The mean is one number for the whole of h. That couples the samples; each row has its own "
    "mean."
)
class one_mean_for_all(Parts):
    def centered(self, h):
        return h - h.mean()


@variant(
    "The heads are stacked in front: the shape is (n_heads, N, d_out). The batch dimension comes "
    "first."
)
class heads_first(Parts):
    def forward(self, x):
        return super().forward(x).transpose(0, 1)


@variant(
    "log_temp is a plain tensor. It takes part in the forward and is no parameter: the optimizer "
    "never gets it, and the state dict lacks it."
)
class temperature_not_registered(Parts):
    def __init__(self, d_in, d_hidden, d_out, n_heads):
        super().__init__(d_in, d_hidden, d_out, n_heads)
        del self.log_temp
        self.log_temp = torch.zeros((), requires_grad=True)


@GatedBranches.broken
class BrokenGatedBranches(nn.Module):
    def __init__(self, d_in, d_hidden, d_out, n_heads):
        super().__init__()
        self.gate = nn.Linear(d_in, d_hidden)
        self.body = nn.Linear(d_in, d_hidden)
        self.log_temp = nn.Parameter(torch.zeros(()))
        self.heads = [nn.Linear(d_hidden, d_out) for _ in range(n_heads)]

    def forward(self, x):
        g = torch.sigmoid(self.gate(x) * self.log_temp.exp().item())
        h = torch.tanh(self.body(x))
        h *= g
        h = h - h.mean(dim=0, keepdim=True)
        return torch.stack([head(h) for head in self.heads], dim=1)


GatedBranches.hints(
    "Run gradient_report on it, after a backward.",
    "Run leaks_across_batch on a version whose backward works.",
    "Compare the names in state_dict() with the text of the task.",
)
