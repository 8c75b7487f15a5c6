"""Rank-decay rates: how fast visits, degree and betweenness fall from node to node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from interp import InterpError
from interp._weights.nulls import generator, z_score
from probes._reasoning_graph_controls import MATCHINGS, shuffled
from probes._reasoning_graph_walks import QUANTITIES, Walks, measures

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["problem", "model"]
Parts = Mapping[int, Walks]  # the walks of one model, by problem


class Rate(NamedTuple):
    """log10 X(R) = alpha - beta R over ranks R = 1, 2, ... of the nodes with X > 0."""

    beta: float
    r2: float
    nodes: int


def decay_rate(values: Float[np.ndarray, " node"]) -> Rate:
    """Least squares of log10 of the positive values, in falling order, on their rank.

    Fewer than three positive values give NaN: two always lie on a line. Equal values give 0, with
    R^2 NaN, because there is nothing to explain.
    """
    kept = np.sort(values[values > 0])[::-1]
    n = len(kept)
    if n < 3:
        return Rate(float("nan"), float("nan"), n)
    y = np.log10(kept)
    x = np.arange(n) - (n - 1) / 2
    y = y - y.mean()
    total = float(y @ y)
    if total < 1e-24 * n:
        return Rate(0.0, float("nan"), n)
    slope = float(x @ y) / float(x @ x)
    return Rate(-slope, min(slope**2 * float(x @ x) / total, 1.0), n)


def rates_of(walks: Walks) -> dict[str, Rate]:
    """The rate of each quantity in the graph of these walks."""
    return {name: decay_rate(values) for name, values in measures(walks).items()}


def betas(walks: Walks) -> np.ndarray:
    """The three rates alone, in the order of QUANTITIES."""
    found = rates_of(walks)
    return np.array([found[name].beta for name in QUANTITIES])


def rate_table(
    graphs: Mapping[str, Parts], problems: list[str], per: Unit, draws: int, seed: int
) -> pd.DataFrame:
    """`ReasoningGraph.rates` for walks by model and problem."""
    import pandas as pd

    if per not in ("problem", "model"):
        raise InterpError(f"per={per!r}: expected 'problem' or 'model'")
    rng = generator(seed, "rates", per)
    matched = {name: _matched(graphs, name, per, draws, rng) for name in MATCHINGS}
    rows, unknown = [], np.full(len(QUANTITIES), math.nan)
    for model, parts in graphs.items():
        groups: dict[int | None, list[Walks]] = {p: [walks] for p, walks in parts.items()}
        if per == "model":
            groups = {None: [*parts.values()]}
        for problem, group in groups.items():
            walks, key = Walks.joined(group), (model, problem)
            null = [betas(Walks.joined([shuffled(w, rng) for w in group])) for _ in range(draws)]
            for q, (quantity, rate) in enumerate(rates_of(walks).items()):
                # Shuffling keeps the visits, so it says nothing about their rate.
                values = [] if quantity == "visits" else [d[q] for d in null if d[q] == d[q]]
                rows.append(
                    {
                        "model": model,
                        "problem": None if problem is None else problems[problem],
                        "quantity": quantity,
                        **rate._asdict(),
                        "rollouts": len(walks),
                        "visits": len(walks.node),
                        "beta_null": float(np.mean(values)) if values else math.nan,
                        "beta_z": z_score(rate.beta, values),
                    }
                    | {f"beta_{name}": m.get(key, unknown)[q] for name, m in matched.items()}
                )
    return pd.DataFrame(rows)


def _matched(
    graphs: Mapping[str, Parts], matching: str, per: Unit, draws: int, rng: np.random.Generator
) -> dict[tuple[str, int | None], np.ndarray]:
    """Mean rates of each graph over draws of matched subsets."""
    total: dict[tuple[str, int | None], list[np.ndarray]] = {}
    for _ in range(draws):
        drawn: dict[tuple[str, int | None], list[Walks]] = {}
        for problem in sorted({p for parts in graphs.values() for p in parts}):
            having = [model for model, parts in graphs.items() if problem in parts]
            found = MATCHINGS[matching]([graphs[model][problem] for model in having], rng)
            for model, walks in zip(having, found, strict=True):
                key = (model, problem if per == "problem" else None)
                drawn.setdefault(key, []).append(walks)
        for key, parts in drawn.items():
            total.setdefault(key, []).append(betas(Walks.joined(parts)))
    return {key: np.mean(values, axis=0) for key, values in total.items()}
