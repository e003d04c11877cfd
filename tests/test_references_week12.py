"""The references of week 12 against independent oracles: torch's own sampler and DDP's rules in plain loops."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from course_utils.exercise import load_exercise

reference = {
    name: load_exercise(name).reference
    for name in (
        "shard_indices", "ring_all_reduce", "average_gradients", "loss_for_rank", "accumulate_no_sync",
        "save_on_rank_zero", "scaling_model", "simulate_ddp",
    )
}  # fmt: skip


def test_shard_indices_are_those_of_torchs_sampler():
    """Every combination of flags on sizes that divide, do not divide, and are smaller than the world."""
    for n, world_size in ((10, 4), (12, 3), (2, 5), (7, 1), (1, 3), (3, 8), (23, 6)):
        for shuffle in (False, True):
            for drop_last in (False, True):
                for epoch, seed in ((0, 0), (3, 0), (3, 11)):
                    for rank in range(world_size):
                        sampler = DistributedSampler(range(n), world_size, rank, shuffle, seed, drop_last)
                        sampler.set_epoch(epoch)
                        shard = reference["shard_indices"](n, world_size, rank, epoch, seed, shuffle, drop_last)
                        assert shard == list(sampler)


def test_shard_indices_refuses_the_ranks_that_torchs_sampler_refuses():
    for rank in (-1, 2, 5):
        with pytest.raises(ValueError):
            DistributedSampler(range(4), 2, rank)
        with pytest.raises(ValueError):
            reference["shard_indices"](4, 2, rank, 0)


def test_ring_all_reduce_sums_with_the_least_traffic():
    """The sum by plain addition; every rank sends 2(N-1) chunks, together 2(N-1)/N of the buffer, to its neighbor."""
    torch.manual_seed(0)
    for n in range(1, 6):
        for length in (0, 2, 7, 20):
            buffers = [torch.randn(length, dtype=torch.float64) for _ in range(n)]
            before, sent = copy.deepcopy(buffers), {}

            def send(src, dst, chunk, n=n, sent=sent):
                assert dst == (src + 1) % n
                sent.setdefault(src, []).append(chunk.numel())
                return chunk.clone()

            results = reference["ring_all_reduce"](buffers, send)
            total = torch.zeros(length, dtype=torch.float64)
            for buffer in buffers:
                total = total + buffer
            assert all(torch.allclose(result, total) for result in results)
            assert all(torch.equal(result, results[0]) for result in results)  # the same bits on every rank
            assert all(map(torch.equal, buffers, before))
            assert len({result.data_ptr() for result in results + buffers}) == 2 * n or length == 0
            if n > 1:
                assert all(len(sizes) == 2 * (n - 1) for sizes in sent.values())
                assert sum(map(sum, sent.values())) == 2 * (n - 1) * length
                assert max(map(sum, sent.values())) <= 2 * (n - 1) * -(-length // n)


def test_average_gradients_is_the_gradient_of_the_mean_loss():
    """Equal replicas, one shard each: the mean gradient is that of the mean of their losses, by autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    replicas = [copy.deepcopy(model) for _ in range(3)]
    shards = [(torch.randn(rows, 4), torch.randint(3, (rows,))) for rows in (4, 2, 5)]
    for replica, (x, y) in zip(replicas, shards, strict=True):
        F.cross_entropy(replica(x), y).backward()
    assert reference["average_gradients"](replicas) is None
    torch.stack([F.cross_entropy(model(x), y) for x, y in shards]).mean().backward()
    for replica in replicas:
        for mine, right in zip(replica.parameters(), model.parameters(), strict=True):
            assert torch.allclose(mine.grad, right.grad)
            assert torch.equal(mine, right)


def test_average_gradients_of_missing_ones_by_hand():
    replicas = [nn.Linear(1, 1) for _ in range(4)]
    replicas[2].weight.grad = torch.tensor([[8.0]])
    reference["average_gradients"](replicas)
    assert [replica.weight.grad.item() for replica in replicas] == [2.0] * 4
    assert [replica.bias.grad for replica in replicas] == [None] * 4


@pytest.mark.parametrize("rows", [(6, 2), (3, 5, 0), (1, 1, 1, 9)])
def test_loss_for_rank_gives_the_gradient_of_the_large_batch(rows):
    """DDP's mean of the gradients of all ranks, one of them perhaps empty, against one model on all rows."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    shards = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in rows]
    shards[0][1][0] = -100
    count = sum(int((y != -100).sum()) for _, y in shards)
    parameters, total = list(model.parameters()), [torch.zeros_like(p) for p in model.parameters()]
    for x, y in shards:
        loss = reference["loss_for_rank"](model(x), y, count, len(rows))
        for sum_, grad in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_ += grad / len(rows)
    x, y = (torch.cat(parts) for parts in zip(*shards, strict=True))
    right = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    assert all(map(torch.allclose, total, right))


class Quiet(nn.Linear):
    """A module with the no_sync of DDP."""

    inside = False

    @contextlib.contextmanager
    def no_sync(self):
        self.inside = True
        yield
        self.inside = False

    def forward(self, x):
        self.calls = [*getattr(self, "calls", []), self.inside]
        return super().forward(x)


@pytest.mark.parametrize("sizes", [(5,), (4, 1), (2, 6, 3, 1)])
def test_accumulate_no_sync_takes_the_step_of_the_joined_batch(sizes):
    torch.manual_seed(0)
    model = Quiet(3, 2).double()
    other = nn.Linear(3, 2).double()
    other.load_state_dict(model.state_dict())
    batches = [(torch.randn(n, 3).double(), torch.randn(n, 2).double()) for n in sizes]
    model.weight.grad = torch.ones(2, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = reference["accumulate_no_sync"](model, batches, optimizer, F.mse_loss)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = F.mse_loss(other(x), y)
    whole.backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert loss == pytest.approx(whole.item())
    assert all(map(torch.allclose, model.parameters(), other.parameters()))
    assert model.calls == [True] * (len(sizes) - 1) + [False]


def test_save_on_rank_zero_saves_what_loads_into_the_bare_model():
    """Wrapped or not, strict loading into a fresh model gives the weights as they were when they were saved."""

    def bare():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    model = bare()
    before = copy.deepcopy(model)
    for wrapped in (model, nn.DataParallel(model)):
        model.load_state_dict(before.state_dict())
        events = []
        for rank in range(3):
            reference["save_on_rank_zero"](wrapped, rank, events.append, lambda events=events: events.append("barrier"))
        model.train()(torch.randn(4, 2)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        assert events[1:] == ["barrier"] * 3
        fresh = bare()
        fresh.load_state_dict(events[0])
        assert all(map(torch.equal, fresh.state_dict().values(), before.state_dict().values()))


def test_save_on_rank_zero_lets_nobody_wait_for_a_save_that_failed():
    reached = []

    def fails(state):
        raise OSError("disk full")

    with pytest.raises(OSError):
        reference["save_on_rank_zero"](nn.Linear(2, 1), 0, fails, lambda: reached.append(True))
    assert reached == [True]


def test_scaling_model_agrees_with_the_numbers_of_the_lesson_and_a_ring_played_step_by_step():
    two = reference["scaling_model"](0.1, 400e6, 2, 10e9, 0.0, 0.0)
    eight = reference["scaling_model"](0.1, 400e6, 8, 10e9, 0.0, 0.0)
    assert two["comm_s"] == pytest.approx(0.040) and eight["comm_s"] == pytest.approx(0.070)
    assert round(two["efficiency"], 2) == 0.71 and round(eight["efficiency"], 2) == 0.59
    for n in (1, 3, 16):
        clock = 0.0
        for _ in range(2 * (n - 1)):  # of both phases
            clock += 1e-4 + 300e6 / n / 5e9
        found = reference["scaling_model"](0.2, 300e6, n, 5e9, 1e-4, 0.5)
        assert found["comm_s"] == pytest.approx(clock)
        assert found["step_s"] == pytest.approx(0.2 if clock <= 0.1 else 0.1 + clock)


def test_simulate_ddp_equals_one_model_on_the_large_batch():
    """With shards that divide evenly, the ranks' slices joined are the batches of one model and one optimizer."""
    torch.manual_seed(0)
    world_size, n, batch_size, seed = 3, 18, 2, 5
    replicas = [nn.Linear(4, 3).double() for _ in range(world_size)]
    single = copy.deepcopy(replicas[0])
    x, y = torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))
    history = reference["simulate_ddp"](replicas, x, y, 3, batch_size, 0.3, seed)
    optimizer, losses = torch.optim.SGD(single.parameters(), lr=0.3), []
    for epoch in range(3):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        for rows in order.split(world_size * batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(single(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert history == pytest.approx(losses)
    for replica in replicas:
        assert all(map(torch.allclose, replica.parameters(), single.parameters()))


def test_the_replicas_of_simulate_ddp_are_equal_to_the_last_bit_after_ragged_steps():
    torch.manual_seed(1)
    replicas = [nn.Linear(4, 3) for _ in range(3)]
    history = reference["simulate_ddp"](replicas, torch.randn(11, 4), torch.randint(3, (11,)), 2, 3, 0.5, 0)
    assert len(history) == 4
    for replica in replicas[1:]:
        assert all(map(torch.equal, replica.parameters(), replicas[0].parameters()))
