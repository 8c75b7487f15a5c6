"""The cheap metrics against closed forms, and the bfloat16 rule over all finite values."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from interp._diff import DiffOptions, diff
from interp._weights.nulls import changed_bf16
from tests.architectures import build
from tests.interp.weights.helpers import pair

KERNELS = ["torch", *(["numba"] if importlib.util.find_spec("numba") else [])]


def finite_bf16() -> torch.Tensor:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    return values[torch.isfinite(values)]


def test_the_sparsity_rule_is_bit_equality_for_every_finite_bfloat16():
    """Neighbours are the hardest: all of them are called changed; equal bits are not; +0 is -0."""
    values = finite_bf16()
    assert len(values) == 65280
    ordered = values.float().sort().values
    ordered = ordered.unique()  # -0 and +0 are one
    assert len(ordered) == 65279
    assert bool(changed_bf16(ordered[:-1], ordered[1:], 1e-3).all())
    assert not bool(changed_bf16(ordered, ordered, 1e-3).any())
    assert not bool(changed_bf16(torch.tensor([0.0]), torch.tensor([-0.0]), 1e-3).any())
    # The rule is monotone in the distance, so no farther pair can pass where neighbours do not.
    gap = (ordered[1:] - ordered[:-1]) / torch.maximum(ordered[1:].abs(), ordered[:-1].abs())
    assert float(gap.min()) > 1e-3


def table_of(tmp_path: Path, a: torch.Tensor, b: torch.Tensor, **options):
    for name, tensor in (("a", a), ("b", b)):
        (tmp_path / name).mkdir(exist_ok=True)
        save_file({"layers.0.w.weight": tensor}, tmp_path / name / "model.safetensors")
    found = diff(tmp_path / "a", tmp_path / "b", options=DiffOptions(**options))
    return found.table().iloc[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [64, 1 << 15])
def test_every_column_against_its_formula(tmp_path, kernel: str, dtype: torch.dtype, chunk: int):
    a = (0.1 * torch.randn(37, 50)).to(dtype)
    b = torch.where(torch.rand(37, 50) < 0.4, (a.float() + 0.01 * torch.randn(37, 50)).to(dtype), a)
    b[0, 0], a[0, 0] = 0.0, -0.0
    row = table_of(tmp_path, a, b, kernel=kernel, chunk=chunk)
    x, y = a.float().double(), b.float().double()
    d = y - x
    expected = {
        "norm": d.norm(),
        "relative_norm": d.norm() / x.norm(),
        "rms": d.square().mean().sqrt(),
        "cosine_distance": 1 - (x * y).sum() / (x.norm() * y.norm()),
        "max_abs": d.abs().max(),
        "sign_flips": (x * y < 0).double().mean(),
        "norm_base": x.norm(),
        "norm_tuned": y.norm(),
    }
    for column, value in expected.items():
        assert row[column] == pytest.approx(float(value), rel=2e-7, abs=1e-15), column
    differ = a.view(torch.uint8).view(37, 50, -1) != b.view(torch.uint8).view(37, 50, -1)
    assert row["unchanged"] == 1 - float(differ.any(-1).double().mean())
    cast = a.to(torch.bfloat16) == b.to(torch.bfloat16)
    assert row["sparsity"] == float(cast.double().mean())


def test_the_two_kernels_agree(tmp_path: Path):
    pytest.importorskip("numba")
    base, tuned = pair(tmp_path, "qwen3")
    one, two = (diff(base, tuned, options=DiffOptions(kernel=k)) for k in ("torch", "numba"))
    for a, b in zip(one.rows + one.heads, two.rows + two.heads, strict=True):
        for column, value in a.items():
            if isinstance(value, float):
                assert b[column] == pytest.approx(value, rel=1e-12, nan_ok=True), column
            else:
                assert b[column] == value, column
    for key, vector in one.vectors.items():
        assert torch.equal(vector, two.vectors[key])


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gpt_neox"])
def test_heads_add_up_and_each_is_its_slice(name: str, tmp_path: Path):
    base, tuned = pair(tmp_path, name)
    found = diff(base, tuned)
    whole, heads = found.table().set_index("tensor"), found.table("head")
    for tensor, group in heads.groupby("tensor"):
        total = (group["norm"] ** 2).sum() ** 0.5
        assert total == pytest.approx(whole.loc[tensor, "norm"], rel=1e-12)
        weighted = (group["unchanged"] * group["numel"]).sum() / group["numel"].sum()
        assert weighted == pytest.approx(whole.loc[tensor, "unchanged"], abs=1e-12)
    from interp._weights.checkpoint import open_checkpoint
    from interp._weights.pair import Side

    sides = [open_checkpoint(folder) for folder in (base, tuned)]
    a, b = (Side(c, c.parts["layers.1.o.weight"]).matrix().double() for c in sides)
    width = a.shape[1] // 4
    norms = (b - a).view(len(a), 4, width).norm(dim=(0, 2))
    rows = heads[heads["tensor"] == "layers.1.o.weight"].sort_values("head")
    torch.testing.assert_close(torch.tensor(rows["norm"].to_numpy()), norms, rtol=1e-6, atol=0)


def test_row_and_column_ratios(tmp_path: Path):
    for stored in ("llama", "gpt2"):  # [out, in] and [in, out]
        base, tuned = pair(tmp_path / stored, stored)
        found = diff(base, tuned)
        from interp._weights.checkpoint import open_checkpoint
        from interp._weights.pair import Side

        sides = [open_checkpoint(folder) for folder in (base, tuned)]
        a, b = (Side(c, c.parts["layers.0.up.weight"]).matrix() for c in sides)
        moved = changed_bf16(a, b, 1e-3).float()
        rows = found.vector("layers.0.up.weight", "row_changed")
        columns = found.vector("layers.0.up.weight", "column_changed")
        torch.testing.assert_close(rows, moved.mean(1))
        torch.testing.assert_close(columns, moved.mean(0))


def test_identical_checkpoints_differ_in_nothing(tmp_path: Path):
    base, _ = pair(tmp_path)
    row = diff(base, base, "all").table("tensor")
    nothing = ["norm", "relative_norm", "max_abs", "sign_flips", "cosine_distance"]
    assert (row[nothing] == 0).all(axis=None)
    assert (row[["unchanged", "sparsity", "cosine"]] == 1).all(axis=None)
    spectral = row.dropna(subset=["nss"])
    assert len(spectral) == 3 * 7
    assert (spectral["nss"] == 0).all() and (spectral["stable_rank"] == 0).all()
    angles = spectral[["angle_left", "angle_right"]]
    assert (angles < 1e-5).all(axis=None) and (spectral["alignment"] > 1 - 1e-9).all()


@given(scale=st.floats(1e-6, 10.0), offset=st.floats(-2.0, 2.0))
def test_a_scaled_copy_has_cosine_one_and_the_norm_of_the_scale(scale: float, offset: float):
    """b = (1 + t) a: relative norm |t|, cosine the sign of 1 + t; exact where float32 is."""
    from interp._weights.cheap import _columns
    from interp._weights.kernel_torch import scan

    torch.manual_seed(0)
    a = torch.randn(16, 16).double().float()
    b = (a.double() * (1 + scale * (1 if offset >= 0 else -1))).float()
    out = torch.zeros(16, 1, 9, dtype=torch.float64)
    scan(a, b, 1, 1e-3, out, torch.zeros(16, dtype=torch.int64))
    row = _columns(out.reshape(-1, 9), 256)
    t = scale if offset >= 0 else -scale
    assert row["relative_norm"] == pytest.approx(abs(t), rel=1e-6, abs=1e-7)
    if abs(1 + t) > 1e-3:
        assert row["cosine"] == pytest.approx(1.0 if 1 + t > 0 else -1.0, abs=1e-6)


def test_a_float32_checkpoint_is_cast_before_its_sparsity_is_taken(tmp_path: Path):
    """In float32 every entry moved; in bfloat16 most did not (2511.08567, Def. 2.1)."""
    a = build("llama").lm_head.weight.detach()
    row = table_of(tmp_path, a, a + 1e-4 * torch.randn_like(a))
    assert row["unchanged"] < 0.02 and row["sparsity"] > 0.8
