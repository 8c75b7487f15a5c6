"""The ratio of two models' means over the same problems, with its interval."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

FEW = 30  # problems; with fewer, a percentile bootstrap covers too seldom
_RESAMPLES = 2000


def ratio_of_means(
    base: Float[np.ndarray, " problem"], tuned: Float[np.ndarray, " problem"], seed: int | None
) -> tuple[float, float, float]:
    """Mean of `tuned` over mean of `base`, with its 95 % interval over problems.

    A percentile bootstrap over problems (2000 draws); below thirty problems Student's interval of
    the jackknifed log ratio. Problems in which either value is NaN are left out. NaN where a mean
    is 0; no interval from fewer than 3 problems.

    Args:
        base: one value a problem.
        tuned: the same problems.
        seed: of the bootstrap; None for the ratio alone.
    """
    known = np.isfinite(base) & np.isfinite(tuned)
    base, tuned = base[known], tuned[known]
    n = len(base)
    if n == 0 or base.mean() <= 0 or tuned.mean() <= 0:
        return math.nan, math.nan, math.nan
    ratio = float(tuned.mean() / base.mean())
    if seed is None or n < 3:
        return ratio, math.nan, math.nan
    if n >= FEW:
        pick = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample of nothing but zeros
            resampled = tuned[pick].mean(1) / base[pick].mean(1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        return ratio, float(low), float(high)
    from scipy.stats import t

    with np.errstate(divide="ignore", invalid="ignore"):  # one problem has all there is
        without = (tuned.sum() - tuned) / (base.sum() - base)
    if not (np.isfinite(without) & (without > 0)).all():
        return ratio, math.nan, math.nan
    logs = np.log(without)
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    half = float(t.ppf(0.975, n - 1)) * error
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)
