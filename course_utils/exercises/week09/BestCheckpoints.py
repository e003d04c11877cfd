"""Rotation: the k best checkpoints on disk, and nothing else of one's own."""

import math
import os
from pathlib import Path

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week09._files import workplace


@exercise(objectives=("ckpt.rotation",))
class BestCheckpoints:
    """Keep the k best checkpoints on disk.

    folder exists and may hold other files, which are never touched. mode says what is better: "min"
    for losses, "max" for accuracies. k < 1 or another mode raises ValueError.
    """

    def __init__(self, folder: str | os.PathLike, k: int, mode: str = "min"):
        if k < 1 or mode not in ("min", "max"):
            raise ValueError(f"k has to be 1 or more and mode min or max, got {k} and {mode!r}")
        self.folder = Path(folder)
        self.k = k
        self.sign = 1 if mode == "min" else -1
        self.kept = []  # pairs (signed metric, step), the best first

    def add(self, metric: float, step: int, state: dict) -> bool:
        """Keep state if metric is among the k best so far; return whether it was kept.

        Then state is written with torch.save, before the call returns, to the file f"step{step}.pt"
        in the folder, the file that drops out is deleted, and the answer is True. Otherwise nothing
        is written and the answer is False. On ties the earlier call wins. NaN is never kept;
        infinities are ordinary values. step increases from call to call.
        """
        entry = (self.sign * metric, step)
        full = len(self.kept) == self.k
        if math.isnan(metric) or (full and entry > self.kept[-1]):
            return False
        torch.save(state, self.folder / f"step{step}.pt")
        if full:
            _, dropped = self.kept.pop()
            (self.folder / f"step{dropped}.pt").unlink()
        self.kept = sorted([*self.kept, entry])
        return True

    def paths(self) -> list[str]:
        """The paths of the kept files, the best first; of equal ones the earlier first."""
        return [str(self.folder / f"step{step}.pt") for _, step in self.kept]


def some_steps(draw, count):
    """Steps that increase, with gaps."""
    steps = [draw.whole(1, 9)]
    while len(steps) < count:
        steps.append(steps[-1] + draw.whole(1, 5))
    return steps


def keep(
    implementation, draw, metrics, k, mode=None, *, steps=None, folder="best", others=(), read=False
):
    """Add a checkpoint for each metric; what came back, the paths and the folder after each.

    read: look into the files at the end, too.
    """
    steps = steps or some_steps(draw, len(metrics))
    told_metrics = {f"step{step}.pt": metric for step, metric in zip(steps, metrics, strict=True)}
    with workplace(draw):
        Path(folder).mkdir(exist_ok=True)
        for name in others:
            Path(folder, name).write_bytes(b"not yours")
        best = implementation(folder, k, **({"mode": mode} if mode else {}))
        state, seen = {"weight": draw.normal(3), "metric": None}, {}
        for place, (metric, step) in enumerate(zip(metrics, steps, strict=True), start=1):
            state["weight"] += 1  # the model goes on training in place
            state["metric"] = metric
            result = attempt(best.add, metric, step, state)
            told = in_words(attempt(best.paths), told_metrics)
            seen[f"{place}. metric {metric:.4g} at step {step}: "] = {
                "1. add": result, "2. paths": told, "3. folder": sorted(os.listdir(folder))
            }  # fmt: skip
        left = sorted(os.listdir(folder))
        contents = {name: attempt(torch.load, Path(folder, name))
                    for name in left if read and name not in others}  # fmt: skip
        kept = {name: Path(folder, name).read_bytes() for name in left if name in others}
        return seen | {"at the end": {"contents": contents, "other files": kept}}


def in_words(paths, metrics):
    """Paths from the current folder on, their metrics, and the type of those that are no str."""
    if not isinstance(paths, list):
        return paths
    return [in_word(path, metrics) for path in paths]


def in_word(path, metrics):
    if not isinstance(path, str | os.PathLike):
        return path
    where = Path(os.path.relpath(path))
    metric = f" (metric {metrics[where.name]:.4g})" if where.name in metrics else ""
    kind = "" if type(path) is str else f" as a {type(path).__name__}"
    return where.as_posix() + kind + metric


def distinct(draw, count):
    """Metrics that differ clearly, in random order."""
    return [round(0.1 + 0.07 * place, 3) for place in draw.permutation(count).tolist()]


@BestCheckpoints.case
def six_losses_two_are_kept(implementation, draw):
    return keep(implementation, draw, [0.9, *distinct(draw, 4), 0.95], 2, read=True)


@BestCheckpoints.case
def accuracies(implementation, draw):
    return keep(implementation, draw, [0.0, *distinct(draw, 4), 0.01], 2, "max")


@BestCheckpoints.case
def equal_metrics(implementation, draw):
    low = draw.number(0.1, 0.4)
    return keep(implementation, draw, [0.5, low, 0.5, low, low], 2, steps=range(8, 13))


@BestCheckpoints.case
def equal_accuracies(implementation, draw):
    high = draw.number(0.6, 0.9)
    return keep(implementation, draw, [0.5, high, 0.5, high, 0.5], 3, "max", steps=range(8, 13))


@BestCheckpoints.case
def nan_and_infinities(implementation, draw):
    inf, nan = math.inf, math.nan
    return keep(implementation, draw, [nan, inf, draw.number(0, 1), inf, -inf, nan], 2)


@BestCheckpoints.case
def nan_and_infinities_for_accuracies(implementation, draw):
    inf, nan = math.inf, math.nan
    return keep(implementation, draw, [-inf, nan, draw.number(0, 1), nan, inf], 2, "max")


@BestCheckpoints.case
def room_for_more_than_come(implementation, draw):
    return keep(implementation, draw, [*distinct(draw, 2), math.nan], draw.whole(5, 9))


@BestCheckpoints.case
def only_the_best_one(implementation, draw):
    return keep(implementation, draw, [*sorted(distinct(draw, 2), reverse=True), 0.9], 1)


@BestCheckpoints.case
def other_files_in_the_folder(implementation, draw):
    metrics, steps = [0.9, *distinct(draw, 3), 0.95], some_steps(draw, 5)
    refused = f"step{steps[-1]}.pt"
    others = "last.pt", "step.txt", "step0.pt", refused
    return keep(implementation, draw, metrics, 2, steps=steps, folder=".", others=others)


@BestCheckpoints.case
def settings_that_make_no_sense(implementation, draw):
    tries = [(0,), (-draw.whole(1, 9),), (2, "maximum"), (2, "MIN"), (0, "max"), (2, "max")]
    with workplace(draw):
        return [error_of(implementation, setting) for setting in tries]


def error_of(implementation, setting):
    """The exception of making an object, None if there is none."""
    result = attempt(implementation, ".", *setting)
    return result if isinstance(result, Exception) else None


class Parts:
    """The answer in parts that can be exchanged."""

    def __init__(self, folder, k, mode="min"):
        self.check(k, mode)
        self.folder, self.k, self.mode = Path(folder), k, mode
        self.kept = []  # triples (rank, order, step), the best first

    def check(self, k, mode):
        if k < 1 or mode not in ("min", "max"):
            raise ValueError(k, mode)

    def rank(self, metric):
        return metric if self.mode == "min" else -metric

    def refuse(self, metric):
        return math.isnan(metric)

    def order(self, step):
        return step

    def add(self, metric, step, state):
        if self.refuse(metric):
            return False
        entry = self.rank(metric), self.order(step), step
        ranking = sorted([*self.kept, entry])
        if entry in ranking[self.k :]:
            return False
        self.write(step, state)
        self.kept = ranking[: self.k]
        for _, _, old in ranking[self.k :]:
            self.remove(old)
        return True

    def write(self, step, state):
        torch.save(state, self.file(step))

    def remove(self, step):
        self.file(step).unlink()

    def file(self, step):
        return self.folder / f"step{step}.pt"

    def paths(self):
        return [str(self.file(step)) for _, _, step in self.kept]


@BestCheckpoints.misconception(
    "You keep the last k. Rotation by age drops the best model as soon as training gets worse."
)
class keeps_the_last_k(Parts):
    def rank(self, metric):
        return 0.0

    def order(self, step):
        return -step


@BestCheckpoints.misconception(
    "What drops out of the list stays on the disk, which fills up. Delete its file."
)
class evicted_files_stay(Parts):
    def remove(self, step):
        pass


@BestCheckpoints.misconception(
    "Every checkpoint is written and stays, also those that are not among the best. Then nothing "
    "may be written."
)
class everything_is_written(Parts):
    def add(self, metric, step, state):
        kept = super().add(metric, step, state)
        if not kept and not self.refuse(metric):
            self.write(step, state)
        return kept

    def remove(self, step):
        pass


@BestCheckpoints.misconception(
    "You write each file first, and delete it again if it is not among the best. A file of that "
    "name which is not yours is lost. Decide before anything is written."
)
class writes_before_it_decides(Parts):
    def add(self, metric, step, state):
        if not self.refuse(metric):
            self.write(step, state)
        kept = super().add(metric, step, state)
        if not kept and not self.refuse(metric):
            self.remove(step)
        return kept


@BestCheckpoints.misconception("mode is not looked at: of accuracies you keep the worst.")
class mode_ignored(Parts):
    def rank(self, metric):
        return metric


@BestCheckpoints.misconception(
    "NaN was kept. Every comparison with NaN is False, so it slips through a test that is turned "
    "around, or in while there is room. Ask for it by name."
)
class nan_kept(Parts):
    def refuse(self, metric):
        return False

    def rank(self, metric):
        return -math.inf if math.isnan(metric) else super().rank(metric)


@BestCheckpoints.misconception(
    "NaN was kept while there was room, as the worst of all. A model whose loss is NaN is broken; "
    "no place is too bad for it."
)
class nan_kept_while_there_is_room(Parts):
    def refuse(self, metric):
        return math.isnan(metric) and len(self.kept) == self.k

    def rank(self, metric):
        return math.inf if math.isnan(metric) else super().rank(metric)


@BestCheckpoints.misconception(
    "NaN was put in its place by comparing it. Every comparison with it is False, so it takes a "
    "free place, and what comes later is compared with it in vain. Ask for it by name."
)
class nan_compared_like_a_number(Parts):
    def add(self, metric, step, state):
        rank, place = self.rank(metric), len(self.kept)
        while place and rank < self.kept[place - 1][0]:
            place -= 1
        if place >= self.k:
            return False
        self.write(step, state)
        self.kept.insert(place, (rank, step, step))
        for _, _, old in self.kept[self.k :]:
            self.remove(old)
        self.kept = self.kept[: self.k]
        return True


@BestCheckpoints.misconception(
    "A metric that is kept already is refused a second time. Equal metrics are two checkpoints: "
    "the earlier one comes first, and the later one is kept too while it is among the best."
)
class equal_metrics_kept_once(Parts):
    def refuse(self, metric):
        return math.isnan(metric) or self.rank(metric) in [rank for rank, _, _ in self.kept]


@BestCheckpoints.misconception(
    "Infinities were turned away together with NaN. They are ordinary values: an infinite loss is "
    "the worst there is, and still better than an empty place."
)
class infinities_refused(Parts):
    def refuse(self, metric):
        return not math.isfinite(metric)


@BestCheckpoints.misconception(
    "Of equal metrics the later one wins. The earlier call keeps its place: strict or not is the "
    "question at every comparison."
)
class later_one_wins_ties(Parts):
    def order(self, step):
        return -step


@BestCheckpoints.misconception(
    "With mode max the later of equal metrics wins. Where everything is sorted the other way "
    "round, the steps are turned around as well."
)
class reversed_as_a_whole(Parts):
    def order(self, step):
        return -step if self.mode == "max" else step


@BestCheckpoints.misconception(
    "Equal metrics are put in the order of their names, and there step10 comes before step9. "
    "Compare steps as numbers."
)
class steps_compared_as_text(Parts):
    def order(self, step):
        return str(step)


@BestCheckpoints.misconception(
    "You keep a checkpoint only when it beats the best so far. The second best is worth a file "
    "too: compare with the worst that is kept, and not at all while there is room."
)
class only_new_records(Parts):
    def add(self, metric, step, state):
        if self.kept and not self.rank(metric) < self.kept[0][0]:
            return False
        return super().add(metric, step, state)


@BestCheckpoints.misconception(
    "The new one always enters, and the worst of the old ones leaves for it. It may be worse than "
    "all of them: then nothing changes."
)
class new_one_always_enters(Parts):
    def add(self, metric, step, state):
        if len(self.kept) == self.k and not self.refuse(metric):
            self.remove(self.kept.pop()[2])
        return super().add(metric, step, state)


@BestCheckpoints.misconception("One too many is kept: k files, not k + 1.")
class one_too_many(Parts):
    def __init__(self, folder, k, mode="min"):
        super().__init__(folder, k, mode)
        self.k = k + 1


@BestCheckpoints.misconception(
    "The files are right and paths() lists them in the order in which they came. The best comes "
    "first."
)
class paths_in_order_of_time(Parts):
    def paths(self):
        return [str(self.file(step)) for step in sorted(step for _, _, step in self.kept)]


@BestCheckpoints.misconception(
    "paths() lists the worst first. Whoever loads its first entry expects the best."
)
class paths_worst_first(Parts):
    def paths(self):
        return super().paths()[::-1]


@BestCheckpoints.misconception(
    "paths() gives names without the folder. Nobody can open them from elsewhere."
)
class names_without_the_folder(Parts):
    def paths(self):
        return [Path(path).name for path in super().paths()]


@BestCheckpoints.misconception(
    "You deleted files that are not yours: everything in the folder that is not among the best. "
    "Delete only what you wrote."
)
class deletes_other_files(Parts):
    def add(self, metric, step, state):
        kept = super().add(metric, step, state)
        for file in self.folder.glob("*.pt"):
            if str(file) not in self.paths():
                file.unlink()
        return kept


@BestCheckpoints.misconception(
    "When one of your files drops out, every file named like a step is deleted, whoever wrote it. "
    "Delete the one that dropped out."
)
class deletes_other_steps_when_one_drops_out(Parts):
    def remove(self, step):
        for file in self.folder.glob("step*.pt"):
            if str(file) not in self.paths():
                file.unlink()


@BestCheckpoints.misconception(
    "You look for your files in the folder, and take others of such a name for your own. Keep a "
    "list of what you wrote."
)
class empties_the_folder_at_the_start(Parts):
    def __init__(self, folder, k, mode="min"):
        super().__init__(folder, k, mode)
        for file in self.folder.glob("step*.pt"):
            file.unlink()


@BestCheckpoints.misconception(
    "You keep states in memory and write them at a later call. A state changes as training goes "
    "on, and a crash loses it: write before add returns."
)
class writes_at_the_next_call(Parts):
    def __init__(self, folder, k, mode="min"):
        super().__init__(folder, k, mode)
        self.waiting = {}

    def add(self, metric, step, state):
        for old, waiting in self.waiting.items():
            torch.save(waiting, self.file(old))
        self.waiting.clear()
        return super().add(metric, step, state)

    def write(self, step, state):
        self.waiting[step] = state

    def remove(self, step):
        if step not in self.waiting:
            super().remove(step)
        self.waiting.pop(step, None)


@BestCheckpoints.misconception(
    "The settings are not checked. With k = 0 nothing would be kept, and a mistyped mode would "
    "keep the wrong ones without a word: raise ValueError."
)
class settings_not_checked(Parts):
    def check(self, k, mode):
        pass


@BestCheckpoints.misconception(
    "k is checked, mode is not. A mistyped one would keep the wrong checkpoints without a word."
)
class mode_not_checked(Parts):
    def check(self, k, mode):
        if k < 1:
            raise ValueError(k)


@BestCheckpoints.misconception(
    "add does not say whether the checkpoint was kept. Return True or False."
)
class add_returns_nothing(Parts):
    def add(self, metric, step, state):
        super().add(metric, step, state)


BestCheckpoints.hints(
    "Keep a sorted list of what is on the disk: one pair of metric and step for each file.",
    "A sign turns max into min, so that there is one order to think about.",
    "Strict or not on ties? And which of your comparisons does NaN get through?",
)
