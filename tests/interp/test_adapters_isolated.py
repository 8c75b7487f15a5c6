"""The adapters' tests, each in a process of its own.

Importing nnsight patches `torch.Tensor.backward` and gives every object a `.save`; TransformerLens
takes seconds to import. Neither may reach, or slow down, the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITES = sorted(path.name for path in HERE.glob("adapters_*_suite.py"))


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite, root) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, str(HERE / suite)],
        cwd=root,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_importing_the_adapters_loads_neither_package(root) -> None:
    code = (
        "import sys, interp, interp.adapters;"
        "from interp.adapters import nnsight, transformer_lens;"
        "print(*({'nnsight', 'transformer_lens'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
