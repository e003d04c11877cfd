"""Optimizer race: paths against torch's own, what there is to discover, words, picture and controls."""

import importlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from course_utils.exercise import load_exercise

module = importlib.import_module("course_utils.explorers.optimizer_race")
Race, describe, picture, run = module.Race, module.describe, module.picture, module.run
SURFACES, STEPS = module.SURFACES, module.STEPS


@pytest.fixture(scope="module")
def adam_step():
    """The course's answer stands for a student's."""
    return load_exercise("adam_step").reference


def plain_loop(race, make_optimizer, make_scheduler=None, steps=STEPS):
    """The same race as anybody would write it."""
    surface = SURFACES[race.surface]
    p = nn.Parameter(torch.tensor(surface.start, dtype=torch.float64))
    optimizer = make_optimizer([p])
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    points = [tuple(p.tolist())]
    for _ in range(steps):
        optimizer.zero_grad()
        surface.height(*p).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        points.append(tuple(p.tolist()))
    return points


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("race", "make"),
    [
        (Race(optimizer="SGD", lr=0.02), lambda p: torch.optim.SGD(p, lr=0.02)),
        (Race(optimizer="momentum", lr=0.02, beta1=0.8), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8)),
        (
            Race(optimizer="Nesterov", lr=0.02, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
        ),
        (Race(lr=0.1, beta2=0.95), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.95))),
        (Race(optimizer="AdamW", weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.2, weight_decay=0.3)),
    ],
    ids=module.OPTIMIZERS,
)
def test_paths_are_those_of_a_plain_loop(surface, race, make):
    race = replace(race, surface=surface)
    np.testing.assert_allclose(run(race).points, plain_loop(race, make), atol=1e-12)


def test_rates_are_those_of_the_schedulers_in_a_plain_loop():
    race = Race(optimizer="SGD", lr=0.05, schedule="cosine")
    points = plain_loop(
        race, lambda p: torch.optim.SGD(p, lr=0.05), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS)
    )
    np.testing.assert_allclose(run(race).points, points, atol=1e-12)
    for name in module.SCHEDULES:
        assert len(module.rates_of(name, 0.5)) == STEPS
        assert max(module.rates_of(name, 0.5)) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_an_own_adam_step_runs_the_same_path_as_torch(surface, optimizer, adam_step):
    """Under decay, noise, clipping, a schedule and uncleared gradients as well."""
    race = Race(surface, optimizer, weight_decay=0.1, schedule="warm-up, cosine", noise=1.0, clip=2.0)
    for case in (race, replace(race, never_clear=True, clip=None)):
        np.testing.assert_allclose(run(case, adam_step).points, run(case).points, atol=1e-9)


def test_no_zero_grad_under_plain_SGD_is_momentum_one():
    for surface in SURFACES:
        missing = run(Race(surface, "SGD", lr=0.01, never_clear=True))
        assert missing.points == run(Race(surface, "momentum", lr=0.01, beta1=1.0)).points
        assert missing.points != run(Race(surface, "momentum", lr=0.01, beta1=0.9)).points


@pytest.mark.parametrize("surface", [name for name, surface in SURFACES.items() if surface.curvature])
def test_plain_SGD_is_stable_below_two_over_the_curvature_and_not_above(surface):
    limit = 2 / SURFACES[surface].curvature
    assert run(Race(surface, "SGD", lr=0.95 * limit)).lengths[-1] < 0.2
    assert run(Race(surface, "SGD", lr=1.1 * limit)).lengths[-1] > 100


def test_the_curvatures_and_lowest_values_are_true():
    for surface in SURFACES.values():
        x, y = np.meshgrid(np.linspace(-5, 5, 2001), np.linspace(-5, 5, 2001))
        assert surface.height(x, y).min() == pytest.approx(surface.lowest, abs=1e-4)
        at = torch.tensor(surface.start, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(surface.height, tuple(at))
        steepest = max(float(hessian[i][i]) for i in range(2))
        assert surface.curvature in (None, steepest)


def test_the_first_steps_of_adam_are_equally_long_everywhere():
    for surface in ("bowl", "ravine", "two valleys"):
        assert run(Race(surface, lr=0.1)).lengths[0] == pytest.approx(0.1 * math.sqrt(2), rel=1e-5)


def test_decay_moves_adamw_off_the_minimum():
    race = Race("bowl", "AdamW", lr=0.5, schedule="cosine")
    ends = [run(replace(race, weight_decay=decay)).points[-1] for decay in (0.0, 0.1, 0.3, 1.0)]
    distances = [math.dist(end, (2, 1)) for end in ends]
    assert distances == sorted(distances) and distances[-1] > 1 > 0.3 > distances[0]


def test_clipping_keeps_the_direction_and_bounds_the_length():
    free, clipped = (run(Race("bowl", "SGD", lr=0.1, clip=clip)).points for clip in (None, 1.0))
    steps = [np.subtract(points[1], points[0]) for points in (free, clipped)]
    assert np.linalg.norm(steps[1]) == pytest.approx(0.1, rel=1e-5)
    assert np.dot(*steps) == pytest.approx(math.prod(map(np.linalg.norm, steps)))


def test_noise_is_the_same_in_every_run():
    race = Race(noise=2.0)
    assert run(race).points == run(race).points != run(replace(race, noise=0.0)).points


def test_a_path_that_flies_away_is_ended_and_said(adam_step):
    path = run(Race(optimizer="SGD", lr=1.0))
    assert len(path.points) < STEPS and "left the surface at step" in path.ended
    race = Race(optimizer="SGD", lr=1.0)
    assert "left the surface" in describe(race, path, run(race, adam_step))


def test_an_adam_step_that_raises_is_named_and_does_not_stop_the_race():
    def broken(param, grad, state, **settings):
        raise ValueError("no m in the state")

    figure, words = module.render(broken, **values())
    assert "step 1 raised ValueError: no m in the state" in words
    assert "after 60 steps" in words and figure.alt


def test_a_different_adam_step_is_told_apart():
    def signs(param, grad, state, lr, betas):
        with torch.no_grad():
            param -= lr * grad.sign()

    assert "largest distance  below" not in describe(Race(), run(Race()), run(Race(), signs))


def values(**changes):
    """The values of the controls at the start, some of them changed."""
    explorer = module.optimizer_race()
    return explorer.state() | changes


def test_words_give_code_ends_steps_and_the_limit(adam_step):
    words = module.render(adam_step, **values())[1]
    assert words.startswith("torch.optim.Adam([p], lr=0.2, betas=(0.9, 0.999), weight_decay=0)\n")
    assert "first steps       0.2828" in words
    assert "largest distance  below 1e-9: the same path" in words
    assert "2 / curvature = 0.1." in words


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"optimizer": "Nesterov", "beta1": 0.0}, "Nesterov without momentum is plain SGD"),
        ({"optimizer": "Adam", "beta1": 1.0}, "0.99 is used"),
        ({"schedule": "one-cycle"}, "cycle_momentum=False"),
    ],
)
def test_what_torch_would_refuse_or_override_is_said(changes, note):
    assert note in module.render(None, **values(**changes))[1]


@pytest.mark.parametrize("surface", SURFACES)
def test_the_picture_holds_both_paths_and_three_curves(surface, adam_step):
    race = Race(surface)
    figure = picture(race, run(race), run(race, adam_step))
    board, rate, length, loss = figure.figure.axes
    assert [line.get_xydata().shape for line in board.lines[::2]] == [(STEPS + 1, 2), (STEPS + 1, 2), (1, 2)]
    assert [len(axis.lines[0].get_xdata()) for axis in (rate, length, loss)] == [STEPS, STEPS, STEPS + 1]
    assert f"Paths on the contours of the {surface}" in figure.alt and "your adam_step: after" in figure.alt


def test_every_choice_of_surface_optimizer_and_schedule_runs():
    for surface, optimizer, schedule in itertools.product(SURFACES, module.OPTIMIZERS, module.SCHEDULES):
        race = Race(surface, optimizer, lr=4.0, schedule=schedule)
        assert describe(race, run(race), None)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_path_that_flies_away_is_drawn(surface):
    figure, _ = module.render(None, **values(surface=surface, optimizer="SGD", lr=4.0))
    assert figure.png()


def test_the_still_picture_tells_the_ends_of_six_paths_and_four_schedules(adam_step):
    figure = module.still(adam_step)
    assert len(figure.figure.axes) == 7
    assert figure.alt.count("after 60 steps") == 6
    assert "Schedule one-cycle: from 0.04 to" in figure.alt


def test_controls_change_words_and_picture(adam_step):
    explorer = module.optimizer_race(adam_step=adam_step)
    before = explorer.picture.value
    explorer.controls["optimizer"].value = "SGD"
    explorer.controls["never_clear"].value = True
    explorer.controls["clip"].value = 1.0
    assert "torch.optim.SGD([p], lr=0.2" in explorer.words.value
    assert "gradients never cleared, clipped at 1" in explorer.picture.value
    assert explorer.picture.value != before


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = module.optimizer_race()._repr_mimebundle_()
    assert "Six paths of 60 steps" in bundle["text/plain"]
    assert "<img" in bundle["text/html"]
