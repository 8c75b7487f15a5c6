"""Memory: bytes that a result keeps alive, and how far a fresh process's memory peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._measure import Contestant, Held

MEBI = 2**20


def retained(held: Held) -> int:
    """Bytes of all distinct storages behind the tensors, whole even where a view is small."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held.tensors.values()}
    return sum(storage.nbytes() for storage in storages.values())


def exact(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements themselves."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak_growth(contestant: Contestant, warm: Contestant) -> int:
    """Bytes by which one call lifts this process's peak, after `warm` ran once.

    Linux only. Meaningful in a process that has done nothing else; see `in_fresh_process`.
    """
    with torch.no_grad():
        warm.call()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak := present
        held = contestant.call()
        growth = _status("VmHWM") - before
        del held
    return growth


def in_fresh_process(arguments: list[str]) -> int | None:
    """Run `python -m benchmarks peak ...` and read its one number; None where it cannot."""
    if not sys.platform.startswith("linux"):
        return None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "peak", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the peak of {arguments} failed:\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])
