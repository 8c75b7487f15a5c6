"""Intervals: a mean over clusters (people, texts, problems), and a share of trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp._errors import InterpError


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and how many clusters and observations it rests on."""

    mean: float
    low: float
    high: float
    clusters: int
    n: int

    def __str__(self) -> str:
        if self.low != self.low:
            return f"{self.mean:.2f} (one group, no interval)"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


FEW = 30  # clusters; with fewer, a percentile bootstrap covers too seldom


def cluster_mean(
    values: Sequence[float],
    clusters: Sequence[object],
    seed: int = 0,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Estimate:
    """The mean over observations, with clusters (people) and not rows as the evidence.

    A percentile bootstrap over clusters (2000 draws). With fewer than thirty clusters, or none
    that differ, it would be too narrow (zero, at worst); then the interval is Clopper and
    Pearson's for as many trials as there are clusters, which is conservative for any quantity
    within bounds, and for an unbounded one Student's of the ratio of sums to counts.

    Args:
        values: one number an observation.
        clusters: the cluster of each.
        seed: of the bootstrap.
        bounds: the least and greatest value possible (infinite where there is none), or None.

    Raises:
        InterpError: no observations.

    Examples:
        >>> cluster_mean([1.0, 0.0, 1.0, 1.0], ["ann", "ann", "bo", "cy"]).mean
        0.75
    """
    if len(values) == 0:
        raise InterpError("no observations, so no mean; are there any items of this kind?")
    data = np.asarray(values, dtype=float)
    _, index = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    counts = np.bincount(index).astype(float)
    sums = np.bincount(index, weights=data)
    mean = float(data.mean())
    if len(counts) < 2:
        return Estimate(mean, float("nan"), float("nan"), len(counts), len(data))
    if len(counts) >= FEW and np.ptp(data) > 0:
        low, high = _bootstrap(sums, counts, seed)
    elif bounds is not None and np.isfinite(bounds).all():
        low, high = _exact(mean, len(counts), bounds)
    else:
        low, high = _student(mean, sums, counts)
        low, high = (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))
    return Estimate(mean, low, high, len(counts), len(data))


def share(hits: int, trials: int) -> Estimate:
    """A share of independent trials with Clopper and Pearson's exact 95 % interval.

    Raises:
        InterpError: no trials.

    Examples:
        >>> print(share(0, 10))
        0.00 [0.00, 0.31]
    """
    if trials < 1:
        raise InterpError("no observations, so no share; are there any items of this kind?")
    low, high = _exact(hits / trials, trials, (0.0, 1.0))
    return Estimate(hits / trials, low, high, trials, trials)


def _bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _exact(mean: float, trials: int, bounds: tuple[float, float]) -> tuple[float, float]:
    from scipy.stats import beta

    width = bounds[1] - bounds[0]
    hits = trials * (mean - bounds[0]) / width
    low = 0.0 if hits <= 0 else float(beta.ppf(0.025, hits, trials - hits + 1))
    high = 1.0 if hits >= trials else float(beta.ppf(0.975, hits + 1, trials - hits))
    return bounds[0] + width * low, bounds[0] + width * high


def _student(mean: float, sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Of a ratio of sums, linearised; of clusters of equal size it is that of their means."""
    from scipy.stats import t

    n = len(counts)
    residuals = (sums - mean * counts) / counts.mean()
    half = float(t.ppf(0.975, n - 1) * np.sqrt(np.square(residuals).sum() / (n - 1) / n))
    return mean - half, mean + half
