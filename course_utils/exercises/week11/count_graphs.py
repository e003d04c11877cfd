"""How many graphs torch.compile captures for a function on a list of inputs."""

from collections.abc import Callable

import torch

from course_utils.exercise import exercise
from course_utils.exercises.week11._capture import fresh_compilations


@exercise(objectives=("compile.recompiles", "compile.pipeline"))
def count_graphs(
    fn: Callable[[torch.Tensor], torch.Tensor],
    inputs: list[torch.Tensor],
    dynamic: bool | None = None,
) -> int:
    """How many graphs are handed to the backend when compiled fn is called on the inputs in order.

    Start from an empty Dynamo cache and compile fn with a backend of your own, one that runs each
    graph as it is. `dynamic` is passed on to torch.compile. Graph breaks are allowed: each piece is
    a graph. Each input is passed once and as it is, no copy, and in the grad mode of the caller.
    No inputs: 0.
    """
    graphs = 0

    def backend(gm, example_inputs):
        nonlocal graphs
        graphs += 1
        return gm.forward

    torch._dynamo.reset()
    compiled = torch.compile(fn, backend=backend, dynamic=dynamic)
    for x in inputs:
        compiled(x)
    return graphs


def lengths(draw, count):
    """One vector of each of so many different lengths, none of which is 0 or 1."""
    return [draw.normal(length) for length in draw.sizes(count, low=2, high=20)]


def counted(implementation, *requests):
    """The answer for each (fn, inputs, dynamic), in one process and without help between them."""
    with fresh_compilations():
        return [
            implementation(fn, inputs, **({} if dynamic is None else {"dynamic": dynamic}))
            for fn, inputs, dynamic in requests
        ]


@count_graphs.case
def a_function_that_prints(implementation, draw):
    first = draw.normal(draw.whole(3, 9), 2)[:, 0]
    inputs, calls = [first, first + 1], []

    @torch._dynamo.disable
    def note(x):
        calls.append([any(x is given for given in inputs), torch.is_grad_enabled()])

    def fn(x):
        y = x * 2
        print(end="")
        note(x)
        return y + 1

    graphs = counted(implementation, (fn, inputs, None))
    return {"graphs": graphs, "calls of fn: its own input, gradients enabled": calls}


@count_graphs.case
def a_branch_of_which_both_sides_are_taken(implementation, draw):
    def fn(x):
        return x * 2 if x.sum() > 0 else x - 1

    x = draw.uniform(draw.whole(3, 9)) + 0.1
    return counted(implementation, (fn, [x, -x], None))


@count_graphs.case
def one_length_and_then_three_others(implementation, draw):
    def fn(x):
        y = x * 2
        if torch.is_grad_enabled():
            print(end="")
        return y + 1

    first, *others = lengths(draw, 4)
    with fresh_compilations(), torch.no_grad():
        torch.compile(fn, backend="eager")(first)  # somebody compiled it before
        return implementation(fn, others)


@count_graphs.case
def several_lengths_under_both_settings_of_dynamic(implementation, draw):
    def fn(x):
        return x * 3

    inputs = lengths(draw, draw.whole(2, 3))
    settings = draw.choice([(True, False), (False, True)])
    return counted(implementation, *((fn, inputs, dynamic) for dynamic in settings))


@count_graphs.case
def another_dtype_and_an_input_that_requires_grad(implementation, draw):
    def fn(x):
        return x * 4

    x = draw.normal(draw.whole(3, 9))
    return counted(implementation, (fn, [x, x.double(), x.clone().requires_grad_()], None))


@count_graphs.case
def no_inputs(implementation, draw):
    return counted(implementation, (torch.sin, [], None))


def compile_and_run(fn, inputs, dynamic=None, *, reset=True, **options):
    """Returns how many graphs each input handed over; how many ran in all, and their operations."""
    graphs, runs = [], []

    def backend(gm, example_inputs):
        graphs.append(gm)

        def run(*args):
            runs.append(gm)
            return gm.forward(*args)

        return run

    if reset:
        torch._dynamo.reset()
    compiled = torch.compile(fn, backend=backend, dynamic=dynamic, **options)
    handed_over = []
    for x in inputs:
        before = len(graphs)
        compiled(x)
        handed_over.append(len(graphs) - before)
    operations = sum(node.op.startswith("call") for gm in graphs for node in gm.graph.nodes)
    return handed_over, len(runs), operations


@count_graphs.misconception(
    "You count how often graphs run, or compile afresh for every input as explain does. The "
    "backend is called once per compilation, and what it returns is called every time; count the "
    "former, and let later inputs find what was compiled for earlier ones."
)
def counts_executions(fn, inputs, dynamic=None):
    return compile_and_run(fn, inputs, dynamic)[1]


@count_graphs.misconception(
    "You count the operations in the graphs. A graph holds several of them, and it is the graphs "
    "that are to be counted."
)
def counts_operations(fn, inputs, dynamic=None):
    return compile_and_run(fn, inputs, dynamic)[2]


@count_graphs.misconception(
    "fn does not get the inputs themselves, each of them once: they are copied or passed again, or "
    "gradients are switched off for the calls."
)
def inputs_copied(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, [x.clone() for x in inputs], dynamic)[0])


@count_graphs.misconception(
    "You look at the first input alone, and there may be none. One call shows the graph breaks; "
    "what is compiled again shows when other inputs come."
)
def only_the_first_input(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, [inputs[0]], dynamic)[0])


@count_graphs.misconception(
    "fullgraph=True turns a graph break into an error. Breaks are allowed here, and the pieces are "
    "to be counted."
)
def fullgraph(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, inputs, dynamic, fullgraph=True)[0])


@count_graphs.misconception(
    "The cache was not emptied before you began. Dynamo remembers that a size varied and compiles "
    "with a dynamic size at once the next time."
)
def no_reset(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, inputs, dynamic, reset=False)[0])


@count_graphs.misconception(
    "dynamic is not passed on to torch.compile. With True, lengths are dynamic from the start, and "
    "with False each length gets a graph of its own."
)
def dynamic_ignored(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, inputs)[0])


@count_graphs.misconception(
    "dynamic=None was turned into False. None lets Dynamo begin with fixed sizes and change its "
    "mind after the first that differs."
)
def none_taken_for_false(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, inputs, bool(dynamic))[0])


@count_graphs.misconception(
    "Gradients are switched on for the calls. Grad mode is one of the things a graph is guarded "
    "by; leave it as the caller has it."
)
def gradients_enabled(fn, inputs, dynamic=None):
    with torch.enable_grad():
        return sum(compile_and_run(fn, inputs, dynamic)[0])


@count_graphs.misconception(
    "The inputs were detached or copied on their way. Whether an input requires grad is one of the "
    "things a graph is guarded by."
)
def inputs_detached(fn, inputs, dynamic=None):
    return sum(compile_and_run(fn, [x.detach() for x in inputs], dynamic)[0])


@count_graphs.misconception(
    "You count the calls that compiled something. A call with a graph break hands over several "
    "graphs."
)
def counts_calls_that_compile(fn, inputs, dynamic=None):
    return sum(handed > 0 for handed in compile_and_run(fn, inputs, dynamic)[0])


count_graphs.hints(
    "A backend is a function of (gm, example_inputs) that returns a callable.",
    "The simplest callable to return is the graph's own forward. Count before you return it.",
    "What did Dynamo learn from calls before yours? torch._dynamo has a function to forget it.",
)
