"""The comparison with TransformerLens, in a process of its own: importing it takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_suite(root) -> None:
    suite = Path(__file__).parent / "transformer_lens_suite.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, str(suite)],
        cwd=root,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
