"""Does the KL on the new task predict forgetting, and better than distances of weights do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import InterpError
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DRAWS = 2000


@dataclass(frozen=True)
class ForgettingFit:
    """Polynomial fits of forgetting, one a predictor, over checkpoints.

    Args:
        forgetting: accuracy lost by each checkpoint.
        predictors: name -> its value at each checkpoint.
        coefficients: name -> of the powers of the standardised predictor, constant first.
        rows: one dict a predictor, as in `table`.
        meta: degree, draws and groups.
    """

    forgetting: list[float]
    predictors: dict[str, list[float]]
    coefficients: dict[str, list[float]]
    rows: list[dict[str, Any]]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a predictor, best first.

        Columns `predictor r2 low high r2_left_out r2_null p checkpoints groups`. `r2_left_out`
        predicts each group from the others and can be negative; `r2_null` is the mean R^2 with the
        predictor shuffled, which a fit of few points reaches by itself; p is how often it reaches
        `r2`.
        """
        import pandas as pd

        return pd.DataFrame(self.rows).sort_values("r2", ascending=False, ignore_index=True)

    def plot(self, predictor: str, ax: Axes | None = None) -> Axes:
        """Forgetting against one predictor, with the fitted curve."""
        if predictor not in self.predictors:
            raise InterpError(f"no predictor {predictor!r}; there are {', '.join(self.predictors)}")
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")[1]
        x = np.asarray(self.predictors[predictor])
        ax.plot(x, self.forgetting, "o")
        grid = np.linspace(x.min(), x.max(), 100)
        ax.plot(grid, _powers((grid - x.mean()) / x.std(), self.meta["degree"])
                @ np.asarray(self.coefficients[predictor]))  # fmt: skip
        r2 = next(row["r2"] for row in self.rows if row["predictor"] == predictor)
        ax.set(xlabel=predictor.replace("$", r"\$"), ylabel="forgetting", title=f"R² = {r2:.2f}")
        ax.spines[["top", "right"]].set_visible(False)
        return ax


def forgetting_fit(
    forgetting: Sequence[float] | np.ndarray,
    predictors: Mapping[str, Sequence[float] | np.ndarray],
    *,
    degree: int = 2,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> ForgettingFit:
    """R^2 of a quadratic fit of forgetting on each predictor over checkpoints, with its interval.

    RL's Razor says that KL(base || tuned) on the new task predicts forgetting and distances of
    weights do not. Checkpoints of one run are no independent evidence, so give runs as groups: the
    bootstrap and the left-out predictions go by them.

    Args:
        forgetting: accuracy lost on the old tasks at each checkpoint (before - after).
        predictors: name -> value at each checkpoint; KL from `divergence` on the new task, norms
            from `interp.diff`.
        degree: of the polynomial.
        groups: the run (or seed) of each checkpoint; by default each is its own.
        seed: of bootstrap and null.

    Raises:
        InterpError: lengths that differ, numbers that are not finite, fewer checkpoints than
            degree + 2, a predictor or forgetting that never varies.

    Examples:
        >>> kl = [0.01, 0.05, 0.1, 0.2, 0.4, 0.5]
        >>> got = probes.forgetting_fit([0.0, 0.02, 0.03, 0.08, 0.2, 0.25], {"forward KL": kl})
        >>> got.table()[["predictor", "r2", "low", "high", "r2_null"]]

    Source: Shenfeld et al. 2025 (RL's Razor, arXiv 2509.04259), who report R^2 alone; interval,
    left-out R^2 and null are ours.
    """
    y = np.asarray(forgetting, dtype=float)
    if len(y) < degree + 2:
        raise InterpError(
            f"{len(y)} checkpoints: a fit of degree {degree} needs at least {degree + 2} to say "
            f"anything"
        )
    if not predictors:
        raise InterpError("no predictors; give at least one")
    labels = [str(i) for i in range(len(y))] if groups is None else [str(g) for g in groups]
    if len(labels) != len(y):
        raise InterpError(f"{len(labels)} groups for {len(y)} checkpoints; give one for each")
    _, index = np.unique(np.asarray(labels), return_inverse=True)
    columns = {"forgetting": y}
    columns |= {name: np.asarray(values, dtype=float) for name, values in predictors.items()}
    for name, values in columns.items():
        if values.shape != y.shape:
            raise InterpError(f"{name!r} has {values.size} values for {len(y)} checkpoints")
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise InterpError(f"{name!r} never varies or is not finite, so there is nothing to fit")
    rows, coefficients = [], {}
    for name in predictors:
        x = (columns[name] - columns[name].mean()) / columns[name].std()
        powers = _powers(x, degree)
        coefficients[name] = (np.linalg.pinv(powers) @ y).tolist()
        rows.append({"predictor": name, **_row(powers, y, index, seed)})
    meta = {"degree": degree, "draws": DRAWS, "groups": int(index.max()) + 1}
    lists = {name: columns[name].tolist() for name in predictors}
    return ForgettingFit(y.tolist(), lists, coefficients, rows, meta)


def _powers(x: np.ndarray, degree: int) -> np.ndarray:
    return np.stack([x**power for power in range(degree + 1)], axis=-1)


def _row(powers: np.ndarray, y: np.ndarray, index: np.ndarray, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n, n_groups = len(y), int(index.max()) + 1
    observed = float(_r2(powers[None], y[None])[0])
    null = np.stack([rng.permutation(n) for _ in range(DRAWS)])
    by_chance = _r2(powers[null], np.broadcast_to(y, (DRAWS, n)))
    low, high = _bootstrap(powers, y, index, rng)
    left_out = np.empty(n)
    for group in range(n_groups):
        out = index == group
        left_out[out] = powers[out] @ (np.linalg.pinv(powers[~out]) @ y[~out])
    total = np.square(y - y.mean()).sum()
    return {
        "r2": observed,
        "low": low,
        "high": high,
        "r2_left_out": float(1 - np.square(y - left_out).sum() / total),
        "r2_null": float(by_chance.mean()),
        "p": float((1 + (by_chance >= observed - 1e-12).sum()) / (1 + DRAWS)),
        "checkpoints": n,
        "groups": n_groups,
    }


def _bootstrap(
    powers: np.ndarray, y: np.ndarray, index: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of R^2 over resampled groups; draws with too few distinct points are left out."""
    n_groups = int(index.max()) + 1
    if n_groups < 2:
        return float("nan"), float("nan")
    members = [np.flatnonzero(index == group) for group in range(n_groups)]
    found = []
    for _ in range(DRAWS):
        drawn = np.concatenate([members[g] for g in rng.integers(0, n_groups, n_groups)])
        if len(np.unique(drawn)) > powers.shape[1] and np.ptp(y[drawn]) > 0:
            found.append(float(_r2(powers[drawn][None], y[drawn][None])[0]))
    if len(found) < DRAWS // 2:
        return float("nan"), float("nan")
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _r2(powers: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draw] of least-squares fits: powers [draw checkpoint power], y [draw checkpoint]."""
    fitted = powers @ (np.linalg.pinv(powers) @ y[..., None])
    residual = np.square(y - fitted[..., 0]).sum(-1)
    return 1 - residual / np.square(y - y.mean(-1, keepdims=True)).sum(-1)
