"""The statistics of who forgets: of tasks, of two checkpoints side by side, of writing styles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp._estimate import FEW, Estimate, cluster_mean
from probes import forgetting_fit, task_forgetting

if TYPE_CHECKING:
    import pandas as pd

    from studies._who_forgets_checkpoints import Checkpoint

_DRAWS = 2000
NO_STYLE = "none of them"


def known_tasks(base: pd.DataFrame, chance: Mapping[str, float], seed: int) -> pd.DataFrame:
    """Which tasks the base can do: `task items base base_low base_high chance kept`.

    Kept is what it does above chance, by the interval over groups; the rest cannot be forgotten.
    """
    import pandas as pd

    rows = []
    for task, group in base.groupby("task", sort=False):
        found = cluster_mean(group["right"].astype(float).tolist(), group["group"].tolist(), seed)
        row = {"task": task, "items": found.n, "base": found.mean}
        row |= {"base_low": found.low, "base_high": found.high, "chance": chance[str(task)]}
        rows.append(row | {"kept": bool(found.low > chance[str(task)])})
    return pd.DataFrame(rows)


def lost(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Questions paired: `item task group accuracy nats`, what was lost of each (before - after)."""
    both = before.merge(after[["item", "right", "logprob"]], on="item", suffixes=("", "_after"))
    both["accuracy"] = both["right"].astype(float) - both["right_after"].astype(float)
    both["nats"] = both["logprob"] - both["logprob_after"]
    return both


def mean_over_tasks(
    values: Sequence[float] | np.ndarray,
    tasks: Sequence[object],
    groups: Sequence[object],
    seed: int,
) -> Estimate:
    """The mean over tasks of the means over their items, every task counting alike.

    The interval is a percentile bootstrap over groups, drawn once for all tasks: a person is in
    several. With fewer than thirty groups there is none.
    """
    data = np.asarray(values, dtype=float)
    _, task = np.unique(np.asarray(tasks, dtype=str), return_inverse=True)
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    shape = (int(group.max()) + 1, int(task.max()) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (group, task), data)
    np.add.at(counts, (group, task), 1.0)
    mean = float((sums.sum(0) / counts.sum(0)).mean())
    low = high = math.nan
    if shape[0] >= FEW:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=_DRAWS)
        with np.errstate(invalid="ignore"):  # a small task may be missing from a draw
            means = np.nanmean((drawn @ sums) / (drawn @ counts), axis=1)
        low, high = (float(q) for q in np.percentile(means, [2.5, 97.5]))
    return Estimate(mean, low, high, shape[0], len(data))


def by_task(
    before: pd.DataFrame, after: pd.DataFrame, chance: Mapping[str, float], seed: int
) -> pd.DataFrame:
    """One row a task: `probes.task_forgetting`'s columns, and `nats` lost an answer."""
    pairs = lost(before, after)
    sides: list[dict[str, list[bool]]] = [{}, {}]
    groups, nats = {}, {}
    for task, rows in pairs.groupby("task", sort=False):
        sides[0][str(task)], sides[1][str(task)] = list(rows["right"]), list(rows["right_after"])
        groups[str(task)] = list(rows["group"])
        nats[str(task)] = cluster_mean(list(rows["nats"]), groups[str(task)], seed, bounds=None)
    found = task_forgetting(
        sides[0], sides[1], chance={t: chance[t] for t in groups}, groups=groups, seed=seed
    ).table()
    for name in ("mean", "low", "high"):
        column = "nats" if name == "mean" else f"nats_{name}"
        found[column] = [getattr(nats[task], name) for task in found["task"]]
    return found


def forgotten(pairs: pd.DataFrame, seed: int) -> dict[str, float]:
    """What is lost over all tasks, in accuracy (-FM), in nats, and in nats of what was right."""
    row: dict[str, float] = {}
    right = pairs[pairs["right"]]
    for name, rows, column in (
        ("accuracy", pairs, "accuracy"), ("nats", pairs, "nats"), ("nats_known", right, "nats")
    ):  # fmt: skip
        row |= columns(f"lost_{name}", mean_over_tasks(
            rows[column].to_numpy(), list(rows["task"]), list(rows["group"]), seed
        ))  # fmt: skip
    return row


def columns(name: str, found: Estimate) -> dict[str, float]:
    """An estimate as three columns."""
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def accuracy(written: pd.DataFrame, seed: int) -> Estimate:
    """Share of the sampled solutions that are right, over problems."""
    return cluster_mean(written["solved"].astype(float).tolist(), written["group"].tolist(), seed)


def gain(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> Estimate:
    """Accuracy after minus before, problem by problem."""
    sides = [w.astype({"solved": float}).groupby("group")["solved"].mean() for w in (before, after)]
    paired = sides[1] - sides[0]
    return cluster_mean(paired.tolist(), paired.index.tolist(), seed, bounds=(-1.0, 1.0))


@dataclass(frozen=True)
class Measured:
    """What was measured of every checkpoint, by its name; the base is "base"."""

    answers: dict[str, pd.DataFrame]
    written: dict[str, pd.DataFrame]
    seed: int

    def beside(self, one: Checkpoint, other: Checkpoint, why: str) -> dict[str, Any]:
        """Two checkpoints: accuracy on the new task and what was lost, one minus the other."""
        base, seed = self.answers["base"], self.seed
        here, there = (lost(base, self.answers[c.name]) for c in (one, other))
        both = here.merge(there[["item", "accuracy", "nats"]], on="item", suffixes=("", "_other"))
        row: dict[str, Any] = {
            "why": why, "one": one.name, "other": other.name, "seed": one.seed,
            "method": one.method, "than": other.method,
        }  # fmt: skip
        for name, c in (("one", one), ("other", other)):
            row[f"new_{name}"] = accuracy(self.written[c.name], seed).mean
            row[f"nats_{name}"] = forgotten(lost(base, self.answers[c.name]), seed)["lost_nats"]
        row |= columns("new", gain(self.written[other.name], self.written[one.name], seed))
        for name in ("accuracy", "nats"):
            apart = (both[name] - both[f"{name}_other"]).to_numpy()
            found = mean_over_tasks(apart, list(both["task"]), list(both["group"]), seed)
            row |= columns(name, found)
        return row

    def nearest(self, one: Checkpoint, others: Sequence[Checkpoint]) -> Checkpoint:
        """The checkpoint of nearly the same accuracy on the new task."""
        at = accuracy(self.written[one.name], self.seed).mean
        return min(others, key=lambda c: abs(accuracy(self.written[c.name], self.seed).mean - at))


def beyond_noise(mine: pd.DataFrame, draws: Sequence[pd.DataFrame], seed: int) -> dict[str, float]:
    """What noise loses (mean of the draws, `least`, `most`), and what is lost beyond it."""
    row: dict[str, float] = {}
    for name in ("nats", "accuracy"):
        each = [d[name].to_numpy() for d in draws]
        tasks, groups = list(mine["task"]), list(mine["group"])
        noise = sum(each) / len(each)
        row |= columns(f"noise_{name}", mean_over_tasks(noise, tasks, groups, seed))
        alone = [mean_over_tasks(one, tasks, groups, seed).mean for one in each]
        row |= {f"noise_{name}_least": min(alone), f"noise_{name}_most": max(alone)}
        beyond = mine[name].to_numpy() - noise
        row |= columns(f"beyond_{name}", mean_over_tasks(beyond, tasks, groups, seed))
    return row


PREDICTORS = {
    "forward": "forward KL", "reverse": "reverse KL", "own_reverse": "reverse KL, own samples",
    "tv": "total variation", "l2": "weights, L2", "l1": "weights, L1",
    "spectral": "weights, spectral", "nss": "weights, NSS", "changed": "weights changed in bf16",
    "gain": "gain on the new task", "step": "optimizer steps",
}  # fmt: skip
WEIGHTS = ("l2", "l1", "spectral", "nss", "changed")


def fits(checkpoints: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Nats lost, fitted on each predictor over all checkpoints; no rows where nothing varies.

    Gain and steps are controls: whatever grows along a training predicts what grows along it.
    """
    import pandas as pd

    trained = checkpoints[checkpoints["run"] != "base"]
    predictors = {
        label: trained[name].to_numpy(dtype=float)
        for name, label in PREDICTORS.items()
        if name in trained and trained[name].notna().all() and np.ptp(trained[name]) > 0
    }
    lost = trained["lost_nats"].to_numpy(dtype=float)
    if len(trained) < 4 or not predictors or np.ptp(lost) == 0:
        return pd.DataFrame()
    return forgetting_fit(lost, predictors, groups=list(trained["run"]), seed=seed).table()


def styles(written: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """One row a style: its `share` of the solutions and the `accuracy` of those, with intervals."""
    names = [*sorted({s for s in written["style"] if s}), NO_STYLE]
    named = written["style"].replace("", NO_STYLE)
    rows: list[dict[str, Any]] = []
    for style in names:
        chosen = named == style
        share = cluster_mean(chosen.astype(float).tolist(), written["group"].tolist(), seed)
        row: dict[str, Any] = {"style": style, "solutions": int(chosen.sum())}
        row |= columns("share", share)
        if chosen.any():
            row |= columns("accuracy", accuracy(written[chosen], seed))
        rows.append(row)
    return rows


def style_entropy(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> dict[str, float]:
    """Entropy in nats of the shares of styles after, and its change, bootstrapped over problems."""
    import pandas as pd

    names = sorted(set(before["style"]) | set(after["style"]))
    counts = [
        pd.crosstab(w["group"], w["style"]).reindex(columns=names, fill_value=0).to_numpy(float)
        for w in (before, after)
    ]
    n = len(counts[0])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS)
    now = [_entropy(c.sum(0)) for c in counts]
    likely = [_entropy(drawn @ c) for c in counts]
    row: dict[str, float] = {}
    for name, value, draws in (
        ("entropy", now[1], likely[1]), ("entropy_change", now[1] - now[0], likely[1] - likely[0])
    ):  # fmt: skip
        low, high = np.percentile(draws, [2.5, 97.5])
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _entropy(counts: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * -np.log(shares), 0.0)
    return np.asarray(terms.sum(-1))


def rank_correlation(
    one: Sequence[float | int], other: Sequence[float | int]
) -> tuple[float, float]:
    """Spearman's rho and its exact one-sided p over all orders; few values give no small p."""
    from itertools import permutations

    from scipy.stats import rankdata

    a, b = rankdata(one), rankdata(other)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    rho = float(np.corrcoef(a, b)[0, 1])
    if len(a) > 8:
        from scipy.stats import spearmanr

        return rho, float(spearmanr(a, b, alternative="greater").pvalue)
    chance = [float(np.corrcoef(a, p)[0, 1]) for p in permutations(b)]
    return rho, float(np.mean([c >= rho - 1e-12 for c in chance]))


def margin_of_fit(
    y: Sequence[float | int],
    one: Sequence[float | int],
    other: Sequence[float | int],
    groups: Sequence[str],
) -> tuple[float, float, float]:
    """R^2 of a quadratic fit on one predictor minus that on another, least and most of it.

    Least and most are over leaving each run out in turn: what no single run may decide.
    """
    lost, a, b = (np.asarray(v, dtype=float) for v in (y, one, other))
    runs = np.asarray(groups)

    def difference(kept: np.ndarray) -> float:
        return _r2(a[kept], lost[kept]) - _r2(b[kept], lost[kept])

    whole = difference(np.ones(len(lost), dtype=bool))
    left = [difference(runs != run) for run in np.unique(runs) if (runs != run).sum() >= 4]
    return whole, min(left, default=math.nan), max(left, default=math.nan)


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    fitted = np.polynomial.Polynomial.fit(x, y, 2)(x)
    return float(1 - np.square(y - fitted).sum() / np.square(y - y.mean()).sum())
