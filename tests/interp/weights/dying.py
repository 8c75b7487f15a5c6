"""A measure whose first call is killed, as by the kernel when memory runs out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from interp._weights.measure import Task, measure
from interp._weights.measurement import Measurement


def measure_once_killed(task: Task) -> Measurement:
    marker = Path(os.environ["DYING_MARKER"])
    if task.tensor == "layers.1.q.weight" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(task)


def measure_always_killed(task: Task) -> Measurement:
    os.kill(os.getpid(), signal.SIGKILL)
    return measure(task)
