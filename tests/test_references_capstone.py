"""The references of the capstone against independent oracles: plain loops, NumPy, a kill at every save."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.datasets import digits
from course_utils.exercise import load_exercise


def test_split_digits_agrees_with_NumPy_on_the_digits():
    """Row by row on the real file: pixels, labels, and statistics of the training part in float64."""
    x, y = digits()
    rows = torch.cat([(x * 16 if x.max() <= 1 else x).round().reshape(len(x), 64).long(), y[:, None].long()], dim=1)
    part = load_exercise("split_digits")(rows, 0.2, torch.Generator().manual_seed(3))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3)).numpy()
    table, n_val = rows.numpy(), 359
    pixels = table[order[n_val:], :64].astype(np.float64) / 16
    assert len(part["y_val"]) == n_val and len(part["y_train"]) == 1438
    assert part["mean"] == pytest.approx(pixels.mean(), rel=1e-6)
    assert part["std"] == pytest.approx(pixels.std(), rel=1e-5)
    for name, picked in (("val", order[:n_val]), ("train", order[n_val:])):
        expected = (table[picked, :64] / 16 - pixels.mean()) / pixels.std()
        np.testing.assert_allclose(part[f"x_{name}"].numpy().reshape(-1, 64), expected, rtol=1e-4, atol=1e-5)
        assert part[f"x_{name}"].dtype == torch.float32 and part[f"x_{name}"].shape[1:] == (1, 8, 8)
        assert part[f"y_{name}"].tolist() == table[picked, 64].tolist()


def test_batches_that_are_stopped_anywhere_see_each_row_once_per_epoch():
    """A new object for every single batch still walks through the orders of a plain loop."""
    make = load_exercise("ResumableBatches").reference
    for n, batch_size in ((10, 3), (8, 4), (3, 5), (1, 1)):
        expected = []
        for epoch in range(3):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(5 + epoch)).tolist()
            expected += [order[i : i + batch_size] for i in range(0, n, batch_size)]
        state, seen = {"epoch": 0, "position": 0}, []
        while len(seen) < len(expected):
            batches = make(n, batch_size, 5)
            batches.load_state_dict(state)
            held = next(iter(batches), None)
            if held is None:
                list(batches)  # begin the next epoch
                batches = make(n, batch_size, 5)
                batches.load_state_dict({"epoch": state["epoch"] + 1, "position": 0})
                held = next(iter(batches))
            seen.append(held.tolist())
            state = batches.state_dict()
        assert seen == expected


def step_by_hand(model, x, y, lr, max_norm):
    """The weights after one clipped step of plain gradient descent, from the formulas of softmax regression."""
    with torch.no_grad():
        logits = x.double() @ model.weight.double().T + model.bias.double()
        error = (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)
        by_weight, by_bias = error.T @ x.double(), error.sum(0)
        norm = math.sqrt((by_weight**2).sum() + (by_bias**2).sum())
        factor = min(1.0, max_norm / norm)
        return norm, model.weight - lr * factor * by_weight, model.bias - lr * factor * by_bias


@pytest.mark.parametrize("max_norm", [0.2, 100.0])
@pytest.mark.parametrize("scale", [None, 256.0])
def test_a_guarded_step_is_that_of_the_formulas_with_and_without_a_scaler(max_norm, scale):
    torch.manual_seed(1)
    model, x, y = nn.Linear(5, 3), 3 * torch.randn(7, 5), torch.randint(0, 3, (7,))
    norm, weight, bias = step_by_hand(model, x, y, 0.5, max_norm)
    loss = F.cross_entropy(model(x), y).item()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    result = load_exercise("guarded_step")(model, x, y, optimizer, max_norm, scaler=scaler)
    assert result == {"loss": pytest.approx(loss), "grad_norm": pytest.approx(norm, rel=1e-4), "skipped": False}
    torch.testing.assert_close(model.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.bias.double(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 256.0])
def test_a_bad_batch_leaves_model_and_optimizer_as_they_were(scale):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    guarded_step = load_exercise("guarded_step")
    x, y = torch.randn(7, 5), torch.randint(0, 3, (7,))
    guarded_step(model, x, y, optimizer, 1.0, scaler=scaler)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    bad = x.clone()
    bad[3, 2] = math.nan
    result = guarded_step(model, bad, y, optimizer, 1.0, scaler=scaler)
    assert result["skipped"] and math.isnan(result["grad_norm"])
    torch.testing.assert_close([model.state_dict(), optimizer.state_dict()], before, rtol=0, atol=0)
    assert scaler is None or scaler.get_scale() == scale / 2


N, BATCH, EPOCHS, SEED = 8, 3, 3, 4


def data():
    generator = torch.Generator().manual_seed(0)
    x, x_val = (torch.randn(n, 1, 4, 4, generator=generator) for n in (N, 5))
    return (x, torch.arange(N) % 3), (x_val, torch.arange(5) % 3)


def make():
    """Convolution, BatchNorm and dropout, AdamW, and a schedule that moves rate and momentum at every step."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * EPOCHS)


def fit(save, resume=None, patience=99):
    return load_exercise("survivable_fit")(make, *data(), BATCH, EPOCHS, patience, SEED, save, resume)


def test_survivable_fit_is_a_plain_training_loop_when_nothing_happens():
    (x, y), (x_val, y_val) = data()
    torch.manual_seed(SEED)
    model, optimizer, scheduler = make()
    history, best = [], None
    for epoch in range(EPOCHS):
        for picks in torch.randperm(N, generator=torch.Generator().manual_seed(SEED + epoch)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[picks]), y[picks]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            history.append(F.cross_entropy(model.eval()(x_val), y_val).item())
        model.train()
        if history[-1] == min(history):
            best = copy.deepcopy(model.state_dict())
    saves = []
    result = fit(saves.append)
    assert result["history"] == history and result["epochs"] == EPOCHS and len(saves) == 4 * EPOCHS
    torch.testing.assert_close(dict(result["best_model"]), dict(best), rtol=0, atol=0)


@pytest.mark.parametrize("patience", [1, 99])
def test_survivable_fit_ends_in_the_same_bits_after_a_kill_at_any_save(patience):
    """Every state, kept while the run goes on and then sent through a file; another run's numbers in between."""
    states = []
    straight = fit(states.append, patience=patience)
    for done, state in enumerate(states, start=1):
        file, left = io.BytesIO(), []
        torch.save(state, file)
        file.seek(0)
        torch.manual_seed(done)
        resumed = fit(left.append, torch.load(file, weights_only=True), patience)
        assert len(left) == len(states) - done
        assert resumed["history"] == straight["history"] and resumed["epochs"] == straight["epochs"]
        torch.testing.assert_close(resumed["best_model"], straight["best_model"], rtol=0, atol=0)


def test_the_export_is_checked_by_what_the_program_really_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    example, batches = torch.randn(1, 1, 4, 4), [torch.randn(n, 1, 4, 4) for n in (1, 2, 9)]
    model(torch.randn(6, 1, 4, 4))  # statistics that are not those of the start
    result = load_exercise("export_and_verify")(model, example, batches, 1e-5)
    assert all(module.training for module in model.modules())
    program, eager = result["program"].module(), model.eval()
    with torch.no_grad():
        diffs = [np.abs(program(x).numpy() - eager(x).numpy()).max().item() for x in batches]
    assert result["diffs"] == diffs and result["ok"] and max(diffs) <= 1e-5
