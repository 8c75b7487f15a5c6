"""Every example in a docstring and in the README runs; the README says what the run says."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import interp
import interventions
import probes
from studies import organisms

ROOT = Path(__file__).parents[1]


class AnyOutput(doctest.OutputChecker):
    """An example that states no output may print anything; a stated one must match."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def modules() -> list[str]:
    found = []
    for package in (interp, probes, interventions):
        found += [package.__name__]
        found += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if "adapters." not in name]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder().find(module) if t.examples]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may use without saying where it comes from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "checkpoint").symlink_to(organisms.path("base"))
    (tmp_path / "base").symlink_to(organisms.path("base"))
    (tmp_path / "sft").symlink_to(organisms.path("base"))
    (tmp_path / "adapter").symlink_to(organisms.path("unlearn"))
    module, tokenizer = organisms.load("base")
    organisms.load("unlearn")[0].bfloat16().save_pretrained(tmp_path / "rl")
    model = interp.load(module, tokenizer=tokenizer)
    texts = [f"Question: Where does number {i} live? Answer:" for i in range(40)]
    return {
        "interp": interp,
        "iv": interventions,
        "probes": probes,
        "torch": torch,
        "Site": interp.Site,
        "module": module,
        "tokenizer": tokenizer,
        "model": model,
        "texts": texts,
        "rollouts": [
            {"problem": p, "model": m, "text": f"{p} + {i} = {p + i}; {m} {i}", "correct": i < 2}
            for p in (1, 2)
            for m in ("base", "rl")
            for i in range(4)
        ],
        "prompt": texts[0],
        "batch": model.batch(texts[:2]),
        "input_ids": model.batch(texts[0]).input_ids,
    }


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str, names: dict[str, Any]) -> None:
    if name.endswith("_numba"):
        pytest.importorskip("numba", reason="an optional kernel")
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(AnyOutput(), optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in sorted(examples(module), key=lambda t: t.lineno or 0):
        test.globs = {**vars(module), **names}
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_readme_python_runs(names: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for page in ("concepts.md", "attribution.md"):
        blocks += re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) >= 3
    scope: dict[str, Any] = dict(names)
    for block in blocks:
        exec(block, scope)


def test_readme_says_what_the_committed_run_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "update_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
