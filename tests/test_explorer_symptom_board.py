"""Symptom board: the fingerprint of each fault, the surprise, words, picture and controls."""

import importlib
import math

import pytest
import torch

from course_utils.exercise import load_exercise

module = importlib.import_module("course_utils.explorers.symptom_board")
Setup, run = module.Setup, module.run
FAULTS = list(module.FINGERPRINTS)


def after(fault, steps=100, **settings):
    """A run of some steps with the fault."""
    return run(Setup(fault, steps=steps, **settings))


def states(seen):
    """Which state each gradient is in."""
    return {name: status for name, (status, _) in seen.report.items()}


@pytest.mark.parametrize("optimizer", module.RATES)
def test_a_healthy_run_learns_and_has_every_gradient(optimizer):
    seen = after("none", 300, optimizer=optimizer)
    assert seen.losses[0] == pytest.approx(math.log(10), abs=0.3)
    assert seen.losses[-1] < 0.7 and seen.accuracy > 0.85
    assert set(states(seen).values()) == {"ok"}
    assert max(seen.dead) < 0.3


def test_softmax_before_the_loss_cannot_pass_its_floor():
    assert min(after("softmax before the loss", 300).losses) > -math.log(math.e / (math.e + 9))


def test_separate_shuffles_end_at_the_label_entropy_with_healthy_gradients():
    seen = after("separate shuffles", 300)
    late = sum(seen.losses[-50:]) / 50
    assert late == pytest.approx(seen.entropy, abs=0.15)
    assert late < math.log(10) - 0.2
    assert set(states(seen).values()) == {"ok"}


def test_zero_grad_after_backward_leaves_none_and_moves_nothing():
    seen = after("zero_grad after backward")
    assert set(states(seen).values()) == {"none"}
    assert set(seen.ratios) == {0.0}


def test_a_model_stuck_in_evaluation_mode_does_worse():
    assert after("eval mode stuck").losses[-1] > after("none").losses[-1] + 0.2
    _, model = module.train(Setup("eval mode stuck", steps=100))
    assert not model.training and model.norm.num_batches_tracked == 0


def test_a_dead_layer_has_zeros_and_not_none():
    seen = after("dead ReLU bias", depth=3)
    assert seen.dead[0] == 1.0
    assert states(seen) == {"layer 1": "zero", "layer 2": "zero", "layer 3": "ok", "gate": "ok", "head": "ok"}


def test_a_detached_gate_is_the_only_one_without_a_gradient():
    assert [name for name, status in states(after("detached gate")).items() if status == "none"] == ["gate"]
    assert after("detached gate", 300).accuracy > 0.85


@pytest.mark.parametrize("optimizer", module.RATES)
def test_a_hundredfold_rate_replaces_the_weights(optimizer):
    seen = after("learning rate × 100", optimizer=optimizer)
    assert seen.ratios[0] > 0.3
    assert not max(seen.losses) < 5


def test_ones_everywhere_make_the_head_outweigh_all_else():
    report = after("all-ones init", 1).report
    assert report["head"][1] > 1e4 * max(norm for name, (_, norm) in report.items() if name != "head")
    assert after("all-ones init", 300).accuracy < 0.5


def test_two_faults_alike_in_the_loss_differ_in_the_bars():
    plain, gate = after("none"), after("detached gate")
    assert abs(plain.losses[-1] - gate.losses[-1]) < 0.4
    assert states(plain) != states(gate)


def test_the_label_entropy_is_that_of_the_labels():
    _, y, entropy = module.task(4)
    counts = [int((y == c).sum()) for c in range(10)]
    expected = -sum(n / len(y) * math.log(n / len(y)) for n in counts if n)
    assert entropy == pytest.approx(expected, rel=1e-5)


def test_the_report_agrees_with_the_courses_gradient_report():
    gradient_report = load_exercise("gradient_report").reference
    for fault in ("none", "dead ReLU bias", "detached gate"):
        own, board = run(Setup(fault, steps=20), gradient_report), after(fault, 20)
        assert states(own) == states(board)
        assert [n for _, n in own.report.values()] == pytest.approx([n for _, n in board.report.values()])


def test_a_gradient_report_that_raises_is_named():
    def broken(model):
        raise ValueError("no such thing")

    assert "your gradient_report raised ValueError: no such thing" in module.render(broken, **values())[1]


def test_a_surprise_is_a_fault_and_stays_hidden():
    found = {module.actual_fault(Setup(module.SURPRISE, seed=seed)) for seed in range(21)}
    assert found == set(FAULTS[1:])
    figure, words = module.render(**values(fault=module.SURPRISE, hide=True, more=1))
    assert not any(fault in words + figure.alt for fault in FAULTS if fault != "none")
    assert "fault: hidden" not in words and "fault is hidden" in figure.alt


def test_runs_repeat_and_leave_random_numbers_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    module.train.cache_clear()
    first = after("none", 30)
    module.train.cache_clear()
    assert after("none", 30) == first
    assert torch.equal(before, torch.get_rng_state())


def values(**changes):
    """The values of the controls at the start, some of them changed."""
    return module.symptom_board().state() | changes


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_drawn_with_four_panels_at_every_depth(fault):
    for depth in (1, 10):
        figure, words = module.render(**values(fault=fault, depth=depth, more=depth // 10))
        assert len(figure.figure.axes) == 4 and figure.png()
        assert module.FINGERPRINTS[fault] in words


def test_every_initialization_and_optimizer_runs():
    for init in module.INITS:
        for optimizer in module.RATES:
            assert after("none", 5, init=init, optimizer=optimizer).losses[0] < 20


def test_the_button_runs_a_hundred_steps_and_other_controls_start_again():
    explorer = module.symptom_board()
    assert "loss of step 1 " in explorer.words.value
    explorer.controls["more"].click()
    assert "loss of step 100" in explorer.words.value
    explorer.controls["fault"].value = "detached gate"
    assert "gate: none" in explorer.words.value


def test_a_page_without_a_kernel_gets_the_nine_losses_and_all_fingerprints():
    bundle = module.symptom_board()._repr_mimebundle_()
    assert all(marks in bundle["text/plain"] for marks in module.FINGERPRINTS.values())
    assert len(module.still().figure.axes) == 9
    assert "<img" in bundle["text/html"]
