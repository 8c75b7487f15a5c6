"""How an update sits against the singular structure of the weights it changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp._weights.nulls import gated_noise, generator, z_score
from interp._weights.options import Options
from interp._weights.svd import Svd, gram, singular_values, svd_exact, svd_randomised

_ALIGNED = 128  # right singular vectors in LIFT's eigenspace alignment
_EPS32 = float(np.finfo(np.float32).eps)

Row = dict[str, Any]


def decompose(a: Float[Tensor, "out in"], name: str, options: Options) -> Svd:
    """The SVD an option set asks for; `k` is `rank`, at most a quarter of the short side."""
    k = subspace_rank(a.shape, options)
    short = min(a.shape)
    exact = options.svd == "exact" or (options.svd == "auto" and short <= options.exact_limit)
    if exact:
        return svd_exact(a, max(k, min(_ALIGNED, short // 4, short)))
    return svd_randomised(a, k, generator(options.seed, "svd", name))


def subspace_rank(shape: tuple[int, ...] | torch.Size, options: Options) -> int:
    """k: asked for, but at most a quarter of the short side (a subspace of all is no subspace)."""
    return max(1, min(options.rank, min(shape) // 4))


def measure_spectral(
    a: Float[Tensor, "out in"],
    b: Float[Tensor, "out in"],
    first: Svd,
    name: str,
    options: Options,
) -> tuple[Row, dict[str, Tensor]]:
    """Spectral metrics of one matrix; `a` is the base, `first` its SVD.

    NSS = ||s(b) - s(a)|| / ||s(a)|| <= ||b - a|| / ||a|| (Mirsky), so `nss_ratio`, their quotient,
    is in [0, 1]: small when the update rotates rather than stretches. Angles between the leading
    k-dimensional subspaces by the sine formula in float64, in degrees; `gap` = (s_k - s_{k+1}) /
    s_k, without which an angle means nothing; `wedin` = ||b - a||_2 / (s_k(a) - s_{k+1}(b)) bounds
    its sine from above (Wedin 1972; 2511.08567 puts s_{k+1}(a) there, which is no bound once the
    update is as large as the gap). `principal_energy` = ||U_k^T D V_k||^2 / ||D||^2.

    Returns:
        Columns, and the vectors `sigma_base`, `sigma_tuned`, `sigma_delta`.
    """
    delta = b - a
    k = subspace_rank(a.shape, options)
    norm = float(delta.double().norm())
    second = first if norm == 0 else decompose(b, name, options)
    approximate = max(first.residual, second.residual)
    s0, s1 = first.values, second.values
    nss = float((s1 - s0).norm() / s0.norm())
    size = float(a.double().norm())
    relative = norm / size if size else math.nan
    row: Row = {
        "k": k,
        "svd": "randomised" if approximate else "exact",
        "svd_residual": approximate,
        "sigma_max": float(s0[0]),
        "nss": nss,
        "nss_ratio": nss / relative if relative > 0 else math.nan,
        "gap": float((s0[k - 1] - s0[k]) / s0[k - 1]) if len(s0) > k else math.nan,
    }
    row |= subspace_columns(first, second, k)
    row |= {"alignment": _alignment(first.right, second.right), "alignment_n": _width(first)}
    sigma = _delta_values(delta, norm, approximate > 0, k, name, options)
    row |= delta_columns(sigma, norm, a.shape)
    apart = float(s0[k - 1] - s1[k]) if len(s1) > k else math.nan
    row["wedin"] = row["norm_2"] / apart if apart > 0 else math.inf
    row |= _energy(a, delta, norm, first, k, name, options)
    return row, {"sigma_base": s0, "sigma_tuned": s1, "sigma_delta": sigma}


def principal_sines(x: Float64[Tensor, "n k"], y: Float64[Tensor, "n k"]) -> Float64[Tensor, " k"]:
    """Sines of the principal angles between two orthonormal bases, largest first.

    The singular values of (I - X X^T) Y: exact near 0, where arccos of the cosines has a floor of
    0.06 degrees in float32 and 1e-6 in float64.
    """
    rest = y - x @ (x.T @ y)
    return torch.linalg.svdvals(rest).clamp_max_(1.0)


def subspace_columns(first: Svd, second: Svd, k: int) -> Row:
    """Largest and mean principal angle of both sides, in degrees."""
    row: Row = {}
    for side in ("left", "right"):
        x, y = getattr(first, side)[:, :k], getattr(second, side)[:, :k]
        angles = torch.rad2deg(torch.asin(principal_sines(x, y)))
        same = first is second
        row[f"angle_{side}"] = 0.0 if same else float(angles.max())
        row[f"angle_{side}_mean"] = 0.0 if same else float(angles.mean())
    return row


def _width(svd: Svd) -> int:
    return int(min(_ALIGNED, svd.right.shape[1]))


def _alignment(x: Tensor, y: Tensor) -> float:
    """LIFT's eigenspace alignment: mean_i sum_j (v'_i . v_j)^2 over leading right vectors."""
    n = min(_ALIGNED, x.shape[1])
    return float((x[:, :n].T @ y[:, :n]).square().sum() / n)


def _delta_values(
    delta: Tensor, norm: float, approximate: bool, k: int, name: str, options: Options
) -> Tensor:
    if norm == 0:
        return torch.zeros(min(delta.shape), dtype=torch.float64)
    if approximate:
        return svd_randomised(delta, k, generator(options.seed, "delta", name)).values
    return singular_values(delta)


def delta_columns(sigma: Float64[Tensor, " s"], norm: float, shape: torch.Size) -> Row:
    """What the singular values of an update say of its rank.

    stable_rank = ||D||_F^2 / ||D||_2^2; effective_rank = exp(entropy of s^2 / sum s^2); rank
    counts s above 10 * max(m, n) * eps32 * s_1 (LIFT, 2506.00772); hill = the Hill exponent
    [mean over the upper tenth of log(s_i / s_tail)]^-1.
    """
    if norm == 0:
        nothing = ("norm_2", "stable_rank", "effective_rank")
        return {**dict.fromkeys(nothing, 0.0), "rank": 0, "hill": math.nan}
    share = sigma.square() / norm**2
    share = share[share > 0]
    # With leading values only, the rest of the energy counts as one direction: a lower bound.
    rest = max(0.0, 1.0 - float(share.sum()))
    entropy = float(-(share * share.log()).sum()) - (rest * math.log(rest) if rest > 1e-12 else 0)
    tail = max(2, len(sigma) // 10)
    upper = sigma[:tail].clamp_min(1e-300)
    mean_log = float((upper[:-1] / upper[-1]).log().mean())
    return {
        "norm_2": float(sigma[0]),
        "stable_rank": norm**2 / float(sigma[0]) ** 2,
        "effective_rank": math.exp(entropy),
        "rank": int((sigma > 10 * max(shape) * _EPS32 * sigma[0]).sum()),
        "hill": 1 / mean_log if mean_log > 0 else math.nan,
    }


def _energy(
    a: Tensor, delta: Tensor, norm: float, first: Svd, k: int, name: str, options: Options
) -> Row:
    """Energy of the update inside the principal subspaces, beside gated isotropic noise."""
    left, right = first.left[:, :k].float(), first.right[:, :k].float()

    def inside(d: Tensor) -> float:
        total = float(d.double().square().sum())
        return float((left.T @ d @ right).double().square().sum()) / total if total else math.nan

    row: Row = {"principal_energy": inside(delta) if norm else math.nan}
    row["principal_energy_isotropic"] = k * k / a.numel()
    draws = []
    if norm and options.draws:
        stored = a.to(torch.bfloat16)
        count = int((stored != (a + delta).to(torch.bfloat16)).sum())
        gated = bool((stored.float() == a).all())  # a float32 checkpoint has no gate
        for draw in range(options.draws):
            rng = generator(options.seed, "energy", name, draw)
            _, z, sigma = gated_noise(a, count, rng)
            noise = (a + sigma * z).to(torch.bfloat16).float() - a if gated else z
            draws.append(inside(noise))
    row["principal_energy_null"] = float(np.mean(draws)) if draws else math.nan
    row["principal_energy_z"] = z_score(row["principal_energy"], draws)
    return row


__all__ = ["decompose", "gram", "measure_spectral", "principal_sines", "subspace_rank"]
