"""The cheap tier holds a chunk at a time, whatever the size of a matrix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

# What a process ever had resident, before and after a diff, in MiB.
PROGRAM = """
import re, sys, pathlib, torch
from interp._diff import DiffOptions, diff

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

small, base, tuned = sys.argv[1:]
options = DiffOptions(kernel="torch")
diff(small, small, options=options)
before = peak()
diff(base, tuned, options=options)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_matrix(tmp_path: Path):
    """64 MiB a checkpoint; small pieces kept between chunks made it 170 MiB more."""
    small = torch.randn(64, 64).bfloat16()
    large = torch.randn(64, 4096).bfloat16().repeat(128, 1)
    for name, w in (("small", small), ("base", large), ("tuned", 1.01 * large)):
        (tmp_path / name).mkdir()
        save_file({"w.weight": w}, tmp_path / name / "model.safetensors")
    folders = [str(tmp_path / name) for name in ("small", "base", "tuned")]
    command = [sys.executable, "-c", PROGRAM, *folders]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 24
