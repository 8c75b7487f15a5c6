"""What each way of tuning gained and lost, over problems or people and over trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp._estimate import Estimate, cluster_mean
from studies._tune_ways import WAYS
from studies._who_forgets_measures import columns, mean_over_tasks

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Claim:
    """One way beside another: what someone expects of it.

    Args:
        source: who says it.
        way: the way that is to do better.
        than: its control.
        more: expected is that it gains more; else that it loses less.
    """

    source: str
    way: str
    than: str
    more: bool

    @property
    def said(self) -> str:
        """As a sentence."""
        does = "learns more" if self.more else "forgets less"
        return f"{self.way} {does} than {self.than}"


CLAIMS = (
    Claim("LIFT", "principal", "random", True),
    Claim("LIFT", "principal", "random", False),
    Claim("LIFT", "principal", "magnitude", True),
    Claim("control", "magnitude", "random", True),
    Claim("LIFT", "principal", "full", True),
    Claim("LIFT", "principal", "full", False),
    Claim("LIFT", "principal", "LoRA", False),
    Claim("LT-SFT", "lottery ticket", "random", True),
    Claim("2511.08567", "consensus", "random", True),
    Claim("2511.08567", "safe", "random", True),
    Claim("2511.08567", "safe", "principal", False),
    Claim("HFT", "half in rounds", "full", False),
    Claim("Scalpel", "middle MLPs frozen", "full", False),
    Claim("Scalpel", "q and k", "full", False),
    Claim("LocFT-BF", "one module", "full", False),
    Claim("CorDA", "CorDA", "LoRA", False),
    Claim("CorDA", "CorDA", "LoRA", True),
    Claim("DRIFT", "prior", "random", True),
    Claim("DRIFT", "prior", "random prior", True),
)


def summarise(
    pairs: pd.DataFrame, new: pd.DataFrame, costs: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """A row a way: gain on the new task, loss on the old ones, and the cost.

    Args:
        pairs: old questions, `way seed item task group right accuracy nats` lost.
        new: solutions, `way seed problem group gain`.
        costs: trainings, `way seed trained state bytes lr`.
        seed: of bootstraps.
    """
    import pandas as pd

    rows = []
    for way, part in costs.groupby("way", sort=False):
        mine, learned = pairs[pairs["way"] == way], new[new["way"] == way]
        row = {"way": way, "matched": WAYS[str(way)].matched, "trained": int(part["trained"].max())}
        row |= {"state bytes": int(part["state bytes"].max()), "lr": float(part["lr"].iloc[0])}
        row |= columns("gain", gained(learned, "gain", seed))
        row |= _range("gain", learned.groupby("seed")["gain"].mean())
        row |= columns("lost_nats", forgotten(mine, "nats", seed))
        row |= _range("lost_nats", _by_task(mine, "nats"))
        row |= columns("lost_accuracy", forgotten(mine, "accuracy", seed))
        known = mine[mine["right"]]
        row |= columns("lost_nats_known", forgotten(known, "nats", seed))
        rows.append(row | {"seeds": learned["seed"].nunique()})
    return pd.DataFrame(rows)


def claims(pairs: pd.DataFrame, new: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row a claim: `claim source measure difference low high told`.

    Told is "held" where the interval is on the claimed side of 0, "reversed" on the other.
    """
    import pandas as pd

    there, rows = set(new["way"]), []
    for claim in CLAIMS:
        if not {claim.way, claim.than} <= there:
            continue
        more, lost = against(pairs, new, claim.way, claim.than, seed)
        found = more if claim.more else lost
        good = (found.low, found.high) if claim.more else (-found.high, -found.low)
        told = "held" if good[0] > 0 else "reversed" if good[1] < 0 else "not told apart"
        measure = "gained, accuracy" if claim.more else "lost, nats an answer"
        rows.append(
            {"claim": claim.said, "source": claim.source, "measure": measure,
             "difference": found.mean, "low": found.low, "high": found.high, "told": told}
        )  # fmt: skip
    names = ["claim", "source", "measure", "difference", "low", "high", "told"]
    return pd.DataFrame(rows, columns=names)


def against(
    pairs: pd.DataFrame, new: pd.DataFrame, one: str, other: str, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """How much more one way gains than another, and loses, question by question."""
    key = ["seed", "item"]
    a, b = (pairs[pairs["way"] == way].set_index(key) for way in (one, other))
    more = a.assign(apart=a["nats"] - b["nats"].reindex(a.index)).reset_index()
    x, y = (new[new["way"] == way].reset_index(drop=True) for way in (one, other))
    gains = x.assign(apart=x["gain"] - y["gain"])
    return gained(gains, "apart", seed), forgotten(more, "apart", seed)


def gained(solutions: pd.DataFrame, column: str, seed: int) -> Estimate:
    """A mean over sampled solutions; intervals over problems, and over trainings."""
    values, groups = solutions[column].astype(float), solutions["group"]
    found = crossed(values.to_numpy(), [""] * len(values), list(groups), list(solutions["seed"]))
    if found.high - found.low > 0:
        return Estimate(
            found.mean, max(-1.0, found.low), min(1.0, found.high), found.clusters, found.n
        )
    return cluster_mean(values.tolist(), groups.tolist(), seed, bounds=(-1.0, 1.0))


def forgotten(questions: pd.DataFrame, column: str, seed: int) -> Estimate:
    """A mean over old tasks, all alike; intervals over people and words, and over trainings."""
    values, told = questions[column].to_numpy(dtype=float), questions["seed"]
    tasks, groups = list(questions["task"]), list(questions["group"])
    if told.nunique() > 1:
        return crossed(values, tasks, groups, list(told))
    return mean_over_tasks(values, tasks, groups, seed)


def crossed(
    values: Sequence[float] | np.ndarray,
    tasks: Sequence[object],
    groups: Sequence[object],
    runs: Sequence[object],
) -> Estimate:
    """The mean over tasks of their items' means, with an interval over groups and over runs.

    Runs (trainings) meet the same groups (problems, people), so both vary the mean: its variance
    is estimated by the sum of the variance of group means / G (linearised over tasks) and of run
    means / R, and the interval is Student's with Satterthwaite's degrees of freedom. What varies
    with both at once is counted twice: with few runs the interval is rather too wide. With one run
    it tells of groups alone.

    Args:
        values: one an observation.
        tasks: every task counts alike.
        groups: whose observations vary together, in all tasks and runs.
        runs: a training each.
    """
    from scipy.stats import t

    data = np.asarray(values, dtype=float)
    task, group, run = (np.unique(np.asarray(k, dtype=str), return_inverse=True)[1]
                        for k in (tasks, groups, runs))  # fmt: skip
    n_tasks, n_groups, n_runs = (int(k.max()) + 1 for k in (task, group, run))
    size = np.bincount(task).astype(float)
    means = np.bincount(task, weights=data) / size
    # What each group adds to the mean's deviation: its observations less their tasks' means.
    parts = np.bincount(group, weights=(data - means[task]) / size[task]) / n_tasks
    variances, freedom = [], []
    if n_groups > 1:
        variances.append(float(np.square(parts).sum() * n_groups / (n_groups - 1)))
        freedom.append(n_groups - 1)
    if n_runs > 1:
        of_runs = [_mean_of_means(data[run == r], task[run == r]) for r in range(n_runs)]
        variances.append(float(np.var(of_runs, ddof=1)) / n_runs)
        freedom.append(n_runs - 1)
    mean, total = float(means.mean()), sum(variances)
    if not variances:
        return Estimate(mean, float("nan"), float("nan"), n_groups, len(data))
    if total == 0:
        return Estimate(mean, mean, mean, n_groups, len(data))
    degrees = total**2 / sum(v**2 / d for v, d in zip(variances, freedom, strict=True))
    half = float(t.ppf(0.975, degrees)) * total**0.5
    return Estimate(mean, mean - half, mean + half, n_groups, len(data))


def _mean_of_means(values: np.ndarray, tasks: np.ndarray) -> float:
    return float(np.mean([values[tasks == task].mean() for task in np.unique(tasks)]))


def _by_task(pairs: pd.DataFrame, column: str) -> pd.Series:
    """A training's mean over tasks."""
    return pairs.groupby(["seed", "task"])[column].mean().groupby("seed").mean()


def _range(name: str, of_seeds: pd.Series) -> dict[str, float]:
    return {f"{name}_least": float(of_seeds.min()), f"{name}_most": float(of_seeds.max())}
