"""docs/sites.md says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys

import interp
from interp._site import AXES, KINDS
from tests.architectures import NAMES


def test_the_page_is_what_the_generator_measures(root) -> None:
    run = subprocess.run(
        [sys.executable, "docs/generate_sites.py", "--check"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_page_defines_every_site_with_its_axes_and_lists_every_architecture(root) -> None:
    page = (root / "docs" / "sites.md").read_text(encoding="utf-8")
    for kind in KINDS:
        name = "`k`, `v`" if kind in "kv" else f"`{kind}`"
        row = re.search(rf"^\| {name} \| ([^|]+) \|", page, re.MULTILINE)
        assert row, kind
        same = kind in "kv"  # "The same for keys and values"
        assert same or row.group(1).split() == list(AXES[kind])
    for name in NAMES:
        assert f"| `{name}` |" in page
    assert set(interp.Site("z", 0).axes) <= set(page.split())
