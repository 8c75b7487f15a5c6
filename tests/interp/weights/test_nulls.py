"""The nulls: exact by construction, calibrated, and enough to give published overlaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp._weights.across import correlation, jaccard, jaccard_bernoulli
from interp._weights.nulls import (
    bf16_margin,
    changed_bf16,
    gated_noise,
    generator,
    normal,
    smallest,
    sparsity_draws,
    z_score,
)
from interp._weights.options import Options
from interp._weights.overlap import bernoulli, low_mask, measure_overlap, principal_mask
from interp._weights.svd import svd_exact

# Share of changed entries, share of them among the 30 % of smallest magnitude, as published for
# SFT, on-policy distillation and RLVR (2606.07082), and 1024 x 1024 Gaussian weights.
PUBLISHED = [(0.9273, 0.3188), (0.4628, 0.5359), (0.2776, 0.7348)]


def gaussian(seed: int, scale: float, n: int = 1024) -> torch.Tensor:
    rng = generator(seed, "weights")
    return (scale * normal((n, n), rng)).bfloat16().float()


@pytest.mark.parametrize(("density", "published"), PUBLISHED)
def test_isotropic_noise_through_the_gate_gives_the_published_overlaps(density, published):
    """The low-magnitude overlap of three trainings is that of noise of the same density.

    The gate is periodic in log2 |w|, so the scale of the weights within one octave matters: the
    published values lie in the band that scales from 0.02 to 0.04 span, widened by four standard
    errors of the count.
    """
    found = []
    for scale in (0.02, 0.023, 0.0265, 0.03, 0.035):
        w = gaussian(0, scale)
        mask, _, _ = gated_noise(w, round(density * w.numel()), generator(1, scale))
        low = low_mask(w, 0.3, generator(2))
        found.append(int((low & mask).sum()) / int(mask.sum()))
    error = 4 * math.sqrt(published * (1 - published) / (density * 1024**2))
    assert min(found) - error - 0.005 <= published <= max(found) + error + 0.005, found


@pytest.mark.parametrize(
    ("density", "principal"), [(0.9273, 0.296), (0.4628, 0.264), (0.2776, 0.251)]
)
def test_the_same_noise_lies_off_the_principal_mask(density: float, principal: float):
    """Below the nominal 0.30 without any tendency to avoid it: |W| and |W^(k)| correlate."""
    w = gaussian(0, 0.03)
    mask, _, _ = gated_noise(w, round(density * w.numel()), generator(1))
    overlap = principal_mask(w, svd_exact(w, 64), 64, 0.3) & mask
    assert int(overlap.sum()) / int(mask.sum()) == pytest.approx(principal, abs=0.003)


@pytest.mark.parametrize(("observed", "p"), [(0.58, 0.43), (0.597, 0.467), (0.552, 0.373)])
def test_independent_gated_updates_share_most_of_a_published_footprint(observed: float, p: float):
    """2511.08567, Tab. 2: Jaccards .552-.597 beside .373-.467 for independent masks.

    Two independent isotropic updates through the gate on the same weights reach .52-.58.
    """
    density = 2 * p / (1 + p)  # pq / (p + q - pq) = p / (2 - p) at equal densities
    assert jaccard_bernoulli(density, density) == pytest.approx(p, abs=1e-12)
    w = gaussian(3, 0.03)
    count = round(density * w.numel())
    a, b = (gated_noise(w, count, generator(4, run))[0] for run in range(2))
    gated = jaccard(a, b)
    assert 0.50 < gated < 0.60
    assert observed - gated < 0.5 * (observed - p)  # less than half of the excess is left


def test_the_margin_is_where_the_rounded_value_changes():
    """0.99 of the margin changes nothing, 1.01 of it changes the bfloat16 value."""
    stored = [gaussian(0, 0.03, 64).flatten(), torch.tensor([0.0, 1.0, -2.0])]
    w = torch.cat([*stored, torch.randn(4096)])
    for sign in (1.0, -1.0):
        direction = torch.full_like(w, sign)
        margin = bf16_margin(w, direction).double()
        wide = margin >= 1e-4 * w.abs()  # the rest is within float32's own rounding
        for factor, moved in ((0.99, False), (1.01, True)):
            target = (w.double() + sign * factor * margin).float()
            assert bool((changed_bf16(w, target, 1e-3) == moved)[wide].all())


def test_gated_noise_has_exactly_the_density_and_is_what_rounding_does():
    w = gaussian(0, 0.03, 256)
    count = 20_000
    mask, z, sigma = gated_noise(w, count, generator(5))
    assert int(mask.sum()) == count
    rounded = (w.double() + sigma * z.double()).float().bfloat16().float() != w
    assert int((rounded != mask).sum()) <= 1  # the entry that defines sigma sits on its edge


def test_bernoulli_overlap_and_jaccard_are_their_closed_forms():
    shape, n = torch.Size([512, 512]), 512 * 512
    a, b = (bernoulli(shape, round(p * n), generator(i)) for i, p in enumerate((0.3, 0.6)))
    expected = jaccard_bernoulli(0.3, 0.6)
    assert expected == pytest.approx(0.18 / 0.72)
    assert jaccard(a, b) == pytest.approx(expected, abs=4 * 0.5 / 512)
    assert int((a & b).sum()) / int(b.sum()) == pytest.approx(0.3, abs=4 * 0.5 / 512)


def test_z_is_calibrated_for_few_draws():
    """One more draw of the null has |z| >= 3 about as rarely for 5 draws as for 40."""
    rng = np.random.default_rng(0)
    for n in (5, 8, 40):
        samples = rng.standard_normal((4000, n + 1))
        z = np.array([z_score(float(row[0]), row[1:].tolist()) for row in samples])
        assert np.std(z) == pytest.approx(1.0, abs=0.05)
        assert np.mean(np.abs(z) >= 3) < 0.006


def test_z_of_constants_and_of_nothing():
    assert z_score(1.0, [1.0] * 5) == 0.0
    assert math.isnan(z_score(2.0, [1.0] * 5)) and math.isnan(z_score(1.0, []))
    assert math.isnan(z_score(math.nan, [1.0, 2.0, 3.0, 4.0, 5.0]))


def test_noise_scores_no_effect_against_itself_and_a_planted_one_is_found():
    w = gaussian(0, 0.03, 256)
    options = Options(alpha=0.3, rank=16)
    svd = svd_exact(w, 64)
    _, z, sigma = gated_noise(w, 20_000, generator(6))
    noise = (w + sigma * z).bfloat16().float()
    row = measure_overlap(w, noise, svd, 16, "noise", options)
    assert all(abs(row[f"overlap_{key}_z"]) < 3 for key in ("principal", "low", "safe"))
    # Against independent entries the same noise would pass for a strong effect.
    assert row["overlap_low_z_bernoulli"] > 4
    target = principal_mask(w, svd, 16, 0.3)
    planted = torch.where(target, w * 1.05, w).bfloat16().float()
    row = measure_overlap(w, planted, svd, 16, "planted", options)
    assert row["overlap_principal"] > 0.95 and row["overlap_principal_z"] > 3


def test_sparsity_null_is_the_sparsity_of_noise_of_that_norm():
    w = gaussian(0, 0.03, 256)
    for scale in (1e-3, 1e-4):
        noisy = (w + scale * normal(w.shape, generator(7))).bfloat16().float()
        rms = float((noisy - w).double().square().mean().sqrt())
        sample = w.flatten()[::2]
        draws = sparsity_draws(sample, rms, torch.bfloat16, 8, generator(8))
        observed = float((noisy == w).double().mean())
        assert abs(z_score(observed, draws)) < 3
        assert np.mean(draws) == pytest.approx(observed, abs=0.02)


def test_generators_depend_on_their_words_only():
    assert torch.equal(normal((4,), generator(0, "a", 1)), normal((4,), generator(0, "a", 1)))
    assert not torch.equal(normal((4,), generator(0, "a", 1)), normal((4,), generator(0, "a", 2)))


def test_smallest_takes_exactly_that_many_ties_included():
    x = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    for count in range(7):
        assert int(smallest(x, count)[0].sum()) == count


def test_correlation_is_pearsons():
    x, y = torch.randn(50), torch.randn(50)
    assert correlation(x, y) == pytest.approx(float(np.corrcoef(x, y)[0, 1]), abs=1e-12)
    assert math.isnan(correlation(torch.ones(5), y[:5]))
