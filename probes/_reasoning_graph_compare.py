"""Two models' rates side by side: their ratio, its interval over problems, and the null."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from interp._weights.nulls import generator, z_score
from probes._reasoning_graph_controls import MATCHINGS, exchanged
from probes._reasoning_graph_rates import Parts, betas
from probes._reasoning_graph_walks import QUANTITIES, Walks

SAMPLED = "as sampled"
FEW = 30  # problems; with fewer, a percentile bootstrap covers too seldom
_RESAMPLES = 2000


def compare(base: Parts, tuned: Parts, draws: int, seed: int) -> list[dict[str, object]]:
    """One row a quantity and sampling: ratio of mean rates over the problems both have."""
    rng = generator(seed, "compare")
    problems = [p for p in base if p in tuned]
    observed = _both(base, tuned, problems, draws, rng)
    null = []
    for _ in range(draws):
        dealt = {p: exchanged(base[p], tuned[p], rng) for p in problems}
        one, other = ({p: pair[i] for p, pair in dealt.items()} for i in (0, 1))
        null.append(_both(one, other, problems, 1, rng))
    rows: list[dict[str, object]] = []
    for s, sampling in enumerate((SAMPLED, *MATCHINGS)):
        for q, quantity in enumerate(QUANTITIES):
            pair = observed[s, :, :, q]
            ratio, low, high = ratio_of_means(pair[:, 0], pair[:, 1], seed)
            dealt_ratios = [ratio_of_means(d[s, :, 0, q], d[s, :, 1, q], None)[0] for d in null]
            logs = [math.log(r) for r in dealt_ratios if r > 0]
            known = np.isfinite(pair).all(axis=1)
            rows.append(
                {
                    "quantity": quantity,
                    "sampling": sampling,
                    "beta_base": float(pair[known, 0].mean()) if known.any() else math.nan,
                    "beta": float(pair[known, 1].mean()) if known.any() else math.nan,
                    "ratio": ratio,
                    "low": low,
                    "high": high,
                    "ratio_null": math.exp(float(np.mean(logs))) if logs else math.nan,
                    "z": z_score(math.log(ratio) if ratio > 0 else math.nan, logs),
                    "problems": int(known.sum()),
                }
            )
    return rows


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


def difference(base: Parts, tuned: Parts, nodes: int, draws: int, seed: int) -> dict[str, float]:
    """SMAPE of the shares of visits, beside rollouts dealt out anew."""
    rng, nothing = generator(seed, "difference"), Walks.joined([])
    problems = sorted({*base} | {*tuned})
    pairs = [(base.get(p, nothing), tuned.get(p, nothing)) for p in problems]

    def measured(pairs: list[tuple[Walks, Walks]]) -> float:
        visits = [
            np.bincount(np.concatenate([pair[side].node for pair in pairs]), minlength=nodes)
            for side in (0, 1)
        ]
        one, other = (v / max(v.sum(), 1) for v in visits)
        return smape(one, other)

    value = measured(pairs)
    null = [measured([exchanged(*pair, rng) for pair in pairs]) for _ in range(draws)]
    mean = float(np.mean(null)) if null else math.nan
    return {"smape": value, "null": mean, "z": z_score(value, null)}


def smape(one: Float[np.ndarray, " node"], other: Float[np.ndarray, " node"]) -> float:
    """100 / n sum |y - x| / ((|y| + |x|) / 2) over the nodes that either visits, 0 to 200.

    Nodes that neither visits have no term (0 / 0) and do not count: our specification.
    """
    visited = (one > 0) | (other > 0)
    if not visited.any():
        return math.nan
    x, y = one[visited], other[visited]
    return float(100 * np.mean(2 * np.abs(y - x) / (np.abs(y) + np.abs(x))))


def _both(
    base: Parts,
    tuned: Parts,
    problems: list[int],
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "sampling problem side quantity"]:
    """[sampling problem side quantity]: rates as sampled, and matched, mean over draws."""
    found = np.full((1 + len(MATCHINGS), len(problems), 2, len(QUANTITIES)), math.nan)
    for row, p in enumerate(problems):
        parts = (base[p], tuned[p])
        found[0, row] = [betas(part) for part in parts]
        for s, matching in enumerate(MATCHINGS.values(), start=1):
            drawn = [[betas(w) for w in matching(parts, rng)] for _ in range(draws)]
            found[s, row] = np.mean(drawn, axis=0)
    return found
