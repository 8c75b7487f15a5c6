"""`interp diff`: what the page and the files hold is what was measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

from interp._weights.weight_diff import WeightDiff
from studies._diff import Diff, run
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved


def test_the_page_the_table_and_the_record_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = build("llama", num_hidden_layers=2, dtype=torch.bfloat16)
    folder = saved(base, tmp_path / "base")
    sizes = {"<i>early": 1e-3, "later": 3e-3, "last": 1e-2}
    tuned = tuple(saved(noisy(base, size), tmp_path / name) for name, size in sizes.items())
    found = run(Diff(folder, tuned, out=tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 4  # three heat maps and the course
    assert "&lt;i&gt;early" in page and "<i>early" not in page
    for sentence in found.findings():
        assert sentence.split(": ", 1)[1].split(";")[0] in page
        assert "effect" not in sentence or "no effect" in sentence
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == len(found.rows)
    pd.testing.assert_frame_equal(WeightDiff.load(tmp_path / "out" / "diff").table(), found.table())
    assert "relative norm" in capsys.readouterr().out
