"""Loader timeline: the simulator against hand-made epochs and a real DataLoader, words, pictures and controls."""

import importlib
import itertools
import multiprocessing
import random

import pytest
import torch

module = importlib.import_module("course_utils.explorers.loader_timeline")
MEASURED, Settings = module.MEASURED, module.Settings
describe, measure, picture, replay, simulate = (
    module.describe, module.measure, module.picture, module.replay, module.simulate
)  # fmt: skip


def random_times(seed, count=15):
    """Durations of loads and steps, some of them zero."""
    draw = random.Random(seed)
    return [draw.choice((0, 1, 5, 20)) * draw.random() for _ in range(count)], [
        draw.choice((0, 1, 5)) * draw.random() for _ in range(count)
    ]


def queues(loads, steps, workers, prefetch, startup):
    """When each batch is taken, found by moving through time event by event, as the DataLoader's queues do."""
    waiting = {worker: [] for worker in range(workers)}  # ordered and not begun
    for number in range(min(len(loads), workers * prefetch)):
        waiting[number % workers].append(number)
    ordered = min(len(loads), workers * prefetch)
    busy = {worker: (startup[worker], None) for worker in range(workers)}  # until when, with what
    done, taken, clock, loop_free = set(), [], 0.0, 0.0
    while len(taken) < len(loads):
        for worker, (until, number) in busy.items():
            if until <= clock and number is not None:
                done.add(number)
                busy[worker] = (until, None)
        if loop_free <= clock and len(taken) in done:
            taken.append(clock)
            loop_free = clock + steps[len(taken) - 1]
            if ordered < len(loads):
                waiting[ordered % workers].append(ordered)
                ordered += 1
            continue
        started = False
        for worker, (until, number) in busy.items():
            if number is None and until <= clock and waiting[worker]:
                first = waiting[worker].pop(0)
                busy[worker] = (clock + loads[first], first)
                started = True
        if started:
            continue
        later = [until for until, number in busy.values() if until > clock]
        later += [loop_free] if loop_free > clock else []
        clock = min(later)
    return taken


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_taken_when_a_run_through_all_events_takes_them(workers, seed):
    loads, steps = random_times(seed)
    startup = [3.0, 4.5, 4.0][:workers]
    for prefetch in (1, 2, 3):
        timeline = simulate(loads, steps, workers, prefetch, startup)
        expected = queues(loads, steps, workers, prefetch, startup)
        assert [batch.step[0] for batch in timeline.batches] == pytest.approx(expected)


def test_without_workers_everything_happens_one_after_the_other():
    timeline = simulate([10, 20], [3, 4], 0, 2)
    assert [(b.worker, b.load, b.asked, b.step) for b in timeline.batches] == [
        (None, (0, 10), 0, (10, 13)),
        (None, (13, 33), 13, (33, 37)),
    ]
    assert (timeline.total, timeline.waiting, timeline.prefetch) == (37, 30, None)


def test_a_small_epoch_with_two_workers_by_hand():
    timeline = simulate([10, 10, 40, 10, 10], [5] * 5, 2, 1, [2, 4])
    assert [b.worker for b in timeline.batches] == [0, 1, 0, 1, 0]
    # Batch 2 is ordered when batch 0 is taken, at 12; batch 3 when 1 is, at 17; batch 4 when 2 is, at 52.
    assert [b.load for b in timeline.batches] == [(2, 12), (4, 14), (12, 52), (17, 27), (52, 62)]
    assert [b.step[0] for b in timeline.batches] == [12, 17, 52, 57, 62]
    assert timeline.waiting == 12 + 0 + 30 + 0 + 0
    assert timeline.total == 67


def test_a_slow_batch_holds_back_those_that_are_ready():
    loads = [10, 100, 10, 10, 10, 10]
    timeline = simulate(loads, [1] * 6, 3, 4)
    # Batch 4 stands in the queue of the worker that is busy with batch 1; 2, 3 and 5 lie ready and have to wait.
    assert [b.step[0] for b in timeline.batches] == [10, 100, 101, 102, 110, 111]
    assert timeline.most_ready() == 3


def test_order_and_bounds_hold_for_every_setting():
    for seed, workers, prefetch in itertools.product(range(5), range(1, 5), (1, 2, 4)):
        loads, steps = random_times(seed)
        timeline = simulate(loads, steps, workers, prefetch)
        taken = [batch.step[0] for batch in timeline.batches]
        assert taken == sorted(taken)
        assert all(batch.step[0] >= batch.load[1] for batch in timeline.batches)
        for worker in range(workers):
            own = [batch.load for batch in timeline.batches if batch.worker == worker]
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))
        assert max(level for _, level in timeline.ready()) <= workers * prefetch
        assert timeline.ready()[-1][1] == 0
        slowest = max(sum(steps), sum(loads) / workers)
        assert slowest - 1e-9 <= timeline.total <= sum(loads) + sum(steps) + 1e-9
        assert timeline.total == pytest.approx(sum(steps) + timeline.waiting)


def test_more_prefetch_never_makes_an_epoch_longer():
    for seed, workers in itertools.product(range(5), range(1, 5)):
        loads, steps = random_times(seed)
        totals = [simulate(loads, steps, workers, prefetch).total for prefetch in (1, 2, 3, 15)]
        assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(("workers", "prefetch"), [(-1, 2), (2, 0)])
def test_impossible_settings_are_refused(workers, prefetch):
    with pytest.raises(ValueError, match=f"{workers} workers with prefetch {prefetch}"):
        simulate([1.0], [1.0], workers, prefetch)


# --- the measurement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_real_loader_with_two_workers_runs_as_the_simulator_says(prefetch):
    """Orders and owners exactly; the total within a wide margin, since machines are busy."""
    loads = [8.0, 12.0, 9.0, 40.0, 10.0, 8.0, 11.0, 9.0]
    before, others = torch.get_rng_state(), set(multiprocessing.active_children())
    timeline = measure(2, prefetch, loads, step=6.0)
    assert torch.equal(before, torch.get_rng_state())
    assert set(multiprocessing.active_children()) <= others
    assert [batch.worker for batch in timeline.batches] == [0, 1] * 4
    assert all(mine >= asked - 1 for mine, asked in zip(timeline.loads, loads, strict=True))
    for number, batch in enumerate(timeline.batches):
        assert batch.asked <= batch.step[0] and batch.load[1] <= batch.step[0]
        if number >= 2 * prefetch:  # it was ordered when the loop had asked for an earlier one
            assert batch.load[0] >= timeline.batches[number - 2 * prefetch].asked
    again = replay(timeline, 2, prefetch)
    assert 0.3 * timeline.total < again.total < 1.1 * timeline.total


def test_a_loader_without_workers_loads_in_the_main_process():
    timeline = measure(0, 2, [3.0, 4.0], step=2.0)
    assert [batch.worker for batch in timeline.batches] == [None, None]
    assert timeline.prefetch is None and timeline.startup == [] and timeline.most_ready() == 0
    assert replay(timeline, 0, 2).total == pytest.approx(timeline.total, rel=0.5)


def test_persistent_workers_begin_their_second_epoch_at_once():
    others = set(multiprocessing.active_children())
    fresh, stayed = measure(1, 2, [2.0, 2.0], 1.0), measure(1, 2, [2.0, 2.0], 1.0, persistent=True)
    assert stayed.startup[0] < fresh.startup[0]
    assert set(multiprocessing.active_children()) <= others


def test_the_stored_measurement_is_one_of_two_workers():
    assert (MEASURED.workers, MEASURED.prefetch, len(MEASURED.batches)) == (2, 2, len(module.LOADS))
    assert [batch.worker for batch in MEASURED.batches] == [0, 1] * 6
    assert all(abs(mine - asked) < 3 for mine, asked in zip(MEASURED.loads, module.LOADS, strict=True))
    assert replay(MEASURED, 2, 2).total == pytest.approx(MEASURED.total, rel=0.05)


# --- what there is to discover ----------------------------------------------------------------------------------------


def test_one_worker_overlaps_loading_with_computing():
    alone, one = replay(MEASURED, 0, 2), replay(MEASURED, 1, 2, persistent=True)
    assert alone.total == pytest.approx(sum(MEASURED.loads) + sum(MEASURED.steps))
    assert one.total < alone.total - 0.8 * sum(MEASURED.steps)


def test_more_workers_stop_helping_and_their_start_costs_time():
    totals = [replay(MEASURED, workers, 2).total for workers in range(5)]
    assert totals[0] > totals[1] > totals[2] > totals[3] < totals[4]


def test_prefetch_helps_where_the_step_sets_the_pace():
    steps = [replay(MEASURED, 2, prefetch, step=2.0).total for prefetch in (1, 2, 4)]
    assert steps[0] > steps[1] + 10 and steps[1] == pytest.approx(steps[2])
    loading = [replay(MEASURED, 1, prefetch, step=0.25).total for prefetch in (1, 2, 4)]
    assert loading[0] == pytest.approx(loading[2])


# --- words and pictures -----------------------------------------------------------------------------------------------


def test_words_name_code_totals_pace_and_what_lies_ready():
    simulated = replay(MEASURED, 3, 2)
    words = describe(Settings(), MEASURED, simulated, "a machine")
    assert words.startswith("DataLoader(dataset, num_workers=3, prefetch_factor=2)\n")
    assert f"measured              {MEASURED.total:.0f} ms" in words and "on a machine" in words
    assert f"simulated             {simulated.total:.0f} ms" in words
    assert "/ 3 workers = 8.5 ms, step 14.1 ms: the step sets the pace" in words
    assert f"at most {simulated.most_ready()} of the 6 batches" in words


def test_code_has_only_options_that_torch_accepts_together():
    data = module.TimedBatches([1.0])
    for workers, persistent in itertools.product((0, 1), (False, True)):
        code = module.loader_code(Settings(workers=workers, persistent=persistent))
        assert eval(code, {"DataLoader": module.DataLoader, "dataset": data}).num_workers == workers


def test_the_picture_has_a_row_per_process_and_a_bar_per_load_and_step():
    timeline = replay(MEASURED, 3, 2)
    figure = picture([("measured", MEASURED), ("simulated", timeline)], timeline)
    above, below, levels = figure.figure.axes
    assert [text.get_text() for text in below.get_yticklabels()] == ["main", "worker 0", "worker 1", "worker 2"]
    waits = sum(batch.waiting > 0.5 for batch in timeline.batches)
    assert [len(bars.get_paths()) for bars in below.collections] == [12, 12, waits]
    assert [bars.get_hatch() for bars in above.collections] == [None, None, "////"]
    assert levels.lines[0].get_ydata().max() == timeline.most_ready()
    assert f"simulated, the loop waits {timeline.waiting:.0f} ms" in figure.alt


def test_numbers_stand_only_in_bars_with_room_for_them():
    narrow = picture([("", replay(MEASURED, 0, 2, step=0.25)), ("", replay(MEASURED, 1, 2, load=4.0))])
    figure = narrow.figure
    narrow.png()
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        for text in axis.texts:
            box = text.get_window_extent(renderer)
            bars = [bar for kind in axis.collections for bar in kind.get_paths()]
            around = [bar.get_extents(axis.transData) for bar in bars]
            assert any(bar.x0 - 1 <= box.x0 and box.x1 <= bar.x1 + 1 for bar in around), text


def test_every_setting_is_drawn():
    draw = module._Render()
    for workers, prefetch, load in itertools.product((0, 1, 4), (1, 4), (0.25, 4.0)):
        controls = {"workers": workers, "prefetch": prefetch, "load": load, "step": 1.0, "persistent": True}
        figure, words = draw(**controls)
        assert figure.alt and words


def test_controls_change_words_and_picture():
    explorer = module.loader_timeline()
    before = explorer.picture.value
    explorer.controls["workers"].value = 0
    assert "DataLoader(dataset, num_workers=0)" in explorer.words.value
    assert "nothing overlaps" in explorer.words.value
    assert explorer.picture.value != before


def test_the_button_measures_once_and_another_setting_goes_back(monkeypatch):
    calls = []

    def instead(workers, prefetch, loads, step, persistent):
        calls.append((workers, prefetch, step))
        return simulate(loads, [step] * len(loads), workers, prefetch, [100.0] * workers)

    monkeypatch.setattr(module, "measure", instead)
    explorer = module.loader_timeline()
    explorer.controls["step"].value = 2.0
    explorer.controls["measure_here"].click()
    explorer.update()
    assert calls == [(3, 2, 28.0)]
    assert "on this machine" in explorer.words.value
    explorer.controls["measure_here"].click()
    assert len(calls) == 2
    explorer.controls["prefetch"].value = 1
    assert len(calls) == 2 and module.MEASURED_ON in explorer.words.value


def test_a_measurement_that_fails_is_said(monkeypatch):
    def no_processes(*args):
        raise OSError("no processes here")

    monkeypatch.setattr(module, "measure", no_processes)
    explorer = module.loader_timeline()
    explorer.controls["measure_here"].click()
    assert "The measurement failed with OSError: no processes here" in explorer.words.value
    assert module.MEASURED_ON in explorer.words.value


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = module.loader_timeline()._repr_mimebundle_()
    assert "measured: 2 workers, prefetch 2" in bundle["text/plain"]
    assert "simulated: no workers" in bundle["text/plain"]
    assert "<img" in bundle["text/html"]
