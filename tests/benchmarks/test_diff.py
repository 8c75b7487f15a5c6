"""The contestants of the diff benchmark do the same work, on checkpoints that are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.diff import generate
from benchmarks.diff.contestants import obvious, read_only
from benchmarks.diff.measure import ratios, rounds
from interp._diff import diff
from interp._weights.checkpoint import open_checkpoint


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    shape = generate.Shape(2, 32, 48, 4, 2, 97, False)
    monkeypatch.setitem(generate.SHAPES, "tiny", shape)
    monkeypatch.setattr(generate, "_POOL", 1 << 13)
    monkeypatch.setattr(generate, "_SHARD", 1 << 14)
    return generate.generate(tmp_path, "tiny")


def test_the_obvious_loop_and_diff_agree(tiny: tuple[Path, Path]):
    """An independent implementation of every cheap metric."""
    base, tuned = tiny
    found = diff(base, tuned).table().set_index("tensor")
    heads = diff(base, tuned).table("head").set_index(["tensor", "head"])
    by_key = {part.source: name for name, part in open_checkpoint(base).parts.items()}
    rows = obvious(base, tuned)
    assert len(rows) == len(found) and sum(row["numel"] for row in rows) == found["numel"].sum()
    for row in rows:
        mine = found.loc[by_key[row["tensor"]]]
        for column in ("norm", "relative_norm", "rms", "cosine", "max_abs", "unchanged"):
            assert mine[column] == pytest.approx(row[column], rel=1e-5), column
        for column in ("sparsity", "sign_flips"):
            assert mine[column] == pytest.approx(row[column], abs=1e-6), column
        for i, value in enumerate(row.get("heads", ())):
            if value.ndim == 0:
                one = heads.loc[(by_key[row["tensor"]], i), "relative_norm"]
                assert one == pytest.approx(float(value), rel=1e-5)


def test_generated_checkpoints_are_sharded_and_have_the_model_s_keys(tiny: tuple[Path, Path]):
    base, tuned = tiny
    assert len(list(base.glob("*.safetensors"))) > 2
    assert read_only(base, tuned) == sum(
        f.stat().st_size for p in tiny for f in p.glob("*.safetensors")
    )
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    assert set(model.state_dict()) == set(open_checkpoint(base).tensors)


def test_ratios_are_taken_round_by_round():
    wall, cpu = rounds({"a": lambda: None, "b": lambda: sum(range(1000))}, 3)
    assert all(len(times) == 3 for times in (*wall.values(), *cpu.values()))
    assert ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}, "a")["b"] == (2.0, 1.0, 3.0)
