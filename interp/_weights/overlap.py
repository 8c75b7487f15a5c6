"""Overlap of the changed entries with principal and low-magnitude masks, beside three nulls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp._weights.nulls import changed_bf16, gated_noise, generator, smallest, z_score
from interp._weights.options import Options
from interp._weights.svd import Svd

NULLS = ("", "_permuted", "_bernoulli")

Row = dict[str, Any]
Mask = Bool[Tensor, "out in"]


def measure_overlap(
    a: Float[Tensor, "out in"],
    b: Float[Tensor, "out in"],
    first: Svd,
    k: int,
    name: str,
    options: Options,
) -> Row:
    """Overlap(M*, M) = |M* and M| / |M| of the changed entries M with three masks M*.

    `overlap_principal`: top alpha of |W^(k)|, the rank-k part of the base (LIFT; 2511.08567).
    `overlap_low`: bottom alpha of |W|. `overlap_safe`: principal and not low.
    Null columns: `_null`, `_z` for isotropic noise of the same density through the bfloat16 gate;
    `_null_permuted` for the update with its rows permuted; `_null_bernoulli` for as many entries
    drawn at random, whose mean is the density of M*.
    """
    changed = changed_bf16(a, b, options.eta)
    count = int(changed.sum())
    masks = _masks(a, first, k, name, options)
    row: Row = {"alpha": options.alpha, "changed": count / a.numel()}
    observed = {key: _overlap(mask, changed) for key, mask in masks.items()}
    draws: dict[str, list[dict[str, float]]] = {null: [] for null in NULLS}
    # Everything changed, or nothing: every null agrees by arithmetic and says nothing.
    for draw in range(options.draws if 0 < count < a.numel() else 0):
        for null, mask in _null_masks(a, changed, count, name, draw, options):
            draws[null].append({key: _overlap(m, mask) for key, m in masks.items()})
    for key, value in observed.items():
        row[f"overlap_{key}"] = value
        row[f"overlap_{key}_density"] = float(masks[key].float().mean())
        for null in NULLS:
            sample = [d[key] for d in draws[null]]
            row[f"overlap_{key}_null{null}"] = float(np.mean(sample)) if sample else math.nan
            row[f"overlap_{key}_z{null}"] = z_score(value, sample)
    return row


def principal_mask(a: Float[Tensor, "out in"], svd: Svd, k: int, alpha: float) -> Mask:
    """The top alpha entries of |W^(k)|, W^(k) the best rank-k approximation of W."""
    left, right = svd.left[:, :k].float(), svd.right[:, :k].float()
    size = ((left * svd.values[:k].float()) @ right.T).abs_()
    return smallest(size.neg_(), round(alpha * a.numel()))[0]


def low_mask(a: Float[Tensor, "out in"], alpha: float, rng: np.random.Generator) -> Mask:
    """The bottom alpha entries of |W|; ties, frequent in bfloat16, are broken at random."""
    size, count = a.abs(), round(alpha * a.numel())
    mask, threshold = smallest(size, count)
    ties = (size == threshold).flatten().nonzero()[:, 0]
    mask = size < threshold
    chosen = rng.permutation(len(ties))[: count - int(mask.sum())]
    mask.view(-1)[ties[torch.from_numpy(chosen)]] = True
    return mask


def _masks(a: Tensor, svd: Svd, k: int, name: str, options: Options) -> dict[str, Mask]:
    principal = principal_mask(a, svd, k, options.alpha)
    low = low_mask(a, options.alpha, generator(options.seed, "ties", name))
    return {"principal": principal, "low": low, "safe": principal & ~low}


def _null_masks(
    a: Tensor, changed: Mask, count: int, name: str, draw: int, options: Options
) -> Iterator[tuple[str, Mask]]:
    makers: tuple[Callable[[np.random.Generator], Mask], ...] = (
        lambda rng: gated_noise(a, count, rng)[0],
        lambda rng: changed[torch.from_numpy(rng.permutation(len(changed)))],
        lambda rng: bernoulli(changed.shape, count, rng),
    )
    for null, maker in zip(NULLS, makers, strict=True):
        yield null, maker(generator(options.seed, "overlap", null, name, draw))


def bernoulli(shape: torch.Size, count: int, rng: np.random.Generator) -> Mask:
    """`count` entries drawn at random without replacement."""
    noise = torch.from_numpy(rng.random(tuple(shape), dtype=np.float32))
    return smallest(noise, count)[0]


def _overlap(reference: Mask, changed: Mask) -> float:
    count = int(changed.sum())
    return int((reference & changed).sum()) / count if count else math.nan
