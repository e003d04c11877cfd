"""Every exercise's grader is tested by its own bank of wrong answers. Nothing here knows a particular exercise."""

import ast
import inspect
from functools import cache, lru_cache

import pytest
import torch

from course_utils.diagnose import diagnose, find_mismatches
from course_utils.exercise import exercise_weeks, load_exercise
from course_utils.judge import FAILED, NOT_ATTEMPTED, PASSED, grade, judge
from course_utils.marking import RememberingProcess
from course_utils.observe import TOLERANCES, SeenItems, SeenTensor, difference
from course_utils.run import run_cases
from course_utils.settings import class_seed, course_device
from course_utils.source import solution_source, stub_source
from course_utils.student import problem_with
from course_utils.weeks import load_week

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() and course_device() == "cuda" else ["cpu"]
SEEDS = (0, class_seed())  # of a student's first check, and of a class
MANY_SEEDS = (*range(7), class_seed())

EXERCISES = [load_exercise(name) for name in exercise_weeks()]
BANK = [(exercise, misconception) for exercise in EXERCISES for misconception in exercise.misconceptions]

each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
each_misconception = pytest.mark.parametrize(
    ("exercise", "misconception"), BANK, ids=[f"{e.name}-{m.name}" for e, m in BANK]
)
each_device = pytest.mark.parametrize("device", DEVICES)


class RememberingAllProcess(RememberingProcess):
    """Runs each implementation once for all that is asked: calls are in every run, and the quick way is kept too."""

    def __init__(self, seed, device):
        super().__init__(seed, device)
        self._live = cache(super()._live)

    def run_cases(self, exercise, implementation, *, detail=True, refuse=False, cases=None):
        return super().run_cases(exercise, implementation, detail=True, cases=cases)


@lru_cache(maxsize=len(DEVICES) * len(SEEDS))
def remembering(exercise, seed, device):
    """A process for the exercise; conftest.py lets an exercise's tests follow each other."""
    return RememberingAllProcess(seed, device)


def runs_of(exercise, implementation, seed=0):
    """What is seen of the implementation on the CPU."""
    with remembering(exercise, seed, "cpu") as process:
        return process.run_cases(exercise, implementation)


def same(exercise, mine, theirs):
    """Whether two runs of all cases saw the same."""
    return all(
        difference(a.raised, b.raised) is None
        and difference(a.observation, b.observation, case.tolerance) is None
        and difference(a.arguments, b.arguments, case.tolerance) is None
        for case, a, b in zip(exercise.cases, mine, theirs, strict=True)
    )


@each_exercise
@each_device
def test_the_reference_passes_for_many_seeds(exercise, device):
    for seed in MANY_SEEDS:
        verdict = grade(exercise, exercise.reference, seed, device)
        assert verdict.outcome == PASSED, f"seed {seed}: {verdict.message}"


@each_exercise
def test_the_reference_raises_only_where_its_contract_says(exercise):
    for run in run_cases(exercise, exercise.reference, 0):
        assert run.raised is None, f"{run.case} ends in {run.raised}; observe expected errors with attempt(...)"


@each_exercise
def test_the_untouched_stub_is_not_attempted(exercise):
    namespace = dict(inspect.getmodule(exercise.reference).__dict__)
    exec(stub_source(exercise), namespace)
    verdict = grade(exercise, namespace[exercise.name], 0)
    assert verdict.outcome == NOT_ATTEMPTED, verdict.message
    assert problem_with(exercise, namespace[exercise.name]) == ""


@each_exercise
def test_the_solution_text_passes_on_its_own(exercise):
    namespace = dict(inspect.getmodule(exercise.reference).__dict__)
    exec(solution_source(exercise), namespace)
    assert grade(exercise, namespace[exercise.name], 1).outcome == PASSED


@each_misconception
@each_device
def test_a_misconception_is_rejected_and_named(exercise, misconception, device):
    for seed in SEEDS:
        with remembering(exercise, seed, device) as process:
            if seed == 0:
                assert not process.agrees(exercise, misconception.implementation), "the quick way lets it pass"
            runs = process.run_cases(exercise, misconception.implementation, detail=True)
            verdict = judge(exercise, runs, process.run_cases(exercise, exercise.reference), process)
        assert verdict.outcome == FAILED, f"seed {seed}: {verdict.message}"
        assert verdict.misconception == misconception.name, f"seed {seed}: {verdict.message}"
        assert misconception.explanation in verdict.message


@each_exercise
def test_a_check_rejects_and_names_as_the_remembered_runs_do(exercise):
    """The test above runs each implementation once; this one takes a student's whole way, for one misconception."""
    misconception = exercise.misconceptions[len(exercise.misconceptions) // 2]
    assert grade(exercise, misconception.implementation, 0).misconception == misconception.name


@each_exercise
def test_no_two_misconceptions_look_the_same(exercise):
    seen = {m.name: runs_of(exercise, m.implementation) for m in exercise.misconceptions}
    names = list(seen)
    twins = [(a, b) for i, a in enumerate(names) for b in names[:i] if same(exercise, seen[a], seen[b])]
    assert not twins, "these look the same in every case: merge them, or add a case that tells them apart"


@each_exercise
def test_every_case_rejects_some_wrong_answer(exercise):
    wrong = [m.implementation for m in exercise.misconceptions]
    wrong += [exercise.broken_version] if exercise.broken_version else []
    useless = {case.name for case in exercise.cases}
    reference = runs_of(exercise, exercise.reference)
    for implementation in wrong:
        for case, mine, right in zip(exercise.cases, runs_of(exercise, implementation), reference, strict=True):
            differs = (
                difference(mine.raised, right.raised)
                or difference(mine.observation, right.observation, case.tolerance)
                or difference(mine.arguments, right.arguments, case.tolerance)
            )
            if differs:
                useless.discard(case.name)
    assert not useless, "no misconception fails these cases: add one that does, or drop the case"


@each_exercise
def test_a_bug_hunt_starts_from_a_version_that_fails(exercise):
    if exercise.broken_version is None:
        pytest.skip("not a bug hunt")
    for seed in SEEDS:
        with remembering(exercise, seed, "cpu") as process:
            runs = process.run_cases(exercise, exercise.broken_version)
            reference = process.run_cases(exercise, exercise.reference)
            assert judge(exercise, runs, reference, process).outcome != PASSED


@each_exercise
def test_an_answer_made_of_remembered_results_fails(exercise):
    if exercise.is_class:
        pytest.skip("the calls of a class are not replayed")
    remembered = [call.result for run in run_cases(exercise, exercise.reference, 0, detail=True) for call in run.calls]

    def replay(*args, **kwargs):
        return next(iterator)

    iterator = iter([thawed(result) for result in remembered])
    replay.__name__ = exercise.name
    runs = run_cases(exercise, replay, 1)
    reference = run_cases(exercise, exercise.reference, 1)
    assert not same(exercise, runs, reference)


def thawed(seen):
    """A value that would be observed as this observation, as far as a cheat needs it."""
    if isinstance(seen, SeenTensor):
        return seen.values.clone().requires_grad_(seen.requires_grad)
    if isinstance(seen, SeenItems) and seen.keys is None and seen.kind in ("list", "tuple"):
        items = [thawed(item) for item in seen.items]
        return items if seen.kind == "list" else tuple(items)
    return seen


@each_exercise
def test_a_tolerance_stays_far_below_what_it_measures(exercise):
    for case, run in zip(exercise.cases, run_cases(exercise, exercise.reference, 0), strict=True):
        floats = list(float_tensors(run.observation))
        if floats:
            largest = max(map(biggest, floats))
            absolute = case.tolerance[1] if case.tolerance else max(TOLERANCES[t.values.dtype][1] for t in floats)
            assert largest == 0 or largest > 20 * absolute, f"{case.name}: {largest} against {absolute}"


def biggest(seen):
    """The largest finite magnitude in a seen tensor, 0 when there is none."""
    finite = seen.values[seen.values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def float_tensors(seen):
    """All floating-point tensors in an observation."""
    if isinstance(seen, SeenTensor):
        if seen.values.dtype in TOLERANCES and not seen.values.is_meta:
            yield seen
    elif isinstance(seen, SeenItems):
        for item in seen.items:
            yield from float_tensors(item)


@each_exercise
def test_texts_exist_and_give_no_code_away(exercise):
    assert inspect.getdoc(exercise.reference), "the docstring is the task"
    assert len(exercise.hint_texts) >= 2, "at least two hints are needed"
    assert len(exercise.misconceptions) >= 5, "at least five misconceptions are needed"
    code = {line.strip() for line in solution_source(exercise).split("\n")}
    body = ast.parse(solution_source(exercise)).body[0]
    docstring = {line.strip() for line in (ast.get_docstring(body, clean=False) or "").split("\n")}
    telling = [
        line for line in code - docstring if len(line) > 12 and not line.startswith(("def ", "class ", "@", '"""'))
    ]
    for text in (*exercise.hint_texts, *(m.explanation for m in exercise.misconceptions)):
        assert text.strip() and "!" not in text.replace("!=", "")
        assert not [line for line in telling if line in text]


@each_exercise
def test_the_objectives_belong_to_the_week(exercise):
    assert exercise.objectives
    assert set(exercise.objectives) <= set(load_week(exercise.week).objectives)


@each_exercise
def test_two_mistakes_at_once_are_not_taken_for_a_right_answer(exercise):
    """Diagnosis never invents a match: on the reference's own observations it finds nothing."""
    with remembering(exercise, 0, "cpu") as process:
        reference = process.run_cases(exercise, exercise.reference)
        mismatches = find_mismatches(exercise, reference, reference)
        assert diagnose(exercise, reference, mismatches, process) is None
