"""Singular values and subspaces through the short-side Gram matrix, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

_BLOCK = 2048  # rows turned to float64 at a time
_COLUMNS = 1024  # of the long side, in a Gram matrix: a panel's product stays in the cache


@dataclass(frozen=True)
class Svd:
    """Singular values, and the leading k directions on both sides.

    Args:
        values: descending; all of them, or the leading ones when `residual` is not 0.
        left: leading left singular vectors.
        right: leading right singular vectors.
        residual: max_i ||A v_i - s_i u_i|| / s_1 of the randomised method; 0 when exact.
    """

    values: Float64[Tensor, " s"]
    left: Float64[Tensor, "out k"]
    right: Float64[Tensor, "in k"]
    residual: float = 0.0


def gram(a: Float[Tensor, "short long"]) -> Float64[Tensor, "short short"]:
    """A A^T accumulated in float64, never holding A in float64."""
    lower = _lower_gram(a).tril_()
    return lower + lower.tril(-1).T


def _lower_gram(a: Tensor) -> Tensor:
    """Its lower triangle, which is all that an eigensolver reads; little more is computed."""
    n = a.shape[0]
    step = max(256, -(-n // 8))
    total = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, a.shape[1], _COLUMNS):
        block = a[:, start : start + _COLUMNS].double()
        for i in range(0, n, step):
            stop = i + step
            total[i:stop, :stop].addmm_(block[i:stop], block[:stop].T)
    return total


def singular_values(a: Float[Tensor, "m n"]) -> Float64[Tensor, " s"]:
    """All singular values, descending: square roots of the Gram matrix's eigenvalues.

    The error of s_i is about 1e-16 * s_1^2 / s_i: relative 1e-12 at s_1 / 100, and nothing below
    1e-8 * s_1 is resolved. Float32 `svdvals` err by 1e-7 * s_1 everywhere, which hides the change
    of an NSS of 5e-7; a float32 Gram matrix is worse than either and never used.
    """
    values = torch.linalg.eigvalsh(_lower_gram(_wide(a)))
    return values.flip(0).clamp_min_(0).sqrt_()


def svd_exact(a: Float[Tensor, "out in"], k: int) -> Svd:
    """All singular values and the leading `k` directions of both sides.

    Args:
        a: the matrix.
        k: how many directions; at most the rank, else the other side is not determined.
    """
    wide = _wide(a)
    energies, vectors = torch.linalg.eigh(_lower_gram(wide))
    values = energies.flip(0).clamp_min_(0).sqrt_()
    short = vectors[:, -k:].flip(1).contiguous()
    long = _times(wide.T, short)  # A^T u_i = s_i v_i
    long = _orthonormal(long / values[:k].clamp_min(1e-300))
    return Svd(values, *((short, long) if a.shape[0] <= a.shape[1] else (long, short)))


def _orthonormal(columns: Tensor) -> Tensor:
    """Columns made orthonormal to the last bit, keeping their signs."""
    q, r = torch.linalg.qr(columns)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).double()


def svd_randomised(
    a: Float[Tensor, "out in"], k: int, rng: np.random.Generator, *, power: int = 4
) -> Svd:
    """The leading `k` directions by subspace iteration (Halko et al. 2011, arXiv:0909.4061).

    Args:
        a: the matrix.
        k: how many directions; 32 more are carried along.
        rng: of the random start.
        power: iterations.
    """
    width = min(k + 32, *a.shape)
    start = torch.from_numpy(rng.standard_normal((a.shape[1], width)))
    q = torch.linalg.qr(_times(a, start)).Q
    for _ in range(power):
        q = torch.linalg.qr(_times(a.T, q)).Q
        q = torch.linalg.qr(_times(a, q)).Q
    small = _times(a.T, q).T  # Q^T A
    u, values, vh = torch.linalg.svd(small, full_matrices=False)
    left, right = (q @ u)[:, :k], vh[:k].T.contiguous()
    off = (_times(a, right) - left * values[:k]).norm(dim=0).max()
    return Svd(values[:k], left, right, float(off / values[0].clamp_min(1e-300)))


def _wide(a: Tensor) -> Tensor:
    return a if a.shape[0] <= a.shape[1] else a.T


def _times(a: Tensor, b: Tensor) -> Tensor:
    """A @ B in float64, A turned to float64 block by block."""
    return torch.cat(
        [a[start : start + _BLOCK].double() @ b for start in range(0, a.shape[0], _BLOCK)]
    )
