"""Probes carried to another checkpoint fail exactly where its activations differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probes
from interp import InterpError
from probes import LinearProbe, ProbeTransfer

OPTIONS: dict[str, Any] = {"progress": False, "bootstrap": 50, "splits": 3}
PLAIN = LinearProbe(standardize=False, penalties=[1.0])


def planted(n: int = 120, d: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    groups = np.arange(n) // 2
    y = (rng.permutation(n // 2) % 2)[groups]
    return rng.standard_normal((n, d)) + 3 * np.eye(d)[0] * y[:, None], y, groups


def scores(found: ProbeTransfer, measure: str = "score") -> dict[str, float]:
    table = found.table()
    return {f"{r.train}{r.test}": getattr(r, measure) for r in table.itertuples()}


def test_the_same_checkpoint_twice() -> None:
    x, y, groups = planted()
    found = probes.transfer({"resid_post.3": x}, {"resid_post.3": x}, y, groups=groups, **OPTIONS)
    assert len(set(scores(found).values())) == 1
    own = probes.sweep(
        {"resid_post.3": x}, y, groups=groups, permutations=0, bootstrap=50, progress=False
    )
    row = found.table().iloc[0]
    assert row["score"] == pytest.approx(float(own.score))
    assert (row["low"], row["high"]) == pytest.approx((float(own.low), float(own.high)))
    assert row["auroc"] == pytest.approx(float(own.auroc))
    angles = found.angles().iloc[0]
    torch.testing.assert_close(found.cosines[..., 0], found.cosines[..., 1])
    assert angles["corrected"] == pytest.approx(1)
    assert angles["angle"] == pytest.approx(0, abs=1e-3)


def test_halves_are_fitted_by_hand() -> None:
    x, y, groups = planted()
    found = probes.transfer({"a": x}, {"a": 2 * x}, y, PLAIN, groups=groups, **OPTIONS)
    from probes._probe_folds import stratified

    half = stratified(y, groups, 2, 0)
    assert not set(groups[half == 0]) & set(groups[half == 1])
    one, two = (PLAIN.fit(x[half == part], y[half == part]).direction for part in (0, 1))
    cosine = float(torch.cosine_similarity(one, two, dim=0))
    assert float(found.cosines[0, 0, 1]) == pytest.approx(cosine, abs=1e-6)


def test_a_rotated_checkpoint_holds_as_much_in_another_direction() -> None:
    x, y, groups = planted()
    turn = np.roll(np.eye(8), 1, axis=0)
    found = probes.transfer({"a": x}, {"a": x @ turn}, y, PLAIN, groups=groups, **OPTIONS)
    by = scores(found)
    assert by["aa"] == pytest.approx(by["bb"])
    assert by["aa"] > 0.75
    assert max(by["ab"], by["ba"]) < 0.65
    angles = found.angles().iloc[0]
    assert angles["within_a"] == pytest.approx(angles["within_b"])
    assert angles["within_a"] > 0.7
    assert abs(angles["cosine"]) < 0.3


def test_a_shifted_checkpoint_moves_the_threshold_and_not_the_direction() -> None:
    x, y, groups = planted()
    shifted = x + 20 * np.eye(8)[0]
    found = probes.transfer({"a": x}, {"a": shifted}, y, groups=groups, **OPTIONS)
    by, areas = scores(found), scores(found, "auroc")
    assert by["ab"] == pytest.approx(0.5)  # everything on one side
    assert areas["ab"] == pytest.approx(areas["aa"])
    assert by["bb"] == pytest.approx(by["aa"])
    assert found.angles().iloc[0]["corrected"] == pytest.approx(1, abs=1e-6)


def test_correction_is_spearman_s_and_needs_agreement_with_itself() -> None:
    cosines = torch.tensor([[0.2, 0.8, 0.2]]).double().repeat(2, 4, 1)
    cosines[1, 0, 2] = -0.3  # the second cell's b does not agree with itself in one halving
    place: dict[str, Any] = {"site": ["z.0", "z.1"], "layer": torch.arange(2), "position": [0, 0]}
    found = ProbeTransfer(**place, scores=torch.zeros(2, 4, 6).double(), cosines=cosines)
    angles = found.angles()
    assert angles.loc[0, "corrected"] == pytest.approx(0.2 / 0.4)
    assert angles.loc[0, "angle"] == pytest.approx(60)
    assert angles.loc[1, ["corrected", "angle"]].isna().all()
    assert angles.loc[1, "within_b"] == pytest.approx((3 * 0.2 - 0.3) / 4)


def test_record_comes_back_and_draws(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    x, y, groups = planted()
    acts = {"resid_post.0": x, "resid_post.1": x + 1}
    found = probes.transfer(acts, acts, y, PLAIN, groups=groups, **OPTIONS)
    again = ProbeTransfer.load(found.save(tmp_path / "moved"))
    assert again.table().equals(found.table())
    assert again.angles().equals(found.angles())
    assert len(found.plot().get_lines()) == 4


def test_captures_of_other_places_are_refused() -> None:
    x, y, _ = planted()
    with pytest.raises(InterpError, match=r"has a at given of shape .120, 8. and the second b at"):
        probes.transfer({"a": x}, {"b": x}, y, **OPTIONS)
    with pytest.raises(InterpError, match=r"and the second a at given of shape .120, 7. in its"):
        probes.transfer({"a": x}, {"a": x[:, :7]}, y, **OPTIONS)
    with pytest.raises(InterpError, match="and the second nothing in its place"):
        probes.transfer({"a": x, "b": x}, {"a": x}, y, **OPTIONS)
