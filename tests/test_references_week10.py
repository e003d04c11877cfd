"""The answers of week 10 against other ways to the same facts: plain loops, derivatives by torch, and the clinic."""

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils import clinic
from course_utils.diagnose import is_right
from course_utils.exercise import load_exercise
from course_utils.judge import grade
from course_utils.run import Undisturbed
from course_utils.source import stub_source

SEEDS = range(5)
PATIENTS = clinic.patients()


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


class Noisy(nn.Module):
    """A leaf that writes down its own calls."""

    def __init__(self, size, log, name):
        super().__init__()
        self.size, self.log, self.name = size, log, name

    def forward(self, x):
        out = x[:, :1].expand(len(x), self.size)
        self.log.append((self.name, "Noisy", tuple(out.shape)))
        return out


class AnyOrder(nn.Module):
    """Calls its parts in a given order."""

    def __init__(self, parts, order):
        super().__init__()
        self.parts, self.order = nn.ModuleList(parts), order

    def forward(self, x):
        for place in self.order:
            x = self.parts[place](x)
        return x


@pytest.mark.parametrize("seed", SEEDS)
def test_traced_rows_are_what_the_leaves_write_down_themselves(seed):
    """Leaves that log their own calls, called in a random order and more than once."""
    random.seed(seed)
    log = []
    leaves = [Noisy(random.randint(1, 6), log, f"parts.{i}") for i in range(4)]
    model = AnyOrder(leaves, random.choices(range(4), k=7))
    assert reference("trace_shapes")(model, torch.randn(3, 2)) == log


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_nonfinite_module_is_where_a_chain_run_by_hand_breaks(seed):
    """A chain of scalings, one of which overflows, run layer by layer."""
    random.seed(seed)
    factors = [10.0 ** random.randint(0, 25) for _ in range(8)]
    layers = []
    for factor in factors:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, factor)
        layers.append(layer)
    model, x, expected = nn.Sequential(*layers), torch.ones(2, 1), None
    value = x
    for number, layer in enumerate(layers):
        value = layer(value)
        if expected is None and not np.isfinite(value.detach().numpy()).all():
            expected = str(number)
    assert reference("first_nonfinite_module")(model, x) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_the_norms_of_a_gradient_report_add_up_to_torchs_total_norm(seed):
    """The root of the sum of squares of all norms is what clip_grad_norm_ returns."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    model(torch.randn(4, 3)).square().sum().backward()
    report = reference("gradient_report")(model)
    norms = [norm for status, norm in report.values() if status == "ok"]
    total = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(total.item(), rel=1e-5)
    assert [status for status, _ in report.values()] == ["ok"] * 4 + ["frozen"] * 2


@pytest.mark.parametrize("seed", SEEDS)
def test_leaks_are_the_blocks_of_the_jacobian(seed):
    """torch's Jacobian of a random mixing of rows, block by block."""
    torch.manual_seed(seed)
    count = 5
    mixing = torch.randn(count, count) * (torch.rand(count, count) < 0.4)

    class Mixes(nn.Module):
        def forward(self, x):
            return torch.tanh(mixing @ x)

    x = torch.randn(count, 3)
    jacobian = torch.autograd.functional.jacobian(Mixes(), x)
    for index in range(count):
        rows = jacobian[index].abs().sum(dim=(0, 2)) != 0
        expected = [j for j in range(count) if rows[j] and j != index]
        assert reference("leaks_across_batch")(Mixes(), x, index) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_graph_growth_of_a_chain_is_known_in_advance(seed):
    """k multiplications of two fresh leaves each: k nodes and their accumulators."""
    random.seed(seed)
    lengths = [random.randint(1, 30) for _ in range(4)]
    upcoming = iter(lengths)

    def step():
        value = torch.ones(2, requires_grad=True)
        for _ in range(next(upcoming)):
            value = value * torch.ones(2, requires_grad=True)
        return value

    assert reference("graph_growth")(step, 4) == [2 * length + 1 for length in lengths]


def test_a_carried_state_grows_by_three_nodes_a_step():
    """5, 8, 11, as the lesson says: matmul, tanh and sum; the sum is new each time."""
    weight, state = torch.randn(3, 3, requires_grad=True), [torch.randn(2, 3)]

    def step():
        state[0] = torch.tanh(state[0] @ weight + 1)
        return state[0]

    counts = reference("graph_growth")(step, 4)
    assert set(np.diff(counts)) == {3}


@pytest.mark.parametrize("seed", SEEDS)
def test_flat_loss_training_is_gradient_descent_by_hand(seed):
    """Losses and weights of descent with autograd.grad and the log-sum-exp written out."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(9, 4).double(), torch.randint(3, (9,))
    losses, expected = reference("train_flat_loss")(model, x, y, 0.3, 5), []
    for _ in range(5):
        scores = twin(x)
        loss = (scores.logsumexp(1) - scores[torch.arange(9), y]).mean()
        expected.append(loss.item())
        with torch.no_grad():
            for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
                p -= 0.3 * g
    assert losses == pytest.approx(expected, rel=1e-9)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_training_agrees_with_a_dataloader_free_loop(seed):
    """A loop over an index list, with its own copy of the generator."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)).double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(11, 3).double(), torch.randint(4, (11,))
    mine, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    accuracies, expected = reference("train_shuffled_pairs")(model.eval(), x, y, 4, 3, 0.2, mine), []
    for _ in range(3):
        order = torch.randperm(11, generator=theirs).tolist()
        for start in range(0, 11, 4):
            picks = order[start : start + 4]
            twin.train()
            loss = F.cross_entropy(twin(x[picks]), y[picks])
            with torch.no_grad():
                for p, g in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
                    p -= 0.2 * g
        expected.append(sum(int(twin.eval()(row[None]).argmax()) == int(t) for row, t in zip(x, y, strict=True)) / 11)
    assert accuracies == pytest.approx(expected)
    assert not model.training
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_gated_branches_pass_a_numerical_check_and_do_not_leak():
    """gradcheck in double precision over input and parameters; no sample reaches another."""
    torch.manual_seed(0)
    model = reference("GatedBranches")(3, 4, 2, 3).double()
    nn.init.constant_(model.log_temp, 0.4)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *model.parameters()))
    assert reference("leaks_across_batch")(model, torch.randn(4, 3).double(), 2) == []


# --- the clinic -------------------------------------------------------------------------------------------------------


def test_the_clinic_has_many_patients_and_as_many_different_faults():
    faults = [load_exercise(name).reference.__globals__["FAULT"] for name in PATIENTS]
    assert len(PATIENTS) >= 10
    assert len(set(faults)) == len(PATIENTS)
    assert set(faults) < set(clinic.CAUSES)


@pytest.mark.parametrize("name", PATIENTS)
def test_a_patient_runs_without_an_error_and_is_ill(name):
    ill, well = clinic.chart(name), clinic.chart(name, cured=True)
    assert all(type(loss) is float for loss in ill.losses)
    assert not ill.losses[-1] < well.losses[-1]
    assert well.new_score > 0.9
    assert ill.words and ill.words != well.name


@pytest.mark.parametrize("name", PATIENTS)
def test_a_chart_is_the_same_every_time_and_leaves_random_numbers_alone(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = clinic.chart(name), clinic.chart(name)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first.losses, second.losses, equal_nan=True)
    assert first.new_score == second.new_score


@pytest.mark.parametrize("name", PATIENTS)
def test_a_patient_passes_only_when_it_is_named_and_mended(name):
    """The reference with another cause, and the broken script with the right cause, are both seen to differ."""
    exercise = load_exercise(name)
    right = exercise.reference.__globals__["FAULT"]

    def misnamed(*args):
        return ("dead units", *exercise.reference(*args)[1:])

    def unmended(*args):
        return (right, *exercise.broken_version(*args)[1:])

    for seed in range(3):
        with Undisturbed(seed) as process:
            reference = process.run_cases(exercise, exercise.reference)
            for answer in (misnamed, unmended):
                assert not is_right(exercise, process.run_cases(exercise, answer), reference)


@pytest.mark.parametrize("name", PATIENTS)
def test_verdicts_and_stubs_never_give_the_cause_away(name):
    exercise = load_exercise(name)
    right = exercise.reference.__globals__["FAULT"]
    wrong = next(cause for cause in clinic.CAUSES if cause != right)
    verdict = grade(exercise, lambda *args: (wrong, *exercise.reference(*args)[1:]), 0)
    assert f"“{wrong}” is not the fault of this script" in verdict.message or verdict.misconception
    assert right not in verdict.message
    assert right not in stub_source(exercise)


def test_an_unknown_patient_is_refused_by_name():
    with pytest.raises(clinic.CourseError, match="no patient called patient_zero"):
        clinic.chart("patient_zero")


@pytest.mark.parametrize(("report", "words"), [(None, "not a tuple"), (("?", 1, 2), "no cause"), (("x", 1, 2), "'x'")])
def test_what_is_wrong_with_a_named_cause_is_said(report, words):
    assert words in clinic.named(report, "cut graph")


def test_a_recovery_says_what_is_missing():
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    material = clinic.Material((x, y), x, y, 3)
    bad = clinic.recovery(("cut graph", None, [torch.ones(())]), material, 1.0)
    assert bad == {
        "1. losses": "not a list of Python floats",
        "2. new rows": "what came back in second place is not a module",
    }
    assert "not a tuple" in clinic.recovery([1, 2, 3], material, 1.0)["the run"]


def test_scores_of_classes_and_numbers_and_modes_put_back():
    x = torch.eye(4)
    exact = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        exact.weight.copy_(torch.eye(4))
    model = nn.Sequential(nn.Dropout(0.9), exact)
    assert clinic.score(model, x, torch.arange(4)) == 1.0
    assert model.training and model[0].training
    numbers = nn.Linear(1, 1)
    points = torch.linspace(0, 1, 9)[:, None]
    with torch.no_grad():
        targets = numbers(points).squeeze(1)
    assert clinic.score(numbers, points, targets) == pytest.approx(1.0)


def test_causes_are_told_apart_by_their_names():
    assert all(a not in b for a, b in itertools.permutations(clinic.CAUSES, 2))
