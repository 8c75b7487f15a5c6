"""Two models' rates side by side: their ratio, its interval over problems, and the null."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from interp._weights.nulls import generator, z_score
from probes._ratio import ratio_of_means
from probes._reasoning_graph_controls import MATCHINGS, exchanged
from probes._reasoning_graph_rates import Parts, betas
from probes._reasoning_graph_walks import QUANTITIES, Walks

SAMPLED = "as sampled"


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
