"""`interp diff`: what the page and the files hold is what was measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

matplotlib.use("Agg")

from interp._weights.weight_diff import WeightDiff
from studies import organisms
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
    assert not (tmp_path / "out" / "kept").exists()


def test_organisms_are_read_and_foreign_files_in_kept_stay(tmp_path: Path) -> None:
    """SFT of the organism against numbers read from its two files by hand."""
    kept = tmp_path / "out" / "kept"
    kept.mkdir(parents=True)
    (kept / "mine.safetensors").write_text("mine")
    found = run(Diff("organism:base", ("organism:sft",), out=tmp_path / "out"))
    assert found.tuned == ["sft"]
    assert [file.name for file in kept.iterdir()] == ["mine.safetensors"]
    name = "model.layers.0.self_attn.o_proj.weight"
    before, after = (
        load_file(organisms.path(one) / "model.safetensors")[name].double()
        for one in ("base", "sft")
    )
    row = next(row for row in found.rows if row["tensor"] == "layers.0.o.weight")
    expected = float((after - before).norm() / before.norm())
    assert row["relative_norm"] == pytest.approx(expected, rel=1e-4)


def test_an_organism_and_a_folder_of_its_name_are_told_apart(tmp_path: Path) -> None:
    copy = tmp_path / "sft"
    copy.mkdir()
    for file in organisms.path("sft").glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    found = run(Diff("organism:base", ("organism:sft", str(copy)), out=tmp_path / "out"))
    assert found.tuned == ["0:sft", "1:sft"]
    norms = {row["tensor"]: [] for row in found.rows}
    for row in found.rows:
        norms[row["tensor"]].append(row["norm"])
    assert all(len(two) == 2 and two[0] == two[1] for two in norms.values())
