"""The process that runs one submission. It reports what was seen, as JSON lines, and never judges.

Started by `course_utils.classroom` as `python -m course_utils.worker`, with its task as JSON on standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from course_utils.exercise import load_exercise
from course_utils.observe import decode, encode
from course_utils.run import Call, CaseRun, Undisturbed
from course_utils.source import is_untouched
from course_utils.student import problem_with
from course_utils.submission import Cell, run_definitions


def main() -> None:
    """Run the exercises of the task, writing a line before and after each to the task's pipe."""
    task = json.load(sys.stdin)
    _limit(task["seconds"], task["device"])
    with os.fdopen(task["pipe"], "w", encoding="utf-8") as pipe:
        cells = [Cell(number, source) for number, source in task["cells"]]
        namespace, failures = run_definitions(cells, task["file"])
        for name in task["exercises"]:
            _write(pipe, {"begins": name})
            _write(pipe, {"exercise": name, **_report(name, namespace, failures, task)})
        pipe.flush()
    os._exit(0)  # threads and exit handlers of the submission have no say


def _report(name: str, namespace: dict[str, Any], failures: dict[str, str], task: dict[str, Any]) -> dict[str, Any]:
    if name not in namespace:
        return {"problem": failures.get(name, "")}
    exercise, answer = load_exercise(name), namespace[name]
    if problem := problem_with(exercise, answer):
        return {"problem": problem}
    if is_untouched(exercise, answer):
        return {"untouched": True}
    with Undisturbed(task["seed"], task["device"], task["seconds"]) as process:
        runs = process.run_cases(exercise, answer, detail=True, refuse=True)
    return {"runs": [encode_run(run) for run in runs]}


def _write(pipe: TextIO, line: dict[str, Any]) -> None:
    pipe.write(json.dumps(line) + "\n")
    pipe.flush()


def _limit(seconds: float, device: str) -> None:
    """Bound what the process may use, where the platform can: processor time, file size, and memory on the CPU."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(20 * seconds) + 60, int(20 * seconds) + 61))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**20, 64 * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))


_PLAIN = ("case", "lines", "stopped", "forbidden", "left", "output")
_SEEN = ("observation", "arguments", "raised")


def encode_run(run: CaseRun) -> dict[str, Any]:
    """A CaseRun as JSON values."""
    data: dict[str, Any] = {name: getattr(run, name) for name in _PLAIN}
    data |= {name: encode(getattr(run, name)) for name in _SEEN}
    data["calls"] = [
        [c.label, c.names, encode(c.before), encode(c.result), encode(c.after), c.lines] for c in run.calls
    ]
    return data


def decode_run(data: dict[str, Any]) -> CaseRun:
    """The CaseRun that `encode_run` wrote. Raises ValueError, TypeError or KeyError on anything else."""
    calls = tuple(
        Call(
            str(label),
            tuple(names),
            decode(before),
            decode(result),
            decode(after),
            tuple(map(str, lines)),
        )
        for label, names, before, result, after, lines in data["calls"]
    )
    return CaseRun(
        case=str(data["case"]),
        lines=tuple(map(str, data["lines"])),
        stopped=str(data["stopped"]),
        forbidden=str(data["forbidden"]),
        left=tuple(map(str, data["left"])),
        output=str(data["output"]),
        calls=calls,
        **{name: decode(data[name]) for name in _SEEN},
    )


if __name__ == "__main__":
    main()
