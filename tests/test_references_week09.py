"""The answers of week 09 against new processes, killed writers, torch's own tools and brute force."""

import copy
import itertools
import json
import math
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from course_utils.exercise import load_exercise

SEEDS = range(6)


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


def in_new_process(script, *arguments, expect=0):
    """Run the text as a program of its own; what it prints."""
    header = "from course_utils.exercise import load_exercise\nreference = lambda name: load_exercise(name).reference\n"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", header + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def put_back():
    """Leave the global generators and flags as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
def test_seed_everything_starts_the_sequences_of_new_generators_with_that_seed(seed):
    """The global generators go on as private ones do that were made with the seed."""
    report = reference("seed_everything")(seed)
    python, numpy = random.Random(seed), np.random.RandomState(report["numpy"])
    generator = torch.Generator().manual_seed(seed)
    assert [random.random() for _ in range(5)] == [python.random() for _ in range(5)]
    assert np.array_equal(np.random.random(5), numpy.random_sample(5))
    assert torch.equal(torch.randn(20), torch.randn(20, generator=generator))
    assert report["numpy"] == seed % 2**32 and report["python"] == report["torch"] == seed


def test_rng_state_goes_on_in_another_process(tmp_path):
    """Captured here after odd numbers of draws, restored there from a file: the same next numbers."""
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    random.gauss(0, 1), np.random.standard_normal(3), torch.randn(3), torch.rand(1)
    torch.save(reference("RngState").capture(), tmp_path / "state.pt")
    here = [random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist(), torch.randn(17).tolist()
    printed = in_new_process(
        """
        import json, random, sys
        import numpy as np, torch
        reference("RngState").restore(torch.load(sys.argv[1]))
        print(json.dumps([[random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist(),
                          torch.randn(17).tolist()]))
        """,
        tmp_path / "state.pt",
    )
    assert json.loads(printed) == list(here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers")
def test_save_checkpoint_survives_killed_writers(tmp_path):
    """Writers are killed at three chosen points and at random times; the file always loads, old or new.

    The same killings catch a plain torch.save half-way, so they do happen in the middle.
    """
    printed = in_new_process(
        """
        import json, os, random, signal, sys, time
        from pathlib import Path
        import torch

        torch.set_num_threads(1)
        save, folder = reference("save_checkpoint"), Path(sys.argv[1])

        class Deadly:
            def __reduce__(self):
                die()

        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        def big(step, **more):
            return {"step": step, "weights": torch.full((2_000_000,), float(step)), **more}

        def direct(state, path):
            torch.save(state, path)

        def killed(writer, path, after=None, prepare=None, **more):
            child = os.fork()
            if child == 0:
                try:
                    if prepare:
                        prepare()
                    for step in range(1, 10**6):
                        writer(big(step, **more), path)
                finally:
                    os._exit(1)
            if after is not None:
                time.sleep(after)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)

        def state_of(path):
            try:
                state = torch.load(path)
            except Exception as error:
                return type(error).__name__
            return "whole" if bool((state["weights"] == state["step"]).all()) else "mixed"

        def at_fsync():
            os.fsync = die

        def at_replace():
            os.replace = die

        seen = {"atomic": [], "direct": []}
        for name, writer in (("atomic", save), ("direct", direct)):
            path = folder / f"{name}.pt"
            writer(big(0), path)
            for prepare in (at_fsync, at_replace):
                if writer is save:
                    killed(writer, path, prepare=prepare)
                    seen[name].append(state_of(path))
            killed(writer, path, last=Deadly())
            seen[name].append(state_of(path))
            writer(big(0), path)
            chance = random.Random(0)
            for _ in range(5):
                killed(writer, path, after=chance.uniform(0.02, 0.1))
                seen[name].append(state_of(path))
        print(json.dumps(seen))
        """,
        tmp_path,
    )
    seen = json.loads(printed)
    assert seen["atomic"] == ["whole"] * 8
    assert seen["direct"][0] not in ("whole", "mixed")


def trained(seed, width=5):
    """A model with buffers and an Adam that has made steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 * (seed + 1))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def everything(model, optimizer):
    """Model and optimizer as bytes, for comparing to the last bit."""
    state = optimizer.state_dict()
    return pickle.dumps(
        [
            {name: value.tolist() for name, value in model.state_dict().items()},
            state["param_groups"],
            {i: {k: torch.as_tensor(v).tolist() for k, v in s.items()} for i, s in state["state"].items()},
        ]
    )


DAMAGES = {
    "nothing": lambda c: None,
    "no model": lambda c: c.pop("model"),
    "no optimizer": lambda c: c.pop("optimizer"),
    "a name less": lambda c: c["model"].pop("1.running_var"),
    "a name more": lambda c: c["model"].update(extra=torch.ones(1)),
    "a name changed": lambda c: c["model"].update(head=c["model"].pop("2.bias")),
    "a shape of one": lambda c: c["model"].update({"2.bias": torch.ones(1)}),
    "a shape": lambda c: c["model"].update({"2.weight": torch.ones(5, 2)}),
    "fewer parameters": lambda c: c["optimizer"]["param_groups"][0]["params"].pop(),
    "another group": lambda c: c["optimizer"]["param_groups"].append({"params": [9], "lr": 1.0}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(2))
def test_load_checkpoint_loads_all_or_nothing(tmp_path, seed, damage):
    """Whatever is wrong with the file, model and optimizer are those of the file or those of before."""
    source, target = trained(seed), trained(seed + 10)
    checkpoint = {"model": source[0].state_dict(), "optimizer": source[1].state_dict(), "epoch": 7}
    checkpoint = copy.deepcopy(checkpoint)
    DAMAGES[damage](checkpoint)
    torch.save(checkpoint, tmp_path / "file.pt")
    before = everything(*target)
    load = reference("load_checkpoint")
    if damage == "nothing":
        assert load(tmp_path / "file.pt", *target) == {"epoch": 7}
        assert everything(*target) == everything(*source)
    else:
        with pytest.raises(ValueError):
            load(tmp_path / "file.pt", *target)
        assert everything(*target) == before


def test_load_checkpoint_runs_no_code(tmp_path):
    """Not even a call that safe loading would find harmless to look at."""

    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    model, _ = trained(0)
    torch.save({"model": model.state_dict(), "more": Code()}, tmp_path / "file.pt")
    with pytest.raises(pickle.UnpicklingError):
        reference("load_checkpoint")(tmp_path / "file.pt", model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("seed", SEEDS)
def test_load_partial_agrees_with_load_state_dict_where_that_works(seed):
    """Entries dropped, renamed and reshaped at random: torch, told which names to load, does the same."""
    chance = random.Random(seed)
    model, source = trained(seed)[0], trained(seed + 10)[0]
    oracle = copy.deepcopy(model)
    offered, fitting, mismatched, unexpected = {}, {}, [], []
    for name, value in source.state_dict().items():
        fate = chance.choice(["keep", "keep", "drop", "rename", "reshape"])
        prefix = chance.choice(["", "module."])
        if fate == "keep":
            offered[prefix + name] = fitting[name] = value
        elif fate == "rename":
            offered[f"{prefix}x.{name}"] = value
            unexpected.append(f"{prefix}x.{name}")
        elif fate == "reshape":
            offered[prefix + name] = torch.ones(7, 7)
            mismatched.append(name)
    oracle.load_state_dict(fitting, strict=False)  # its missing_keys pass over num_batches_tracked
    lost = set(oracle.state_dict()) - set(fitting) - set(mismatched)
    report = reference("load_partial")(model, offered, "module.")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), oracle.state_dict().values(), strict=True)
    )
    assert report == {
        "loaded": sorted(fitting),
        "mismatched": sorted(mismatched),
        "unexpected": sorted(unexpected),
        "missing": sorted(lost),
    }


RUN = """
import sys
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
what, folder, n = sys.argv[1], sys.argv[2], 11


def parts(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)


reference("seed_everything")(0)
x, y = torch.randn(23, 4), torch.randn(23, 1)


def trainer(seed):
    model, optimizer, scheduler = parts(seed)
    made = reference("ResumableTrainer")(model, optimizer, scheduler, x, y, 5, F.mse_loss, 3)
    return made, model, optimizer


def with_scaler(begin, end, resume):
    \"\"\"A loop of its own, with a gradient scaler and batches picked by the global generator.\"\"\"
    model, optimizer, scheduler = parts(1 if begin == 0 else 99)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4)
    if resume:
        rest = reference("load_checkpoint")(f"{folder}/scaled.pt", model, optimizer)
        scheduler.load_state_dict(rest["scheduler"])
        scaler.load_state_dict(rest["scaler"])
        assert rest["step"] == begin
        reference("RngState").restore(rest["rng"])
    model.train()
    for step in range(begin, end):
        picks = torch.randperm(23)[:5]
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[picks]), y[picks])
        if step == 6:
            loss = loss * float("inf")  # the scaler skips this step and halves its scale
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict(), "step": end, "rng": reference("RngState").capture()}


if what == "before":
    made, model, optimizer = trainer(1)
    losses = made.run(2 * n)
    torch.save([losses, model.state_dict(), optimizer.state_dict()], f"{folder}/straight.pt")
    torch.save(with_scaler(0, 2 * n, False), f"{folder}/straight_scaled.pt")
    made, model, optimizer = trainer(1)
    losses = made.run(n)
    reference("save_checkpoint")({"trainer": made.state_dict(), "losses": losses}, f"{folder}/trainer.pt")
    reference("save_checkpoint")(with_scaler(0, n, False), f"{folder}/scaled.pt")
else:
    made, model, optimizer = trainer(42)
    state = torch.load(f"{folder}/trainer.pt")
    made.load_state_dict(state["trainer"])
    losses = state["losses"] + made.run(n)
    torch.save([losses, model.state_dict(), optimizer.state_dict()], f"{folder}/resumed.pt")
    torch.save(with_scaler(n, 2 * n, True), f"{folder}/resumed_scaled.pt")
"""


def test_a_run_resumed_in_a_new_process_is_equal_to_the_last_bit(tmp_path):
    """2N steps straight against N, a file, a new process and N: every loss, weight, moment and state.

    Once with ResumableTrainer, once with a loop of its own that has a gradient scaler and uses
    save_checkpoint, load_checkpoint and RngState.
    """
    for what in ("before", "after"):
        in_new_process(RUN, what, tmp_path)
    for name in ("", "_scaled"):
        straight, resumed = (torch.load(tmp_path / f"{kind}{name}.pt") for kind in ("straight", "resumed"))
        assert_equal(resumed, straight)
    assert torch.load(tmp_path / "straight_scaled.pt")["scaler"]["scale"] != 2.0**20


def assert_equal(mine, right, path="state"):
    """The two nested states are equal, tensors to the last bit."""
    assert type(mine) is type(right), path
    if isinstance(right, torch.Tensor):
        assert mine.dtype == right.dtype and torch.equal(mine, right), path
    elif isinstance(right, dict):
        assert mine.keys() == right.keys(), path
        for key, value in right.items():
            assert_equal(mine[key], value, f"{path}[{key!r}]")
    elif isinstance(right, list | tuple):
        assert len(mine) == len(right), path
        for place, (a, b) in enumerate(zip(mine, right, strict=True)):
            assert_equal(a, b, f"{path}[{place}]")
    else:
        assert mine == right, path


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", SEEDS)
def test_best_checkpoints_keeps_what_sorting_everything_so_far_would_keep(tmp_path, seed, mode):
    """After each call, against a list of all calls; ties, infinities and NaN among them."""
    chance, k = random.Random(seed), 1 + seed % 4
    best, calls = reference("BestCheckpoints")(tmp_path, k, mode), []
    for step in range(12):
        metric = chance.choice([0.1, 0.2, 0.3, math.inf, -math.inf, math.nan])
        kept = best.add(metric, step, {"step": step, "metric": metric})
        calls += [] if math.isnan(metric) else [(metric if mode == "min" else -metric, step)]
        wanted = [f"step{old}.pt" for _, old in sorted(calls)[:k]]
        assert [Path(path).name for path in best.paths()] == wanted
        assert sorted(os.listdir(tmp_path)) == sorted(wanted)
        assert kept == (f"step{step}.pt" in wanted)
    for path in best.paths():
        assert Path(path).stem == f"step{torch.load(path)['step']}"


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_weight_ema_is_torchs_averaged_model_whose_first_update_copies(seed, decay):
    """AveragedModel copies at its first update, which is where WeightEMA starts."""
    model, optimizer = trained(seed)
    model[0].bias.requires_grad_(False)
    ema = reference("WeightEMA")(model, decay)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    torchs.update_parameters(model)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ema.update(model)
        torchs.update_parameters(model)
        for name, value in torchs.module.state_dict().items():
            torch.testing.assert_close(ema.shadow[name], value)
    ema.copy_to(model)
    for mine, right in itertools.zip_longest(model.state_dict().values(), torchs.module.state_dict().values()):
        torch.testing.assert_close(mine, right)
    assert ema.updates == 6
