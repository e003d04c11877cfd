"""Whether real ranks end as they should, again and again: `python benchmarks/two_rank_runs.py 50`.

Starts the demonstrations of week 12 on two ranks that many times. Counts runs that ended abnormally, runs whose numbers
differ from those of the first, and processes that were left behind. The exit status is 0 when there were none.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import uuid
from pathlib import Path

from course_utils.torchrun import RanksFailed, torchrun

DEMONSTRATIONS = ("sampling", "gradients", "order")
MARK = "TWO_RANK_RUN"


def processes_with(mark: str) -> list[str]:
    """The numbers of all processes in whose environment the mark stands (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def main() -> int:
    """Run, count, and print a line for each kind of trouble."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    abnormal, left, different = [], [], 0
    seconds, first = [], None
    for number in range(runs):
        mark, begun = uuid.uuid4().hex, time.perf_counter()
        try:
            reports = torchrun("course_utils.two_ranks", *DEMONSTRATIONS, seconds=120, environment={MARK: mark}).reports
        except RanksFailed as error:
            abnormal.append(f"run {number}: {error}")
        else:
            first = first or reports
            different += reports != first
        seconds.append(time.perf_counter() - begun)
        left += processes_with(mark)
    print(f"{runs} runs of {', '.join(DEMONSTRATIONS)} on two ranks, with {os.cpu_count()} cores")
    print(f"abnormal exits: {len(abnormal)}", *abnormal, sep="\n  ")
    print(f"processes left behind: {len(left)}")
    print(f"runs with other numbers than the first: {different}")
    print(f"seconds a run: median {statistics.median(seconds):.1f}, slowest {max(seconds):.1f}")
    return 1 if abnormal or left or different else 0


if __name__ == "__main__":
    sys.exit(main())
