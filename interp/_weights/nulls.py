"""What an update without structure would have scored: the controls beside every overlap."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_HALF_STEP = 0x8000  # half a bfloat16 step in the bits of a float32


def generator(seed: int, *words: object) -> np.random.Generator:
    """A generator that depends on its words alone: the same in any process, in any order."""
    keys = [zlib.crc32(repr(word).encode()) for word in words]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *keys])))


def normal(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Standard normal numbers in float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def z_score(observed: float, draws: Sequence[float]) -> float:
    """How far a value is outside a null, as the normal quantile with the same tail.

    t = (x - mean) / (s * sqrt(1 + 1/n)) follows Student's t with n - 1 degrees of freedom when x
    is one more draw; z is its normal equivalent (Wallace 1959), so that |z| < 3 means the same for
    5 draws as for 5000. With few draws z therefore grows only like sqrt(log t).

    >>> round(z_score(2.0, [0.0, 1.0, -1.0, 0.5, -0.5]), 2)
    1.74
    """
    n = len(draws)
    if n < 2 or not math.isfinite(observed):
        return math.nan
    mean, spread = float(np.mean(draws)), float(np.std(draws, ddof=1))
    difference = observed - mean
    # Draws that agree to the last bit are constants (density 0 or 1), not infinite evidence.
    if spread <= 1e-12 * max(abs(mean), 1e-300):
        return 0.0 if abs(difference) <= 1e-9 * max(abs(mean), 1e-300) else math.nan
    t = difference / (spread * math.sqrt(1 + 1 / n))
    dof = n - 1
    size = (8 * dof + 1) / (8 * dof + 3) * math.sqrt(dof * math.log1p(t * t / dof))
    return math.copysign(size, t)


def bf16_margin(w: Float[Tensor, "..."], direction: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """How far each weight may move towards `direction` before its bfloat16 value changes.

    The distance to the edge of its rounding cell: half a step outward, half the (possibly
    smaller) step inward. Exact up to ties.
    """
    bits = w.contiguous().view(torch.int32) & 0x7FFFFFFF
    cell = (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF
    size = w.abs()
    outward = (cell + _HALF_STEP).view(torch.float32) - size
    zero = torch.tensor(_HALF_STEP, dtype=torch.int32).view(torch.float32)
    inward = torch.where(
        cell == 0, size + zero, size - (cell - _HALF_STEP).clamp_min(0).view(torch.float32)
    )
    return torch.where((w < 0) == (direction < 0), outward, inward).clamp_min_(0)


def gated_noise(
    w: Float[Tensor, "out in"], count: int, rng: np.random.Generator
) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"], float]:
    """Isotropic Gaussian noise, stored in bfloat16, that changes exactly `count` entries.

    Entry i changes once sigma * |z_i| exceeds its margin, so the mask of density count / n is the
    `count` smallest margin / |z|, and sigma is the last of them.

    Returns:
        The mask of changed entries, the noise z, and sigma.
    """
    z = normal(w.shape, rng)
    ratio = bf16_margin(w, z).div_(z.abs().clamp_min_(1e-30))
    mask, sigma = smallest(ratio, count)
    return mask, z, sigma


def smallest(x: Float[Tensor, "..."], count: int) -> tuple[Bool[Tensor, "..."], float]:
    """A mask of the `count` smallest entries, and the largest of them."""
    flat = x.flatten()
    if count <= 0:
        return torch.zeros_like(x, dtype=torch.bool), 0.0
    if count >= flat.numel():
        return torch.ones_like(x, dtype=torch.bool), float(flat.max())
    threshold = float(np.partition(flat.numpy(), count - 1)[count - 1])
    mask = flat < threshold
    at = (flat == threshold).nonzero()[:, 0]
    mask[at[: count - int(mask.sum())]] = True
    return mask.view(x.shape), threshold


def changed_bf16(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], eta: float
) -> Bool[Tensor, "..."]:
    """Which entries changed in bfloat16: not |b - a| <= eta * max(|a|, |b|), both cast first.

    For eta < 2^-9 this is bit inequality, except that +0 and -0 agree (2511.08567, Prop. E.3).
    """
    x, y = a.to(torch.bfloat16).float(), b.to(torch.bfloat16).float()
    return (y - x).abs() > eta * torch.maximum(x.abs(), y.abs())


def sparsity_draws(
    sample: Float[Tensor, " n"],
    rms: float,
    dtype: torch.dtype,
    draws: int,
    rng: np.random.Generator,
) -> list[float]:
    """Share of entries that isotropic noise of a given realised RMS leaves unchanged in bfloat16.

    Each draw takes its own part of the sample, so that their spread holds the sampling error too.

    Args:
        sample: entries of the base weight.
        rms: sqrt(mean((b - a)^2)) to reach, after rounding to `dtype`.
        dtype: what the tuned checkpoint stores.
        draws: how many.
        rng: where the noise comes from.
    """
    each = len(sample) // max(draws, 1)
    if rms == 0.0 or each == 0:
        return []
    shuffled = sample[torch.from_numpy(rng.permutation(len(sample)))]
    w = shuffled[: draws * each].view(draws, each)
    z = normal(w.shape, rng)
    low = torch.full((draws, 1), math.log(rms) - 12.0, dtype=torch.float64)
    high = low + 15.0
    stored = w
    for _ in range(18):  # bisection, to 1e-4, for the sigma of this RMS after rounding
        middle = (low + high) / 2
        stored = (w + middle.exp().float() * z).to(dtype).float()
        larger = (stored - w).double().square().mean(1, keepdim=True) > rms * rms
        low, high = torch.where(larger, low, middle), torch.where(larger, middle, high)
    same = stored.to(torch.bfloat16) == w.to(torch.bfloat16)
    return [float(share) for share in same.double().mean(1)]
