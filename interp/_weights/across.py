"""One matrix across runs or over time: shared footprints, bands, subspaces, beside their nulls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp._weights.checkpoint import open_checkpoint
from interp._weights.measurement import Measurement, Row, job_key
from interp._weights.nulls import changed_bf16, gated_noise, generator, z_score
from interp._weights.options import Options
from interp._weights.overlap import NULLS, bernoulli
from interp._weights.plan import sides
from interp._weights.spectral import subspace_rank
from interp._weights.svd import svd_exact

Mask = Bool[Tensor, "out in"]


@dataclass(frozen=True)
class AcrossTask:
    """One matrix of several checkpoints that share a base; all of them folders."""

    base: str
    runs: tuple[tuple[str, str], ...]
    tensor: str
    pairs: tuple[tuple[str, str], ...]
    options: Options
    nbytes: int = 0
    on_disk: bool = True

    def key(self) -> str:
        """A name for the result that changes with anything that could change it."""
        sources = [self.base, *(source for _, source in self.runs)]
        return job_key(sources, self.runs, self.pairs, self.tensor, asdict(self.options))


def measure_across(task: AcrossTask) -> Measurement:
    """Jaccard, cosine and band correlation of each pair; consensus of all.

    jaccard(A, B) = |A and B| / |A or B| of the entries changed in bfloat16; `consensus` = share of
    entries changed in every run; `row_correlation` and `column_correlation` compare where the
    changed entries lie (Pearson; `_rank` Spearman). Nulls: independent isotropic noise through the
    bfloat16 gate at each run's density (`_null`, `_z`), one side's rows permuted, Bernoulli.
    """
    options, name = task.options, task.tensor
    base, masks = _masks(task)
    draws = _draws(base, masks, task) if options.draws else []
    pairs = [_pair(name, a, b, masks, draws, _updates(task, a, b), options) for a, b in task.pairs]
    every = torch.stack([m.float() for m in masks.values()]).mean(0)
    shared = _consensus(list(masks.values()))
    nulls = [_consensus(list(draw.values())) for draw in draws]
    row = {
        "tensor": name,
        "consensus": shared,
        "consensus_null": float(np.mean(nulls)) if nulls else math.nan,
        "consensus_z": z_score(shared, nulls),
        "changed_any": float((every > 0).float().mean()),
    }
    vectors = {"consensus_rows": every.mean(1), "consensus_columns": every.mean(0)}
    return Measurement(row, pairs, vectors)


def _consensus(masks: Sequence[Mask]) -> float:
    """Share of entries that every mask has."""
    shared = masks[0].clone()
    for mask in masks[1:]:
        shared &= mask
    return float(shared.float().mean())


def jaccard(a: Mask, b: Mask) -> float:
    """|A and B| / |A or B|; NaN when both are empty."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else math.nan


def jaccard_bernoulli(p: float, q: float) -> float:
    """Expected Jaccard of independent masks of densities p and q: pq / (p + q - pq)."""
    return p * q / (p + q - p * q) if p + q else math.nan


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Pearson's; NaN when either is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 1e-12 else math.nan


def _masks(task: AcrossTask) -> tuple[Tensor, dict[str, Mask]]:
    base, masks = torch.empty(0), {}
    for label, source in task.runs:
        first, second = sides(
            open_checkpoint(task.base), open_checkpoint(source, task.base), task.tensor
        )
        base = first.matrix()
        masks[label] = changed_bf16(base, second.matrix(), task.options.eta)
    return base, masks


def _draws(base: Tensor, masks: Mapping[str, Mask], task: AcrossTask) -> list[dict[str, Mask]]:
    """Masks of independent gated noise at each run's density."""
    found = []
    for draw in range(task.options.draws):
        one = {}
        for label, mask in masks.items():
            rng = generator(task.options.seed, "across", task.tensor, label, draw)
            one[label] = gated_noise(base, int(mask.sum()), rng)[0]
        found.append(one)
    return found


def _updates(task: AcrossTask, a: str, b: str) -> tuple[Tensor, Tensor]:
    sources, updates = dict(task.runs), []
    for label in (a, b):
        first, second = sides(
            open_checkpoint(task.base), open_checkpoint(sources[label], task.base), task.tensor
        )
        updates.append(second.matrix() - first.matrix())
    return updates[0], updates[1]


def _pair(
    name: str,
    a: str,
    b: str,
    masks: Mapping[str, Mask],
    draws: Sequence[Mapping[str, Mask]],
    updates: tuple[Tensor, Tensor],
    options: Options,
) -> Row:
    x, y = masks[a], masks[b]
    p, q = float(x.float().mean()), float(y.float().mean())
    row: Row = {"tensor": name, "tuned_a": a, "tuned_b": b, "jaccard": jaccard(x, y)}
    row["jaccard_expected"] = jaccard_bernoulli(p, q)
    gated = [jaccard(draw[a], draw[b]) for draw in draws]
    others = _jaccard_draws(name, a, b, x, y, options)
    for null, sample in zip(NULLS, (gated, *others), strict=True):
        row[f"jaccard_null{null}"] = float(np.mean(sample)) if sample else math.nan
        row[f"jaccard_z{null}"] = z_score(row["jaccard"], sample)
    for axis, word in ((1, "row"), (0, "column")):
        row |= _bands(x, y, axis, word, [(d[a], d[b]) for d in draws])
    row |= _cosine(*updates, name, a, b, options)
    if "spectral" in options.tiers and min(x.shape) >= 2 and bool(x.any()) and bool(y.any()):
        row |= _subspaces(*updates, options)
    return row


def _jaccard_draws(
    name: str, a: str, b: str, x: Mask, y: Mask, options: Options
) -> tuple[list[float], list[float]]:
    permuted, random = [], []
    for draw in range(options.draws):
        rng = generator(options.seed, "jaccard", name, a, b, draw)
        permuted.append(jaccard(x, y[torch.from_numpy(rng.permutation(len(y)))]))
        first, second = (bernoulli(m.shape, int(m.sum()), rng) for m in (x, y))
        random.append(jaccard(first, second))
    return permuted, random


def _bands(x: Mask, y: Mask, axis: int, word: str, draws: list[tuple[Mask, Mask]]) -> Row:
    def band(mask: Mask) -> Tensor:
        return mask.float().mean(axis)

    observed = correlation(band(x), band(y))
    null = [value for p, q in draws if not math.isnan(value := correlation(band(p), band(q)))]
    return {
        f"{word}_correlation": observed,
        f"{word}_correlation_null": float(np.mean(null)) if null else math.nan,
        f"{word}_correlation_z": z_score(observed, null),
        f"{word}_correlation_rank": correlation(_ranks(band(x)), _ranks(band(y))),
    }


def _ranks(x: Tensor) -> Tensor:
    """Average ranks, so that ties count as in Spearman's."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]


def _cosine(x: Tensor, y: Tensor, name: str, a: str, b: str, options: Options) -> Row:
    def cosine(p: Tensor, q: Tensor) -> float:
        size = float(p.double().norm() * q.double().norm())
        return float((p.double() * q.double()).sum()) / size if size else math.nan

    observed = cosine(x, y)
    null = []
    for draw in range(options.draws if not math.isnan(observed) else 0):
        rng = generator(options.seed, "cosine", name, a, b, draw)
        null.append(cosine(x, y[torch.from_numpy(rng.permutation(len(y)))]))
    return {
        "delta_cosine": observed,
        "delta_cosine_null": float(np.mean(null)) if null else math.nan,
        "delta_cosine_z": z_score(observed, null),
    }


def _subspaces(x: Tensor, y: Tensor, options: Options) -> Row:
    """Mean squared cosine between the leading k directions of two updates; k / n by chance."""
    k = subspace_rank(x.shape, options)
    first, second = svd_exact(x, k), svd_exact(y, k)
    row: Row = {"k": k}
    for side, n in (("left", x.shape[0]), ("right", x.shape[1])):
        product = getattr(first, side).T @ getattr(second, side)
        row[f"delta_subspace_{side}"] = float(product.square().sum()) / k
        row[f"delta_subspace_{side}_expected"] = k / n
    return row
