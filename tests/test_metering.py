"""The memory meter agrees with what is known about simple programs."""

import gc

import torch
from torch import nn

from course_utils.metering import MemoryMeter, kept_by_layer, kept_bytes


def test_kept_bytes_count_each_storage_once():
    x = torch.ones(6, requires_grad=True)
    result, kept = kept_bytes(lambda: x * x)
    assert torch.equal(result, x) and kept == 24
    with torch.no_grad():
        assert kept_bytes(lambda: x * x)[1] == 0


def test_kept_by_layer_charges_who_saves_first():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU()), nn.Linear(6, 2))
    x = torch.ones(3, 4)
    bill, storages = kept_by_layer(model, lambda: model(x).exp())
    assert (bill, storages) == ({"0": 48 + 72, "": 24}, 3)  # both the ReLU's and the inner Linear's last name is 0
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_new_storages_count_until_they_die():
    x = torch.ones(10)
    with MemoryMeter() as memory:
        y = x * 2
        assert memory.now == 40
        del y
        assert memory.now == 0
    assert memory.peak == 40 and memory.history == [0, 40]


def test_views_in_place_operations_and_old_tensors_cost_nothing():
    x = torch.ones(4, 5)
    with MemoryMeter() as memory:
        y = x.t()[1:].reshape(-1, 1).squeeze()
        x.add_(1)
    assert y.numel() == 16
    assert memory.now == 64  # reshape had to copy, once


def test_backward_is_watched_and_saved_tensors_are_freed():
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.grad = torch.zeros(8, 8)
    x = torch.ones(3, 8)
    with MemoryMeter() as memory:
        loss = layer(x).exp().sum()
        forward = memory.now
        loss.backward()
    assert forward == 3 * 8 * 4 + 4  # what exp keeps, and the loss
    assert memory.now == 4 and memory.peak >= forward + 96
    del loss
    gc.collect()
    assert memory.now == 0


def test_a_meter_that_is_gone_leaves_no_trace():
    x = torch.ones(3)
    with MemoryMeter() as memory:
        y = x + 1
    steps = len(memory.history)
    z = y + 1
    del y
    assert memory.now == 0 and len(memory.history) == steps and z[0] == 3
