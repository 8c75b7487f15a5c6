"""The public functions and their records."""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp._compare import compare
from interp._diff import DiffOptions, diff
from interp._errors import InterpError
from interp._weights.comparison import WeightComparison
from interp._weights.weight_diff import KEYS, WeightDiff
from tests.architectures import build
from tests.interp.weights.helpers import changed, noisy, saved


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base and two tuned copies that changed different layers."""
    folder = tmp_path_factory.mktemp("three")
    base = build("llama", dtype=torch.bfloat16)

    def only(layer: int):
        def change(name: str, p: torch.Tensor) -> torch.Tensor:
            scale = 0.02 if f"layers.{layer}." in name else 0.0
            return scale * torch.randn_like(p, dtype=torch.float32)

        return change

    return {
        "base": saved(base, folder / "base"),
        "a": saved(changed(base, only(0), 1001), folder / "a"),
        "b": saved(changed(base, only(2), 1002), folder / "b"),
    }


@pytest.fixture(scope="module")
def full(three: dict[str, str]) -> WeightDiff:
    return diff(three["base"], {"a": three["a"], "b": three["b"]}, "all")


def test_the_table_is_tidy_and_localises_the_change(full: WeightDiff):
    table = full.table()
    assert list(table.columns[:8]) == [*KEYS, "numel", "norm"]
    moved = table[table["norm"] > 0].groupby("tuned")["layer"].unique()
    assert moved["a"].tolist() == [0] and moved["b"].tolist() == [2]
    assert not table.duplicated(["tensor", "tuned"]).any()
    for column in [c for c in table.columns if c.endswith("_z")]:
        assert f"{column.removesuffix('_z')}_null" in table.columns


def test_modules_together(full: WeightDiff):
    table, whole = full.table("module"), full.table()
    one = table[(table["tuned"] == "a") & (table["layer"] == 0) & (table["module"] == "q")].iloc[0]
    row = whole[(whole["tuned"] == "a") & (whole["tensor"] == "layers.0.q.weight")].iloc[0]
    for column in ("norm", "relative_norm", "rms", "cosine", "unchanged", "nss"):
        assert one[column] == pytest.approx(row[column], rel=1e-12), column
    norms = table[(table["tuned"] == "a") & (table["module"] == "norm") & (table["layer"] == 0)]
    assert norms["numel"].item() == 64  # two norms of a block


def test_round_trip(full: WeightDiff, tmp_path: Path):
    again = WeightDiff.load(full.save(tmp_path / "diff"))
    pd.testing.assert_frame_equal(again.table(), full.table())
    pd.testing.assert_frame_equal(again.table("head"), full.table("head"))
    assert again.meta["options"]["alpha"] == 0.5 and again.tuned == ["a", "b"]
    for name, vector in full.vectors.items():
        assert torch.equal(again.vectors[name], vector)
    stored = pd.read_parquet(tmp_path / "diff" / "table.parquet")
    assert len(stored) == len(full.rows)


def test_plots_show_what_the_table_says(full: WeightDiff):
    ax = full.plot("relative_norm", tuned="b")
    grid = np.asarray(ax.images[0].get_array())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[:4] == ["q", "k", "v", "o"]
    assert (grid[:, :2] == 0).all() and (grid[labels.index("q"), 2] > 0).all()
    lines = full.plot("norm", kind="trajectory").get_lines()
    assert len(lines) == len(labels) and len(lines[0].get_xdata()) == 2
    matplotlib.pyplot.close("all")


def test_plots_and_vectors_name_the_nearest(full: WeightDiff):
    with pytest.raises(InterpError, match=r"no metric 'relative_nrom' .*'relative_norm'"):
        full.plot("relative_nrom")
    with pytest.raises(InterpError, match="no checkpoint 'c'"):
        full.plot(tuned="c")
    with pytest.raises(InterpError, match="row_changed"):
        full.vector("layers.0.q.weight", "rows_changed")


def test_no_sentence_calls_noise_an_effect(tmp_path: Path):
    """Isotropic noise of any size has no overlap worth a word, and findings say so."""
    base = build("llama", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16)
    tuned = noisy(base, 1e-3)
    found = diff(saved(base, tmp_path / "a"), saved(tuned, tmp_path / "b"), "overlap")
    size, *sentences = found.findings()
    assert re.fullmatch(r"\S+: the weights moved by \S+ % of their norm, .* tensors changed", size)
    assert len(sentences) == 4  # sparsity and three overlaps
    for sentence in sentences:
        outside = re.search(r"in (\d+) \(above\) and (\d+) \(below\)", sentence)
        # 21 to 29 matrices a metric: one beyond 3 by chance is no surprise, two would be.
        assert "no more than noise" in sentence or sum(map(int, outside.groups())) == 1, sentence
        assert "effect" not in sentence


def test_options_are_checked_and_stored(three: dict[str, str], full: WeightDiff):
    assert full.meta["options"]["rank"] == 64
    assert {8, 4} >= set(full.table()["k"].dropna())
    for options, match in (
        ({"draws": 3}, "draws=3 gives no spread"),
        ({"alpha": 1.5}, r"alpha=1\.5 is no share"),
        ({"rank": 0}, "rank=0"),
    ):
        with pytest.raises(InterpError, match=match):
            DiffOptions(**options)
    with pytest.raises(InterpError, match="no metrics 'spectal'; nearest valid names: 'spectral'"):
        diff(three["base"], three["a"], "spectal")
    with pytest.raises(InterpError, match="matches no tensor"):
        diff(three["base"], three["a"], select="mlpp")
    without = diff(three["base"], three["a"], options=DiffOptions(draws=0))
    assert without.table()["sparsity_z"].isna().all()


def test_lists_are_labelled_by_their_folders(three: dict[str, str], tmp_path: Path):
    assert diff(three["base"], [three["a"], three["b"]], select="norm").tuned == ["a", "b"]
    twice = diff(three["base"], [three["a"], three["a"]], select="norm")
    assert twice.tuned == ["0:a", "1:a"]
    with pytest.raises(InterpError, match="no tuned checkpoint"):
        diff(three["base"], [])


def test_compare_finds_disjoint_and_identical_updates(three: dict[str, str], full: WeightDiff):
    found = compare(full)
    table = found.table().set_index("tensor")
    assert table.loc["layers.0.q.weight", "jaccard"] == 0
    assert math.isnan(table.loc["layers.1.q.weight", "jaccard"])
    copies = diff(three["base"], {"x": three["a"], "y": three["a"]})
    same = compare(copies, spectral=True).table().set_index("tensor").loc["layers.0.q.weight"]
    assert same["jaccard"] == 1 and same["jaccard_z"] > 3
    assert same["delta_cosine"] == pytest.approx(1.0) and same["delta_cosine_z"] > 3
    assert same["row_correlation"] == pytest.approx(1.0)
    assert same["delta_subspace_left"] == pytest.approx(1.0)
    consensus = compare(copies).table("consensus").set_index("tensor")
    assert consensus.loc["layers.0.q.weight", "consensus"] > 0


def test_two_diffs_compare_as_one(three: dict[str, str], full: WeightDiff, tmp_path: Path):
    one, two = (diff(three["base"], {name: three[name]}) for name in "ab")
    together = compare(one, two)
    pd.testing.assert_frame_equal(together.table(), compare(full).table())
    again = WeightComparison.load(together.save(tmp_path / "compare"))
    pd.testing.assert_frame_equal(again.table(), together.table())
    assert len(together.plot("jaccard").get_lines()) == 14
    matplotlib.pyplot.close("all")
    assert any("jaccard" in sentence for sentence in together.findings())


def test_compare_refuses_what_cannot_be_compared(three: dict[str, str]):
    one = diff(three["base"], three["a"], select="norm")
    with pytest.raises(InterpError, match="needs two or more"):
        compare(one)
    with pytest.raises(InterpError, match="two checkpoints are called 'a'"):
        compare(one, one)
    other = diff(three["b"], {"z": three["a"]}, select="norm")
    with pytest.raises(InterpError, match="different bases"):
        compare(one, other)
    held = diff(build("llama", dtype=torch.bfloat16), {"q": three["a"]}, select="norm")
    with pytest.raises(InterpError, match="the base was a module in memory"):
        compare(held)


def test_early_and_late_checkpoints(three: dict[str, str], full: WeightDiff):
    steps = {"s1": three["a"], "s2": three["b"], "s3": three["b"]}
    run = diff(three["base"], steps)
    pairs = compare(run, pairs="consecutive").table()[["tuned_a", "tuned_b"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [["s1", "s2"], ["s2", "s3"]]
    final = compare(run, pairs="final", spectral=True).table()
    late = final[(final["tuned_a"] == "s2") & (final["tensor"] == "layers.2.up.weight")].iloc[0]
    assert late["delta_subspace_right"] == pytest.approx(1.0)


def test_a_rotation_of_values_is_invisible_to_the_model_and_scrambles_the_masks(tmp_path: Path):
    """2511.08567, 4.3: W_v -> R^T W_v, W_o -> W_o R per head; heads permuted; logits stay."""
    base = build("llama", dtype=torch.float32)
    heads, d = 4, 8
    rotation = torch.linalg.qr(torch.randn(d, d)).Q
    order = torch.tensor([1, 0])  # key-value heads, each with its two queries
    rotated = _rotated(base, rotation, heads, d)
    permuted = _permuted(base, order, d)
    ids = torch.randint(3, 97, (2, 12))
    with torch.no_grad():
        expected = base(ids).logits
        for model in (rotated, permuted):
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    options = DiffOptions(alpha=0.3, draws=5)
    folder = saved(base, tmp_path / "base")
    tuned = {"rotated": saved(rotated, tmp_path / "r"), "permuted": saved(permuted, tmp_path / "p")}
    found = diff(folder, tuned, "all", select=r"layers\.1\.(v|o|q)\.weight", options=options)
    table = found.table().set_index(["tuned", "tensor"])
    for label in tuned:
        for module in ("v", "o"):
            row = table.loc[(label, f"layers.1.{module}.weight")]
            assert row["nss"] < 1e-6 and row["relative_norm"] > 0.5
            assert abs(row["overlap_principal"] - 0.3) < 0.08  # scrambled: the density
            assert row["sparsity"] < 0.1
    assert table.loc[("rotated", "layers.1.q.weight"), "norm"] == 0
    # The rotation acts on the output side of v and the input side of o.
    v, o = (table.loc[("rotated", f"layers.1.{m}.weight")] for m in ("v", "o"))
    assert v["angle_right"] < 1e-3 and v["angle_left"] > 10
    assert o["angle_left"] < 1e-3 and o["angle_right"] > 10


def _rotated(base, rotation: torch.Tensor, heads: int, d: int):
    copied = changed(base, lambda _, p: torch.zeros_like(p))
    attn = copied.model.layers[1].self_attn
    with torch.no_grad():
        v = attn.v_proj.weight
        v.copy_(torch.cat([rotation.T @ block for block in v.split(d)]))
        o = attn.o_proj.weight
        o.copy_(torch.cat([block @ rotation for block in o.split(d, dim=1)], dim=1))
    return copied


def _permuted(base, order: torch.Tensor, d: int):
    copied = changed(base, lambda _, p: torch.zeros_like(p))
    attn = copied.model.layers[1].self_attn
    with torch.no_grad():
        for module, width in ((attn.k_proj, d), (attn.v_proj, d), (attn.q_proj, 2 * d)):
            w = module.weight
            w.copy_(torch.cat([w.split(width)[i] for i in order]))
        o = attn.o_proj.weight
        o.copy_(torch.cat([o.split(2 * d, dim=1)[i] for i in order], dim=1))
    return copied


def test_a_real_sft_and_rl_pair_against_a_plain_loop(assets: Path):
    root = assets / "stories260K-posttrained"
    found = diff(assets / "stories260K", {"sft": root / "sft", "rl": root / "rl"}).table()
    a = load_file(assets / "stories260K" / "model.safetensors")
    for label in ("sft", "rl"):
        b = load_file(root / label / "model.safetensors")
        rows = found[found["tuned"] == label]
        for column, squares in (
            ("norm", [(b[k].double() - a[k].double()).square().sum() for k in a]),
            ("norm_base", [a[k].double().square().sum() for k in a]),
        ):
            total = float((rows[column] ** 2).sum())
            assert total == pytest.approx(float(sum(squares)), rel=1e-6)


def test_handles_are_compared_as_their_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = build("llama")
    tuned = noisy(base, 1e-2)
    folder = saved(tuned, tmp_path / "tuned")
    expected = diff(base, {"tuned": tuned}).table()
    assert float(expected["norm"].min()) > 0
    found = diff(interp.load(base), interp.load(folder))
    assert found.tuned == ["tuned"]  # the folder's name
    pd.testing.assert_frame_equal(found.table(), expected)
    several = diff(interp.load(base), [interp.load(tuned), interp.load(base)])
    assert len(several.tuned) == 2
    # A path may start at home.
    monkeypatch.setenv("HOME", str(tmp_path))
    pd.testing.assert_frame_equal(diff(base, "~/tuned").table(), expected)
    loaded = interp.load("~/tuned")
    assert torch.equal(loaded.module.lm_head.weight, tuned.lm_head.weight)
    assert loaded.name == str(tmp_path / "tuned")


def test_the_first_sentence_is_how_far_the_weights_moved():
    """Summed by hand: what lies within a null may still be large."""
    base = build("llama")
    tuned = changed(base, lambda name, p: 0.1 * p if "o_proj" in name else torch.zeros_like(p))
    parts = {"o": [p for n, p in base.named_parameters() if "o_proj" in n]}
    parts["all"] = list(base.parameters())
    norms = {
        n: math.sqrt(sum(float(p.detach().double().square().sum()) for p in part))
        for n, part in parts.items()
    }
    whole = 100 * 0.1 * norms["o"] / norms["all"]
    size = diff(base, {"sft": tuned, "copy": build("llama")}).findings()
    n = len(parts["all"])
    assert size[0] == (
        f"sft: the weights moved by {whole:.2g} % of their norm, o most (10 %); "
        f"{len(parts['o'])} of {n} tensors changed"
    )
    assert f"copy: equal to the base in all {n} tensors" in size
