"""How large the graph behind a step's result is, step after step."""

from collections.abc import Callable

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("debug.graph_lifetime",))
def graph_growth(step: Callable[[], torch.Tensor], n: int) -> list[int]:
    """Call step() n times; after each call count the autograd nodes behind the returned tensor.

    Count its grad_fn and everything that can be reached through next_functions, the AccumulateGrad
    nodes of leaves too, each node once. The count is 0 if grad_fn is None.

    Count right after each call, since a later call may change the same tensor in place. Call step
    exactly n times, with gradient recording as the caller has it. A graph may be thousands of nodes
    deep. A list that keeps rising shows a step that hangs on the steps before it.
    """
    counts = []
    for _ in range(n):
        waiting, seen = [step().grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting.extend(below for below, _ in node.next_functions)
        counts.append(len(seen))
    return counts


class Steps:
    """A step that counts its calls; each returns what `function` makes of the call's number."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self):
        self.calls += 1
        return self.function(self.calls)


def seen(implementation, function, n):
    """The counts, and how often the step was called."""
    step = Steps(function)
    return {"counts": attempt(implementation, step, n), "calls": step.calls}


@graph_growth.case
def a_state_that_is_carried_along(implementation, draw):
    weight = draw.normal(3, 3, requires_grad=True)
    state = [draw.normal(2, 3)]

    def step(call):
        state[0] = torch.tanh(state[0] @ weight)
        return state[0].sum()

    return seen(implementation, step, draw.whole(3, 6)) | {"gradient left": weight.grad}


@graph_growth.case
def a_state_that_is_detached(implementation, draw):
    weight = draw.normal(3, 3, requires_grad=True)
    state = [draw.normal(2, 3)]

    def step(call):
        state[0] = torch.tanh(state[0].detach() @ weight)
        return state[0].sum()

    return seen(implementation, step, draw.whole(3, 6))


@graph_growth.case
def two_ways_to_the_same_node(implementation, draw):
    weight, other = draw.normal(4, requires_grad=True), draw.normal(4, requires_grad=True)

    def step(call):
        shared = (weight * other).exp()
        for _ in range(call):
            shared = shared * shared.sin()
        return shared.sum()

    return seen(implementation, step, draw.whole(2, 4))


@graph_growth.case
def a_running_total_changed_in_place(implementation, draw):
    weight = draw.normal(4, requires_grad=True)
    total = draw.normal(1)

    def step(call):
        total.add_((weight * call).square().sum())
        return total

    return seen(implementation, step, draw.whole(3, 5))


@graph_growth.case
def a_graph_thousands_of_additions_deep(implementation, draw):
    weight, deep = draw.normal(1, requires_grad=True), draw.whole(3000, 3100)

    def step(call):
        value = weight
        for _ in range(deep):
            value = value + 1
        return value

    return seen(implementation, step, 1)


@graph_growth.case
def a_result_without_a_graph(implementation, draw):
    weight = draw.normal(3, requires_grad=True)
    return seen(implementation, lambda call: weight * 2 if call % 2 else draw.normal(1), 3)


@graph_growth.case
def a_leaf(implementation, draw):
    weight = draw.normal(3, requires_grad=True)
    return seen(implementation, lambda call: weight, 2)


@graph_growth.case
def no_calls_at_all(implementation, draw):
    return seen(implementation, lambda call: draw.normal(1, requires_grad=True) * 2, 0)


@graph_growth.case
def recording_switched_off_by_the_caller(implementation, draw):
    weight = draw.normal(3, requires_grad=True)
    with torch.no_grad():
        return seen(implementation, lambda call: (weight * call).sum(), 2)


def grow(step, n, *, start=None, follow=None, once=True, measure=None):
    """The reference in parts, each of which can be done another way."""
    measure = measure or (lambda t: count(t.grad_fn, follow, once))
    return [measure(step()) for _ in range(n)]


def count(node, follow=None, once=True, limit=20_000):
    """How many nodes are below and at `node`."""
    waiting, seen, number = [node], set(), 0
    while waiting and number < limit:
        node = waiting.pop()
        if node is None or (once and node in seen):
            continue
        seen.add(node)
        number += 1
        below = [child for child, _ in node.next_functions]
        waiting.extend(below if follow is None else follow(below))
    return number


@graph_growth.misconception(
    "You count ways, not nodes: a node that can be reached on two ways was counted twice. Remember "
    "the nodes you have seen."
)
def counts_paths(step, n):
    return grow(step, n, once=False)


@graph_growth.misconception(
    "Your function calls itself for each node below. Python stops that after about 1000 levels, "
    "and a graph does not stop there; keep a list of nodes still to visit."
)
def recursion(step, n):
    def visit(node, seen):
        if node is not None and node not in seen:
            seen.add(node)
            for below, _ in node.next_functions:
                visit(below, seen)
        return seen

    return [len(visit(step().grad_fn, set())) for _ in range(n)]


@graph_growth.misconception(
    "You follow the first input only. next_functions has one entry for each input; follow all."
)
def first_input_only(step, n):
    return grow(step, n, follow=lambda below: below[:1])


@graph_growth.misconception(
    "The AccumulateGrad nodes are missing. Leaves appear in the graph as such nodes, and they "
    "count."
)
def accumulators_left_out(step, n):
    return grow(step, n, follow=lambda below: [b for b in below if b and b.next_functions])


@graph_growth.misconception(
    "You measure when all calls are over. The running total is one tensor, changed in place; at "
    "the end all entries show its last state."
)
def measures_at_the_end(step, n):
    results = [step() for _ in range(n)]
    return [count(result.grad_fn) for result in results]


@graph_growth.misconception("The first node, grad_fn itself, is missing from your count.")
def leaves_out_the_first(step, n):
    return grow(step, n, measure=lambda t: max(0, count(t.grad_fn) - 1))


@graph_growth.misconception(
    "One call too many: a step before the loop, perhaps to warm up. The step has effects of its "
    "own, so it has to run exactly n times."
)
def calls_once_more(step, n):
    step()
    return grow(step, n)


@graph_growth.misconception(
    "You report how much was added since the step before. The task asks for the size of each graph."
)
def reports_differences(step, n):
    counts = grow(step, n)
    return [b - a for a, b in zip([0, *counts], counts, strict=False)]


@graph_growth.misconception(
    "Nodes seen in an earlier call were not counted again. Each call has a count of its own, and a "
    "node that two graphs share belongs to both."
)
def remembers_between_calls(step, n):
    seen, counts = set(), []
    for _ in range(n):
        waiting, before = [step().grad_fn], len(seen)
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting.extend(below for below, _ in node.next_functions)
        counts.append(len(seen) - before)
    return counts


@graph_growth.misconception(
    "Gradient recording was switched on for the calls. The step should run as the caller runs it; "
    "a step without recording has no graph."
)
def switches_recording_on(step, n):
    with torch.enable_grad():
        return grow(step, n)


@graph_growth.misconception(
    "A result without a graph made your function fail. grad_fn is None there and for leaves, and "
    "the count is 0."
)
def fails_without_a_graph(step, n):
    return grow(step, n, measure=lambda t: t.grad_fn.name() and count(t.grad_fn))


@graph_growth.misconception(
    "You call backward on what the step returns. Counting changes nothing; backward adds to the "
    "gradients of somebody else's parameters."
)
def calls_backward(step, n):
    def measure(tensor):
        number = count(tensor.grad_fn)
        if tensor.grad_fn is not None:
            tensor.sum().backward(retain_graph=True)
        return number

    return grow(step, n, measure=measure)


@graph_growth.misconception(
    "You count the kinds of nodes. Two additions are two nodes, though they have the same name."
)
def counts_names(step, n):
    def kinds(tensor):
        waiting, seen = [tensor.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting.extend(below for below, _ in node.next_functions)
        return len({node.name() for node in seen})

    return grow(step, n, measure=kinds)


graph_growth.hints(
    "Start from grad_fn, and look at its next_functions in a cell of your own.",
    "Each entry of next_functions is a pair, (node or None, a number).",
    "A set of what you have seen and a list of what is still to visit are enough.",
)
