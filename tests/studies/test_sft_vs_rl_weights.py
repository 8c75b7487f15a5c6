"""The study on a real pair and on pairs in which we know what was planted."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

from interp._errors import InterpError
from interp._weights.weight_diff import WeightDiff
from studies.sft_vs_rl_weights import MATCHED, SftVsRlWeights, run
from tests.architectures import build
from tests.interp.weights.helpers import changed, noisy, saved


def planted(tmp_path: Path) -> SftVsRlWeights:
    """SFT stretches leading directions; RL is isotropic noise of a tenth of its size."""
    base = build("llama", hidden_size=48, intermediate_size=64, num_hidden_layers=1)

    def stretch(name: str, p: torch.Tensor) -> torch.Tensor:
        if p.ndim < 2 or "layers" not in name:
            return torch.zeros_like(p)
        u, s, vh = torch.linalg.svd(p.detach(), full_matrices=False)
        return 0.1 * (u[:, :4] * s[:4]) @ vh[:4]

    return SftVsRlWeights(
        base=saved(base, tmp_path / "base"),
        sft=saved(changed(base, stretch), tmp_path / "sft"),
        rl=saved(noisy(base, 1e-3), tmp_path / "rl"),
        out=tmp_path / "run",
        rank=8,
        draws=5,
    )


def test_the_study_tells_a_planted_stretch_from_noise(tmp_path: Path):
    config = planted(tmp_path)
    folder = run(config)
    table = WeightDiff.load(folder.path / "diff").table()
    inside = table[table["nss"].notna()].groupby("tuned")
    energy, ratio = inside["principal_energy"].mean(), inside["nss_ratio"].mean()
    assert energy["sft"] > 0.99 and ratio["sft"] > 0.99  # it lies there, and only stretches
    assert energy["rl"] < 0.1 and ratio["rl"] < 0.5
    z = table[table["tuned"] == "rl"]["principal_energy_z"].dropna()
    assert (z.abs() < 3).mean() > 0.9
    # SFT at RL's norm keeps its direction; noise like SFT has its norm and nothing else.
    norms = table.pivot(index="tensor", columns="tuned", values="norm").loc["layers.0.q.weight"]
    assert norms[MATCHED] == pytest.approx(norms["rl"], rel=1e-4)
    assert norms["noise like sft"] == pytest.approx(norms["sft"], rel=0.1)
    assert ratio[MATCHED] > 0.95 and ratio["noise like sft"] < 0.5
    page = (folder.path / "report.html").read_text()
    assert page.count("data:image/png") >= 5 and "Confounds" in page
    assert "learning rate and steps are unknown" in page
    facts = folder.read_meta()["facts"]["verdict"]
    assert not any("effect" in s and "no effect" not in s for s in facts)
    # A second run reads what is there; another configuration is refused.
    before = (folder.path / "diff" / "meta.json").stat().st_mtime_ns
    assert run(config).path == folder.path
    assert (folder.path / "diff" / "meta.json").stat().st_mtime_ns == before
    with pytest.raises(InterpError, match="another run"):
        run(SftVsRlWeights(config.base, config.rl, config.sft, out=config.out))
    assert len(pd.read_parquet(folder.path / "summary.parquet")) == 5
