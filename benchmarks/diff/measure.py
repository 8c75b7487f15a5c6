"""Alternating rounds in one process; peaks in processes of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Times = dict[str, list[float]]


def rounds(contestants: dict[str, Callable[[], Any]], n: int) -> tuple[Times, Times]:
    """Wall and CPU seconds of each contestant, `n` times in turn, so that a busy moment hits all.

    Everyone runs in one thread, so CPU time is the time on a core of one's own.
    """
    wall: Times = {name: [] for name in contestants}
    cpu: Times = {name: [] for name in contestants}
    for i in range(n):
        for name, run in contestants.items():
            start, work = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - work)
            print(f"round {i + 1} of {n}, {name}: {cpu[name][-1]:.2f} s of CPU", file=sys.stderr)
    return wall, cpu


def ratios(times: dict[str, list[float]], to: str) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest of the ratio to contestant `to`, round by round."""
    found = {}
    for name, values in times.items():
        each = [value / other for value, other in zip(values, times[to], strict=True)]
        found[name] = (statistics.median(each), min(each), max(each))
    return found


def peak(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` prints last, which says its own peak (VmHWM)."""
    command = [sys.executable, "-m", module, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    return dict(json.loads(answer.stdout.strip().splitlines()[-1]))


def high_water_mark() -> int:
    """Bytes: the most this process ever had resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
