"""Spectral metrics against float64 decompositions, planted updates and theorems."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp._weights.nulls import generator
from interp._weights.options import Options
from interp._weights.spectral import decompose, measure_spectral, principal_sines
from interp._weights.svd import gram, singular_values, svd_exact, svd_randomised
from tests.oracles.weights import hill, principal_angles

OPTIONS = Options(tiers=("cheap", "spectral"), rank=8, draws=5)
SHAPES = [(96, 96), (64, 160), (160, 64)]


def measured(a: torch.Tensor, b: torch.Tensor, options: Options = OPTIONS):
    return measure_spectral(a, b, decompose(a, "w", options), "w", options)


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, dtype=torch.float64, generator=g)
    return torch.linalg.qr(x).Q


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_and_subspaces_are_those_of_a_full_svd(shape: tuple[int, int]):
    a = torch.randn(shape)
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    torch.testing.assert_close(singular_values(a), s, rtol=1e-10, atol=1e-10)
    found = svd_exact(a, 8)
    torch.testing.assert_close(found.values, s, rtol=1e-10, atol=1e-10)
    for mine, theirs in ((found.left, u[:, :8]), (found.right, vh[:8].T)):
        assert float(principal_sines(theirs, mine).max()) < 1e-9
        torch.testing.assert_close(mine.T @ mine, torch.eye(8).double(), rtol=0, atol=1e-12)
    rebuilt = (found.left * found.values[:8]) @ found.right.T  # signs of the sides match
    torch.testing.assert_close(rebuilt, (u[:, :8] * s[:8]) @ vh[:8], rtol=0, atol=1e-9)


def test_an_nss_of_5e_7_is_resolved_where_float32_is_off():
    """b = a + 5e-7 * (a change of the singular values alone)."""
    u, v = orthonormal(128, 128, 0), orthonormal(128, 128, 1)
    s = torch.linspace(1, 3, 128, dtype=torch.float64).flip(0)
    a = (u * s) @ v.T
    change = torch.randn(128, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = s + 5e-7 * s.norm() * change / change.norm()
    b = (u * t) @ v.T
    exact = float((t - s).norm() / s.norm())
    found = float((singular_values_64(b) - singular_values_64(a)).norm() / s.norm())
    assert found == pytest.approx(exact, rel=1e-6)
    single = [torch.linalg.svdvals(x.float()).double() for x in (a, b)]
    off = abs(float((single[1] - single[0]).norm() / s.norm()) / exact - 1)
    assert off > 0.01


def singular_values_64(a: torch.Tensor) -> torch.Tensor:
    """The same method without the rounding of the input to float32."""
    return torch.linalg.eigvalsh(a @ a.T).flip(0).clamp_min(0).sqrt()


def test_the_gram_matrix_is_float64_whatever_is_stored():
    a = torch.randn(32, 5000).bfloat16()
    torch.testing.assert_close(gram(a.float()), a.double() @ a.double().T, rtol=1e-12, atol=1e-9)
    assert gram(a.float()).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_every_column_against_numpy(shape: tuple[int, int]):
    a = torch.randn(shape)
    b = a + 0.02 * torch.randn(shape)
    row, vectors = measured(a, b)
    x, y = a.double().numpy(), b.double().numpy()
    d = (b - a).double().numpy()
    s0, s1, sd = (np.linalg.svd(m, compute_uv=False) for m in (x, y, d))
    norm = np.linalg.norm
    share = sd**2 / (sd**2).sum()
    u, _, vh = np.linalg.svd(x)
    k = row["k"]
    expected = {
        "sigma_max": s0[0],
        "nss": norm(s1 - s0) / norm(s0),
        "nss_ratio": norm(s1 - s0) / norm(d),
        "gap": (s0[k - 1] - s0[k]) / s0[k - 1],
        "norm_2": sd[0],
        "stable_rank": (sd**2).sum() / sd[0] ** 2,
        "effective_rank": math.exp(-(share * np.log(share)).sum()),
        "wedin": sd[0] / (s0[k - 1] - s1[k]),
        "principal_energy": norm(u[:, :k].T @ d @ vh[:k].T) ** 2 / norm(d) ** 2,
        "principal_energy_isotropic": k * k / a.numel(),
        "hill": hill(sd, max(2, len(sd) // 10)),
    }
    for column, value in expected.items():
        assert row[column] == pytest.approx(float(value), rel=2e-5), column
    left, right = principal_angles(x, y, k)
    assert row["angle_left"] == pytest.approx(left.max(), rel=1e-5)
    assert row["angle_right_mean"] == pytest.approx(right.mean(), rel=1e-5)
    assert row["rank"] == min(shape) and k == 8
    torch.testing.assert_close(vectors["sigma_delta"].numpy(), sd, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_planted_update_of_rank_r_is_recovered(rank: int):
    """Rank, norms, stable rank and both subspaces of D = U diag(s) V^T."""
    u, v = orthonormal(96, rank, 3), orthonormal(80, rank, 4)
    s = torch.linspace(1, 2, rank, dtype=torch.float64).flip(0)
    delta = ((u * s) @ v.T).float()
    a = torch.zeros(96, 80) + 8 * torch.eye(96, 80)  # exact sums: nothing else is planted
    row, vectors = measured(a, a + delta)
    assert row["rank"] == rank
    assert row["norm_2"] == pytest.approx(float(s[0]), rel=1e-6)
    expected = float(s.square().sum() / s[0] ** 2)
    assert row["stable_rank"] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(vectors["sigma_delta"][:rank], s, rtol=1e-6, atol=0)
    found = svd_exact((a + delta) - a, rank)
    assert float(principal_sines(u, found.left).max()) < 1e-6
    assert float(principal_sines(v, found.right).max()) < 1e-6


def test_an_update_inside_the_principal_subspace_has_all_its_energy_there():
    a = torch.diag(torch.linspace(10, 1, 64))
    inside = torch.zeros(64, 64)
    inside[:8, :8] = 0.01 * torch.randn(8, 8)
    row, _ = measured(a, a + inside)
    assert row["principal_energy"] == pytest.approx(1.0, abs=1e-9)
    assert row["principal_energy_z"] > 3
    outside = torch.zeros(64, 64)
    outside[8:, 8:] = 0.01 * torch.randn(56, 56)
    row, _ = measured(a, a + outside)
    assert row["principal_energy"] == pytest.approx(0.0, abs=1e-9)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-5, 1.0))
def test_mirsky_and_wedin(seed: int, scale: float):
    """NSS <= relative norm, and sin(largest angle) <= ||D||_2 / (s_k(a) - s_{k+1}(b))."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(40, 56, generator=g)
    a[:6] *= 5  # a gap worth a bound
    b = a + scale * torch.randn(40, 56, generator=g)
    options = Options(tiers=("cheap", "spectral"), rank=6, draws=0)
    row, _ = measured(a, b, options)
    relative = float((b - a).double().norm() / a.double().norm())
    assert 0 <= row["nss"] <= relative * (1 + 1e-9)
    assert 0 <= row["nss_ratio"] <= 1 + 1e-9
    for side in ("left", "right"):
        assert math.sin(math.radians(row[f"angle_{side}"])) <= row["wedin"] * (1 + 1e-6)


def test_the_sine_formula_sees_angles_that_arccos_does_not():
    x = torch.eye(64, 4, dtype=torch.float64)
    for degrees in (1e-7, 1e-4, 0.5, 89.0):
        t = math.radians(degrees)
        y = x.clone()
        y[0, 0], y[10, 0] = math.cos(t), math.sin(t)
        found = math.degrees(math.asin(float(principal_sines(x, y).max())))
        assert found == pytest.approx(degrees, rel=1e-6)


def test_the_randomised_svd_says_how_far_it_is_off():
    u, v = orthonormal(200, 200, 5), orthonormal(300, 200, 6)
    s = 0.9 ** torch.arange(200, dtype=torch.float64)
    a = ((u * s) @ v.T).float()
    found = svd_randomised(a, 16, generator(0, "x"))
    torch.testing.assert_close(found.values, s[:16], rtol=1e-6, atol=0)
    assert 0 < found.residual < 1e-4
    row, _ = measured(a, a + 1e-4 * torch.randn_like(a), Options(rank=16, svd="randomised"))
    assert row["svd"] == "randomised" and row["svd_residual"] > 0
    limited = Options(rank=16, exact_limit=100)
    assert decompose(a, "w", limited).residual > 0 and decompose(a, "w", OPTIONS).residual == 0


def test_a_matrix_of_zeros_is_measured_too():
    """A projection that training filled from nothing."""
    row, _ = measured(torch.zeros(32, 48), torch.randn(32, 48))
    assert math.isinf(row["nss"]) and math.isnan(row["nss_ratio"]) and row["stable_rank"] > 1
    row, _ = measured(torch.zeros(32, 48), torch.zeros(32, 48))
    assert row["norm_2"] == 0 and row["angle_left"] == 0
