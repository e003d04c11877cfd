"""Scaling simulator: the model against the exercise and by hand, what to discover, words, pictures, controls."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DistributedSampler

from course_utils.exercise import load_exercise

module = importlib.import_module("course_utils.explorers.scaling_simulator")
Job, Data, predict = module.Job, module.Data, module.predict


@pytest.mark.parametrize("overlap", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("world_size", [1, 2, 8, 64, 4096])
def test_a_ring_is_predicted_as_the_exercise_predicts_it(world_size, overlap):
    job = Job(world_size, 250, 5, 20, overlap, 80)
    theirs = load_exercise("scaling_model").reference(0.08, 250e6, world_size, 5e9, 20e-6, overlap)
    mine = predict(job)
    assert mine.communication == pytest.approx(1e3 * theirs["comm_s"])
    assert mine.step == pytest.approx(1e3 * theirs["step_s"])
    assert mine.efficiency == pytest.approx(theirs["efficiency"])


def test_bytes_and_messages_are_those_of_the_ring_that_the_week_writes():
    """A ring of tensors is run, and its sends are counted."""
    for world_size in (2, 3, 5):
        sent = [0] * world_size
        steps = [0] * world_size

        def send(src, dst, chunk, sent=sent, steps=steps):
            sent[src] += chunk.numel()
            steps[src] += 1
            return chunk

        load_exercise("ring_all_reduce").reference([torch.ones(60)] * world_size, send)
        step = predict(Job(world_size))
        assert set(sent) == {round(60 * step.sent)} and set(steps) == {step.messages}


def test_a_tree_waits_for_the_logarithm_of_the_ranks():
    tree = predict(Job(1024, 400, 10, 50, algorithm="tree"))
    assert tree.messages == 20
    assert tree.communication == pytest.approx(20 * 0.05 + 80)
    assert tree.waiting == pytest.approx(1.0)
    assert predict(Job(1, algorithm="tree")).communication == 0


def test_one_rank_is_perfectly_efficient_whatever_the_network():
    for job in (Job(1, 6400, 0.1, 1000), Job(1, 0.1, 400, 0, 1.0, 1)):
        assert predict(job).efficiency == 1 and predict(job).messages == 0
        assert "nothing to send" in module.describe(job)


def test_what_there_is_to_discover():
    sent = [predict(Job(n)).sent for n in module.WORLD_SIZES]
    assert sent == sorted(sent) and sent[1] == 1 and 1.99 < sent[-1] < 2  # it saturates below two buffers
    assert predict(Job(8, latency=10)).limit == "bandwidth"
    assert predict(Job(4096, latency=10)).limit == "latency"  # latency takes over
    small = Job(megabytes=100, compute=100)  # 17.5 ms of communication
    hiding = [predict(replace(small, overlap=share)) for share in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert [step.exposed > 0 for step in hiding] == [True, True, False, False, False]
    assert hiding[-1].step == 100 and hiding[-1].limit == "nothing"
    found = module.efficiencies(Job(latency=0))
    assert found == sorted(found, reverse=True) and found[-1] > 0.55  # without latency it settles
    assert module.efficiencies(Job(latency=100))[-1] < 0.15


@pytest.mark.parametrize("data", [Data(), Data(2, 5), Data(16, 8, 3, drop_last=True), Data(9, 4, 2, True, False)])
def test_rows_are_those_of_the_sampler(data):
    for number, shards in enumerate(module.dealt(data).values()):
        for rank, shard in enumerate(shards):
            sampler = DistributedSampler(range(data.n), data.ranks, rank, data.shuffle, 0, data.drop_last)
            sampler.set_epoch(data.epoch + number)
            assert shard == list(sampler)


def values(**changes):
    """The values of the controls at the start, some of them changed."""
    return module.scaling_simulator().state() | changes


def test_words_tell_messages_bytes_step_and_assumptions():
    words = module.render(**values())[1]
    assert "all-reduce       70.1 ms: 14 messages one after the other; 0.14 ms of it is latency" in words
    assert "each rank sends  700 MB, 1.75 buffers" in words
    assert "efficiency       58.8%; 8 ranks do the work of 4.702" in words
    assert "held up by       bandwidth" in words
    assert all(f"- {line}" in words for line in module.ASSUMPTIONS)


def test_words_tell_who_gets_which_rows():
    words = module.render(**values(view=module.SHARDS, shuffle=False))[1]
    assert "each rank       3 of 10 rows\nmore than once  row 0 2 times, row 1 2 times\n" in words
    words = module.render(**values(view=module.SHARDS, set_epoch=False))[1]
    assert words.endswith("the same order again: nobody called set_epoch")
    words = module.render(**values(view=module.SHARDS, n=3, ranks=4, drop_last=True))[1]
    assert "nothing: fewer rows than ranks" in words and "not used        0, 1, 2" in words


def test_every_size_of_time_and_bytes_reads_well():
    assert [module.time(t) for t in (0.0, 0.0123, 0.5, 70.06, 1234.0)] == [
        "0 ms",
        "12.3 µs",
        "0.5 ms",
        "70.1 ms",
        "1.23 s",
    ]
    assert [module.size(s) for s in (0.0, 0.1, 700.0, 12800.0)] == ["0 MB", "100 kB", "700 MB", "12.8 GB"]


def test_the_pictures_hold_what_they_say():
    figure, _ = module.render(**values(overlap=0.6, world_size=64))
    step, efficiency = figure.figure.axes
    lengths = [bar.get_width() for bar in step.patches]
    right = predict(Job(64, overlap=0.6))
    assert lengths == pytest.approx([100, right.hidden, right.exposed])
    assert list(efficiency.lines[1].get_ydata()) == module.efficiencies(Job(overlap=0.6))
    assert list(efficiency.lines[2].get_xdata()) == [64]
    assert "a mark at 64 ranks, 0.83" in figure.alt
    assert figure.png()


@pytest.mark.parametrize(("n", "ranks"), [(1, 2), (16, 2), (16, 8), (2, 8), (15, 7)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_number_of_rows_and_ranks_can_be_drawn(n, ranks, drop_last):
    figure, _ = module.render(**values(view=module.SHARDS, n=n, ranks=ranks, drop_last=drop_last))
    assert "epoch 1" in figure.alt


@pytest.mark.parametrize("job", [Job(1), Job(4096, 6400, 0.1, 1000, 0.0, 1), Job(2, 0.1, 400, 0, 1.0, 1000, "tree")])
def test_the_ends_of_the_controls_can_be_drawn(job):
    figure = module.step_picture(job)
    assert figure.png() and "nan" not in figure.alt


def test_controls_change_words_and_picture_and_hide_what_does_not_matter():
    explorer = module.scaling_simulator()
    before = explorer.picture.value
    explorer.controls["world_size"].value = 512
    assert explorer.picture.value != before and "1022 messages" in explorer.words.value
    explorer.controls["algorithm"].value = "tree"
    assert "18 messages" in explorer.words.value
    assert explorer.controls["n"].layout.display == "none"
    explorer.controls["view"].value = module.SHARDS
    assert explorer.controls["n"].layout.display is None and explorer.controls["overlap"].layout.display == "none"
    explorer.controls["ranks"].value = 3
    assert "DistributedSampler(data, 3, rank" in explorer.words.value


def test_a_page_without_a_kernel_gets_three_stills_and_the_table():
    bundle = module.scaling_simulator()._repr_mimebundle_()
    assert "<img" in bundle["text/html"]
    for words in ("nothing hidden: computation 100 ms, all-reduce 70.1 ms",
                  "Efficiency by ranks, nothing hidden: 1: 1.00, 2: 0.71, 8: 0.59, 64: 0.56.",
                  "60 % overlap: 1: 1.00"):  # fmt: skip
        assert words in bundle["text/plain"]
