"""Loop simulator: paths against torch's own, what there is to discover, words, picture and controls."""

import importlib
import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

module = importlib.import_module("course_utils.explorers.loop_simulator")
Loop, ORDERS, STEPS, run = module.Loop, module.ORDERS, module.STEPS, module.run
THROWN_AWAY, CLIPPED_TOO_EARLY, STEPPED_FIRST = list(ORDERS)[3:]


def loop_in_torch(loop, steps=STEPS):
    """The same loop as anybody would write it: points, losses, norms before clipping."""
    inputs, targets = (torch.tensor(part) for part in module.forty_points())
    x, y = inputs[:, :1], targets[:, None]
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(module.START[0])
        model.bias.fill_(module.START[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=loop.lr, momentum=loop.momentum)
    points, losses, norms = [module.START], [], []
    batches = list(zip(x.split(loop.batch_size), y.split(loop.batch_size), strict=True))
    every = [batches[i : i + loop.accumulation] for i in range(0, len(batches), loop.accumulation)]
    for window in itertools.islice(itertools.cycle(every), steps):
        samples = sum(len(part) for part, _ in window)
        for word in ORDERS[loop.order].split():
            if word == "clear" and loop.zero_grad:
                optimizer.zero_grad()
            elif word == "forward":
                parts = [
                    F.mse_loss(model(a), b) * (len(a) / samples if loop.averaging == "samples" else 1 / len(window))
                    for a, b in window
                ]
            elif word == "backward":
                for part in parts:
                    part.backward()
            elif word == "clip" and loop.clip is not None:
                norms.append(nn.utils.clip_grad_norm_(model.parameters(), loop.clip).item())
            elif word == "step":
                optimizer.step()
        losses.append(sum(part.item() for part in parts))
        points.append((model.weight.item(), model.bias.item()))
    return points, losses, norms


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("zero_grad", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "batch_size": 5, "lr": 0.02},
        {"clip": 0.5, "batch_size": 7, "accumulation": 4, "averaging": "batch means"},
        {"clip": 1.0, "momentum": 0.5, "batch_size": 7, "accumulation": 3},
    ],
    ids=["plain", "momentum", "clipped, accumulated", "all"],
)
def test_paths_losses_and_norms_are_those_of_a_loop_in_torch(order, zero_grad, settings):
    loop = Loop(order=order, zero_grad=zero_grad, **settings)
    path = run(loop)
    points, losses, norms = loop_in_torch(loop)
    np.testing.assert_allclose(path.points, points, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(path.losses, losses, rtol=1e-7, atol=1e-9)
    if loop.clip is not None:
        np.testing.assert_allclose(path.reported, norms, rtol=1e-6, atol=1e-9)


def test_the_loss_over_all_points_is_that_of_torch():
    inputs, targets = (torch.tensor(part) for part in module.forty_points())
    for w, b in [(0.0, 0.0), (1.5, -1.0), (-2.0, 3.0)]:
        expected = F.mse_loss(inputs @ torch.tensor([w, b], dtype=torch.float64), targets)
        assert module.mean_loss(w, b) == pytest.approx(expected.item())


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.3])
def test_no_zero_grad_and_momentum_one_draw_the_same_path(lr):
    missing = run(Loop(zero_grad=False, lr=lr))
    np.testing.assert_allclose(missing.points, run(Loop(momentum=1.0, lr=lr)).points, atol=1e-9)
    assert missing.points != run(Loop(momentum=0.9, lr=lr)).points


def test_clearing_between_backward_and_step_gives_a_single_dot():
    path = run(Loop(order=THROWN_AWAY))
    assert set(path.points) == {module.START}
    assert set(path.used) == {0.0}


@pytest.mark.parametrize(("batch_size", "accumulation"), [(5, 4), (10, 2), (7, 2), (7, 3), (7, 4), (1, 8)])
def test_accumulation_weighted_by_samples_follows_the_path_of_the_large_batch(batch_size, accumulation):
    loop = Loop(batch_size=batch_size, accumulation=accumulation)
    np.testing.assert_allclose(run(loop).points, run(loop.plain).points, atol=1e-9)


def test_batch_means_do_so_only_for_equal_batches():
    for batch_size, same in ((5, True), (10, True), (7, False)):
        loop = Loop(batch_size=batch_size, accumulation=4, averaging="batch means")
        away = np.abs(np.subtract(run(loop).points, run(loop.plain).points)).max()
        assert (away < 1e-9) == same, (batch_size, away)
        assert same or away > 0.05  # enough to be seen


def test_clipping_shortens_steps_and_keeps_their_direction():
    free, clipped = run(Loop()), run(Loop(clip=0.5))
    steps = [np.subtract(path.points[1], path.points[0]) for path in (free, clipped)]
    assert np.linalg.norm(steps[1]) == pytest.approx(0.05, rel=1e-5)
    assert np.dot(*steps) == pytest.approx(math.prod(map(np.linalg.norm, steps)))
    assert max(clipped.used) <= 0.5 < min(clipped.reported)
    assert "0.00 degrees" in module.describe(Loop(clip=0.5), clipped, free)


def test_clipping_before_backward_clips_nothing():
    path = run(Loop(order=CLIPPED_TOO_EARLY, clip=0.5))
    assert set(path.reported) == {0.0}
    assert path.points == run(Loop()).points


def test_stepping_before_backward_uses_the_gradient_of_the_batch_before():
    late, right = run(Loop(order=STEPPED_FIRST, batch_size=40)), run(Loop(batch_size=40))
    assert late.points[1] == module.START and late.points[2] == pytest.approx(right.points[1])
    assert late.points[3] != pytest.approx(right.points[2])


def test_three_orders_are_right():
    assert len({run(Loop(order=order, clip=1.0)).points for order in list(ORDERS)[:3]}) == 1


def test_clipping_saves_a_rate_that_is_too_large_but_it_does_not_arrive():
    lost, saved = run(Loop(lr=1.0)), run(Loop(lr=1.0, clip=0.5))
    assert "left the picture" in lost.ended and len(lost.points) < STEPS
    assert not saved.ended and min(saved.lengths) > 0.1


def values(**changes):
    """The values of the controls at the start, some of them changed."""
    return module.loop_simulator().state() | changes


def test_words_give_code_result_steps_and_norms():
    words = module.render(**values(clip=0.5))[1]
    assert words.startswith("optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0)\n")
    assert words.index("zero_grad()") < words.index("mse_loss") < words.index("backward()")
    assert words.index("backward()") < words.index("clip_grad_norm_") < words.index("optimizer.step()")
    assert "first steps     0.05, 0.05" in words and "distance        up to" in words


def test_the_code_follows_order_clearing_and_accumulation():
    words = module.code(Loop(order=CLIPPED_TOO_EARLY, clip=2.0, zero_grad=False))
    assert words.index("clip_grad_norm_") < words.index("backward()") and "zero_grad" not in words
    assert "len(x) / samples" in module.code(Loop(accumulation=3, batch_size=7))
    assert "1 / len(window)" in module.code(Loop(accumulation=3, batch_size=7, averaging="batch means"))


def test_a_loop_that_agrees_with_the_plain_one_says_so():
    assert "below 1e-9: the same path" in module.render(**values(batch_size=7, accumulation=3))[1]
    assert "no first step" in module.render(**values(order=THROWN_AWAY))[1]


def test_the_picture_holds_both_paths_the_losses_and_the_norms():
    loop = Loop(clip=0.5)
    figure = module.picture(loop, run(loop), run(loop.plain))
    board, losses, norms = figure.figure.axes
    assert [line.get_xydata().shape for line in board.lines[::2]] == [(STEPS + 1, 2), (STEPS + 1, 2), (1, 2)]
    assert [len(line.get_xdata()) for line in (*losses.lines, *norms.lines)] == [STEPS] * 4
    assert "clipped at 0.5" in figure.alt and "The plain loop: after 60 steps" in figure.alt


def test_every_order_is_drawn_at_extreme_settings():
    for order, zero_grad in itertools.product(ORDERS, (True, False)):
        figure, words = module.render(**values(order=order, zero_grad=zero_grad, lr=1.0, momentum=1.0))
        assert figure.alt and words
    assert figure.png()


def test_the_still_picture_tells_four_loops_and_all_orders():
    figure = module.still()
    assert len(figure.figure.axes) == 5
    assert figure.alt.count("after 60 steps") == 4
    for order in ORDERS.values():
        assert f"Order {order.replace(' ', ', ')}, clipped at 0.5: loss" in figure.alt


def test_controls_change_words_and_picture():
    explorer = module.loop_simulator()
    before = explorer.picture.value
    explorer.controls["zero_grad"].value = False
    explorer.controls["clip"].value = 1.0
    explorer.controls["order"].value = THROWN_AWAY
    assert "clipped at 1" in explorer.picture.value and "without zero_grad" in explorer.picture.value
    assert explorer.picture.value != before


def test_an_update_answers_quickly():
    """The best of a few: about 0.08 s on the machine that built this, so 0.1 s with nothing else running."""
    explorer, spent = module.loop_simulator(), []
    for clip in (2.0, 1.0, 0.5, 2.0, 1.0):
        start = time.process_time()
        explorer.controls["clip"].value = clip
        spent.append(time.process_time() - start)
    assert min(spent) < 0.2


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = module.loop_simulator()._repr_mimebundle_()
    assert "Four loops of 60 steps" in bundle["text/plain"]
    assert "<img" in bundle["text/html"]


def test_replacing_one_setting_keeps_the_plain_loop_plain():
    loop = replace(Loop(), clip=1.0, order=THROWN_AWAY, zero_grad=False, averaging="batch means")
    assert loop.plain == Loop()
