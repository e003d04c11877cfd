"""Kill and resume: the run against a plain loop, the trace of each omission, words, picture and controls."""

import importlib
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

module = importlib.import_module("course_utils.explorers.kill_and_resume")
laboratory = importlib.import_module("course_utils.explorers.resume_laboratory")
ITEMS, Scene, KILL = module.ITEMS, module.Scene, module.FIRST_KILL
ALL_BOXES = {module._control_of(item): True for item in ITEMS}


def without(*missing):
    """The items but for these."""
    return tuple(item for item in ITEMS if item not in missing)


def test_the_straight_run_is_that_of_a_plain_loop_with_early_stopping():
    (x, y), (x_val, y_val) = laboratory._data(), module._validation_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(module.SEED)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=laboratory.RATES["Adam"], foreach=False)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, module.EPOCHS)
        history, best, steps, returned = [], math.inf, 0, None
        for epoch in range(module.EPOCHS):
            model.train()
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(module.SEED + epoch))
            for picks in order.split(laboratory.BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[picks]), y[picks]).backward()
                optimizer.step()
                steps += 1
            scheduler.step()
            with torch.no_grad():
                history.append(F.cross_entropy(model.eval()(x_val), y_val).item())
            weights = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            if history[-1] < best:
                best, returned = history[-1], weights
            if min(history[-module.PATIENCE :]) > best:
                break
    straight = module.straight_run()
    assert straight.history == tuple(history) and straight.last == steps == 36 and straight.best_epoch == 4
    assert torch.equal(straight.returned, returned) and torch.equal(straight.weights[-1], weights)


def test_a_full_state_resumes_to_the_last_bit_after_a_kill_at_any_step():
    for kill in range(1, module.straight_run().last + 1):
        assert module.is_same_run(module.resumed_run(kill, ITEMS)), kill


@pytest.mark.parametrize("missing", ITEMS)
def test_each_omission_inside_an_epoch_makes_another_run(missing):
    assert not module.is_same_run(module.resumed_run(KILL, without(missing)))


def test_each_omission_leaves_a_trace_of_its_own():
    traces = {item: module.trace_of(KILL, item) for item in ITEMS}
    assert {item: step for item, (step, _) in traces.items()} == {
        "weights": KILL,  # at once
        "optimizer": KILL + 1,
        "scheduler": 31,  # the first step of the next epoch
        "random state": KILL + 1,
        "position": KILL + 1,
        "counters": None,  # never: the weights are right, the end of the run is not
    }
    assert "ends at step 42" in traces["counters"][1] and "other weights returned" in traces["counters"][1]
    assert "ends at step 39" in traces["position"][1]
    assert traces["random state"][1] == "other validation losses"


def test_position_is_needed_after_the_last_batch_and_counters_not_before_a_validation():
    """Between its last batch and its validation an epoch is not over; nothing is counted before the first."""
    assert module.parting(module.resumed_run(6, without("position")))[0] == 7
    assert module.is_same_run(module.resumed_run(3, without("counters")))


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    module.straight_run.__wrapped__()
    module.resumed_run.__wrapped__(5, ITEMS)
    assert torch.equal(torch.rand(2), expected)


def test_before_the_run_words_ask_and_after_it_they_tell():
    before = module.describe(Scene())
    assert "batch 3 of 6 in epoch 5" in before and "press run" in before and "same run" not in before
    after = module.describe(Scene(KILL, ITEMS, started=True))
    assert "yes, to the last bit" in after and "weights differ     never" in after and "without" not in after
    lost = module.describe(Scene(KILL, without("optimizer"), started=True))
    assert "from step 28 on, first by 0.0" in lost and "Adam's moments are empty" in lost
    assert "before its validation" in module.describe(Scene(6))


def test_words_and_picture_exist_for_every_choice_of_items():
    for count in range(len(ITEMS) + 1):
        for items in itertools.combinations(ITEMS, count):
            assert module.describe(Scene(33, items, started=True))
    figure = module.picture(Scene(33, (), started=True))
    assert "nothing but the number of steps" in figure.alt and figure.png()


def test_the_picture_draws_an_exact_zero_at_the_bottom():
    figure = module.picture(Scene(KILL, ITEMS, started=True))
    losses, gaps, _ = figure.figure.axes
    assert len(losses.lines[1].get_xdata()) == 36 - KILL + 1
    assert set(gaps.lines[0].get_ydata()) == {module.FLOOR}
    assert "the same run to the last bit" in figure.alt and "differ never" in figure.alt
    figure = module.picture(Scene(KILL, without("optimizer"), started=True))
    assert max(figure.figure.axes[1].lines[0].get_ydata()) > 1e-3 and "another run" in figure.alt
    assert "not drawn yet" in module.picture(Scene()).alt


def test_the_still_picture_is_the_table_of_omissions():
    figure = module.still()
    assert figure.alt.count("Without ") == len(ITEMS) and "from step 31 on" in figure.alt and figure.png()


def test_the_button_runs_and_every_other_control_takes_the_run_back():
    explorer = module.kill_and_resume()
    assert "press run" in explorer.words.value
    for name in ALL_BOXES:
        explorer.controls[name].value = True
    explorer.controls["run"].click()
    assert "yes, to the last bit" in explorer.words.value
    explorer.controls["save_optimizer"].value = False
    assert "press run" in explorer.words.value
    explorer.controls["run"].click()
    assert "from step 28 on" in explorer.words.value
    explorer.controls["kill"].value = 6
    explorer.controls["run"].click()
    assert "from step 7 on" in explorer.words.value and "killed after       step 6" in explorer.words.value
    bundle = explorer._repr_mimebundle_()
    assert "Kill and resume" in bundle["text/plain"] and "<img" in bundle["text/html"]
