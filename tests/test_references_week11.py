"""The references of week 11 against independent oracles: plain loops, torch's own tools, numbers counted by hand."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from course_utils.exercise import load_exercise
from course_utils.exercises.week11._capture import fresh_compilations


def test_saved_bytes_of_a_block_is_what_its_formulas_need():
    """Residual blocks of LayerNorm, Linear, GELU, Linear: a sum over what each backward formula reads."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            return x + self.body(x)

    saved_bytes = load_exercise("saved_bytes")
    width, batch = 8, 3
    per_row = {"input of the norm": width, "mean and scale": 2, "normalized": width, "before and after GELU": 8 * width}
    expected = 4 * batch * sum(per_row.values())
    for count in (1, 3):
        model = nn.Sequential(*(Block(width) for _ in range(count)))
        assert saved_bytes(model, torch.randn(batch, width)) == count * expected
    with torch.no_grad():
        assert saved_bytes(model, torch.randn(batch, width)) == 3 * expected


def test_saved_bytes_agrees_with_a_walk_over_the_graph():
    """The `_saved_…` attributes of every node of the graph, storage by storage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid())
    x = torch.randn(6, 5)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    output, kept, met = model(x), {}, set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(saved := getattr(node, name), torch.Tensor):
                kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
    expected = sum(size for address, size in kept.items() if address not in own)
    assert load_exercise("saved_bytes")(model, x) == expected > 0


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("segment", [None, 1, 2, 4, 20])
def test_checkpointed_forward_is_the_plain_loop(count, segment):
    """Output, gradients and random state of an nn.Sequential with dropout from the same seed."""
    torch.manual_seed(count)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Tanh()) for _ in range(count))
    plain = nn.Sequential(*copy.deepcopy(blocks))
    x = torch.randn(6, 4)
    results = []
    for forward in (plain, lambda x: load_exercise("checkpointed_forward")(blocks, x, segment)):
        torch.manual_seed(1)
        output = forward(x)
        state = torch.rand(1)
        output.square().sum().backward()
        results.append((output, state))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    for mine, theirs in zip(blocks.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_checkpointed_forward_keeps_one_segment_less_than_checkpoint_sequential():
    """torch's own function leaves the activations of its last segment; ours keeps the input alone."""
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6))
    own = {p.untyped_storage().data_ptr() for p in blocks.parameters()}

    def kept(forward):
        found = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward(torch.randn(5, 4))
        assert output.requires_grad
        return sum(found.values())

    mine = kept(lambda x: load_exercise("checkpointed_forward")(blocks, x, 3))
    theirs = kept(lambda x: checkpoint_sequential(nn.Sequential(*blocks), 2, x, use_reentrant=False))
    assert mine == 2 * 20
    assert theirs == (1 + 4) * 20  # one input, and of the last segment its input and three outputs


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_checkpointed_stack_trains_as_a_plain_one(p):
    """Three steps of SGD on the same data with the same seeds end in the same weights."""
    torch.manual_seed(0)
    model = load_exercise("CheckpointedStack")(5, 3, p)
    plain = copy.deepcopy(model)

    def forward(x):
        for block in plain.blocks:
            x = x + block(x)
        return plain.norm(x)

    for run, parameters in ((model, model.parameters()), (forward, plain.parameters())):
        optimizer = torch.optim.SGD(list(parameters), lr=0.1)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            run(torch.randn(7, 5)).pow(3).sum().backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("total", [0.0, 0.3, 0.999, 1.001, 7.0])
def test_fullgraph_gate_is_the_branch_with_the_gradient_written_out(total):
    """g·scale below 1; above it scale·(g / s - sign(x)·sum(g·x) / s²)."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    x = (x * total / x.abs().sum()).requires_grad_()
    upstream, scale = torch.randn_like(x), 1.7
    output = load_exercise("fullgraph_gate")(x, scale)
    s = float(x.detach().abs().sum())
    with torch.no_grad():
        if s > 1:
            expected = scale * x / s
            slope = scale * (upstream / s - x.sign() * (upstream * x).sum() / s**2)
        else:
            expected, slope = scale * x, scale * upstream
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output, x, upstream)[0], slope)


def test_fullgraph_gate_has_no_break_by_the_account_of_explain():
    """torch._dynamo.explain finds one graph and no break; in the version to repair it finds breaks."""
    exercise = load_exercise("fullgraph_gate")
    with fresh_compilations(), contextlib.redirect_stdout(io.StringIO()):
        found = torch._dynamo.explain(exercise.reference)(torch.ones(3), 2.0)
        broken = torch._dynamo.explain(exercise.broken_version)(torch.ones(3), 2.0)
    assert (found.graph_count, found.graph_break_count) == (1, 0)
    assert broken.graph_count > 1 and broken.graph_break_count > 0


def test_count_graphs_of_one_call_is_what_explain_counts():
    """For a first call, torch's own report has the same number of graphs."""

    def plain(x):
        return x + 1

    def prints(x):
        y = x.sin()
        print("half way")
        return y.cos()

    def branches(x):
        return x * 2 if x.mean() > 0 else x - 1

    x = torch.rand(5) + 1
    with fresh_compilations(), contextlib.redirect_stdout(io.StringIO()):
        for fn, expected in ((plain, 1), (prints, 2), (branches, 2)):
            assert load_exercise("count_graphs")(fn, [x]) == expected
            torch._dynamo.reset()
            assert torch._dynamo.explain(fn)(x).graph_count == expected


@pytest.mark.parametrize(("dynamic", "expected"), [(None, 2), (False, 4), (True, 1)])
def test_count_graphs_of_four_lengths_is_what_the_week_teaches(dynamic, expected):
    """One static and one dynamic graph; one per length; one for all."""
    with fresh_compilations():
        inputs = [torch.randn(length) for length in (4, 6, 8, 10)]
        assert load_exercise("count_graphs")(lambda x: x * 2 + 1, inputs, dynamic) == expected


@pytest.mark.parametrize("seed", range(5))
def test_outputs_agree_is_a_loop_in_numpy(seed):
    """Element by element in float64, with numpy.isclose as the judge."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([0.0, math.inf, -math.inf, math.nan, 1e4])
    pairs = {}
    for place in range(4):
        r = torch.randn(6, generator=generator)
        c = r + 0.02 * torch.randn(6, generator=generator)
        r[:2] = special[torch.randint(5, (2,), generator=generator)]
        c[:2] = special[torch.randint(5, (2,), generator=generator)]
        pairs[place] = (r, c)
    inputs = [torch.tensor([float(place)]) for place in pairs]
    found = load_exercise("outputs_agree")(
        lambda x: pairs[int(x)][0].clone(), lambda x: pairs[int(x)][1].clone(), inputs, 0.02, 0.02
    )
    gaps, passes = [], []
    for r, c in pairs.values():
        largest = 0.0
        for a, b in zip(r.double().tolist(), c.double().tolist(), strict=True):
            if a == b or (math.isnan(a) and math.isnan(b)):
                gap = 0.0
            else:
                gap = abs(b - a) if math.isfinite(a) and math.isfinite(b) else math.inf
            largest = max(largest, gap)
        gaps.append(largest)
        passes.append(bool(np.isclose(c.double(), r.double(), rtol=0.02, atol=0.02, equal_nan=True).all()))
    assert found == {"ok": all(passes), "max_abs": max(gaps), "worst": gaps.index(max(gaps))}


def test_export_any_batch_is_the_model_in_eval_mode_before_and_after_saving(tmp_path):
    """The reloaded program gives what the model gives, for every batch size from 1 to 9."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(9, 4)
    )
    model(torch.randn(8, 2, 5))
    flags = [module.training for module in model.modules()]
    program = load_exercise("export_any_batch")(model, torch.randn(1, 2, 5))
    assert [module.training for module in model.modules()] == flags
    torch.export.save(program, tmp_path / "model.pt2")
    run = torch.export.load(tmp_path / "model.pt2").module()
    model.eval()
    for rows in range(1, 10):
        x = torch.randn(rows, 2, 5)
        torch.testing.assert_close(run(x), model(x))


@pytest.mark.filterwarnings("ignore")  # of the exporter's own code
def test_export_any_batch_gives_a_program_that_runs_in_onnx_runtime(tmp_path):
    """The exported model as an ONNX file gives the same numbers in another runtime. Needs the extra [export]."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra [export]")
    import onnxruntime

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    program = load_exercise("export_any_batch")(model, torch.randn(1, 3))
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(program, f=file, input_names=["x"], output_names=["y"], verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    run = program.module()
    agreed = load_exercise("outputs_agree")(
        run,
        lambda x: torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0]),
        [torch.randn(rows, 3) for rows in (1, 2, 7)],
        1e-4,
        1e-5,
    )
    assert agreed["ok"], agreed
