"""Every snippet of ours in docs/coming-from.md, and every example of the adapters, runs."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import interp
from interp.adapters import transformer_lens
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
EXAMPLES = ["_bridge", "_hook_names", "_nnsight_lens", "nnsight", "transformer_lens"]


class AnyOutput(doctest.OutputChecker):
    """An example that states no output may show anything; a stated one must match."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def snippets() -> list[tuple[str, str]]:
    """(heading, code) of every cell in the middle column."""
    found, heading = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        heading = line.removeprefix("## ") if line.startswith("## ") else heading
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and not set(cells[2]) <= {"-"} and cells[2] != "interp":
            assert cells[2].startswith("`") and cells[2].endswith("`"), line
            found.append((heading, cells[2].strip("`")))
    return found


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> None:
    """What `path/to/checkpoint` means."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_level()
    model = build("llama", vocab_size=len(tokenizer), num_hidden_layers=4)
    model.save_pretrained(tmp_path / "path" / "to" / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "path" / "to" / "checkpoint")


def test_every_row_has_three_cells() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert all(line.count("|") == 4 for line in rows)
    headings = {heading for heading, _ in snippets()}
    assert headings == {
        "TransformerLens", "nnsight", "nnterp", "pyvene", "captum, baukit, SAELens",
    }  # fmt: skip


@pytest.mark.usefixtures("checkpoint")
def test_our_snippets_run() -> None:
    scope: dict[str, object] = {}
    (setup,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(setup, scope)
    for heading, code in snippets():
        try:
            exec(code, scope)
        except Exception as error:
            raise AssertionError(f"under {heading}: {code}") from error
    assert scope["trace"].meta["remote"] == "local"
    assert torch.equal(scope["logits"].isfinite().all(), torch.tensor(True))


@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name) -> None:
    module = importlib.import_module(f"interp.adapters.{name}")
    import nnsight
    from transformer_lens import ActivationCache

    model = interp.load("path/to/checkpoint")
    names = {
        "interp": interp, "model": model, "tl": transformer_lens.bridge(model), "nnsight": nnsight,
        "transformer_lens": transformer_lens, "ActivationCache": ActivationCache,
        "texts": ["The capital is", "ab"],
    }  # fmt: skip
    runner = doctest.DocTestRunner(AnyOutput(), optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    tests = [t for t in doctest.DocTestFinder().find(module) if t.examples]
    assert tests
    for test in tests:
        test.globs = dict(names)
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
