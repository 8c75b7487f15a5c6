"""Forgetting as accuracy lost: per task with intervals, flips both ways, gap and ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import InterpError
from interp._estimate import Estimate, cluster_mean, share
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd

Right = Mapping[str, Sequence[bool | int] | np.ndarray]


@dataclass(frozen=True)
class TaskChange:
    """One old task before and after training on a new one.

    Args:
        task: its name.
        before: accuracy before.
        after: accuracy after.
        change: after - before, paired by item; below zero is forgetting.
        negative_flips: share of items that were right and are wrong.
        positive_flips: share of items that were wrong and are right.
        p: of as unequal flips by chance, if both ways were equally likely (exact McNemar).
        gap: after - chance; near zero the task is gone.
        ratio: (before - after) / (before - chance), the share of what was above chance that is
            lost; NaN, also its interval, where before is not clearly above chance.
        chance: accuracy of guessing.
    """

    task: str
    before: Estimate
    after: Estimate
    change: Estimate
    negative_flips: Estimate
    positive_flips: Estimate
    p: float
    gap: Estimate
    ratio: Estimate
    chance: float

    def row(self) -> dict[str, Any]:
        """As one row of a table: each estimate with `_low` and `_high`."""
        row: dict[str, Any] = {"task": self.task, "items": self.before.n}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                row |= {name: value["mean"], f"{name}_low": value["low"]}
                row[f"{name}_high"] = value["high"]
        return row | {"p": self.p, "chance": self.chance}


@dataclass(frozen=True)
class TaskForgetting:
    """Several old tasks; `tasks["facts"].ratio`, or all in one table."""

    tasks: dict[str, TaskChange]

    __repr__ = brief

    @property
    def mean_change(self) -> float:
        """Mean over tasks of after - before: forgetting measure FM of two stages, 0 for none."""
        return float(np.mean([task.change.mean for task in self.tasks.values()]))

    def table(self) -> pd.DataFrame:
        """One row a task; estimates `before after change negative_flips positive_flips gap ratio`.

        Each has `_low` and `_high`; besides `task items p chance`.
        """
        import pandas as pd

        return pd.DataFrame([task.row() for task in self.tasks.values()])


def task_forgetting(
    before: Right,
    after: Right,
    *,
    chance: float | Mapping[str, float] = 0.0,
    groups: Mapping[str, Sequence[object]] | None = None,
    seed: int = 0,
) -> TaskForgetting:
    """What each old task lost: accuracy before and after, flips, forget gap and forget ratio.

    Items are paired, so two models of equal accuracy can still show flips both ways. Intervals are
    exact where items are independent, and rest on groups (people, problems) where those are given.

    Args:
        before: task -> whether each item was right before: True and False, or 1 and 0.
        after: the same items after.
        chance: accuracy of guessing, one for all or by task (0.5 for two options).
        groups: task -> the group of each item.
        seed: of the bootstraps.

    Raises:
        InterpError: other tasks or other numbers of items before and after, no items, anything but
            right and wrong (a probability cannot flip), groups or chances that do not fit.

    Examples:
        >>> got = probes.task_forgetting(
        ...     {"facts": [True, True, True, False]},
        ...     {"facts": [True, False, True, True]},
        ...     groups={"facts": ["Ann", "Ann", "Ben", "Cid"]},
        ... )
        >>> got.table()[["task", "before", "after", "negative_flips", "positive_flips"]]

    Source: forget gap and ratio are "Unforgettable generalization" (2409.02228), from a summary,
    with chance in place of their 0.5; negative flips are Yan et al. 2021 (arXiv 2011.09161).
    """
    first, second = outcomes("before", before), outcomes("after", after)
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))
        raise InterpError(f"{odd[0]!r} was measured on one side only; give the same tasks twice")
    if not first:
        raise InterpError("no tasks; give at least one")
    tasks = {}
    for task, old in first.items():
        new = second[task]
        if old.shape != new.shape:
            raise InterpError(
                f"task {task!r} has {old.size} items before and {new.size} after; give the same "
                f"items in the same order"
            )
        guess = by_task("chance", chance, task) if isinstance(chance, Mapping) else chance
        members = None if groups is None else _members(groups, task, len(old))
        tasks[task] = _task(task, old, new, float(guess), members, seed)
    return TaskForgetting(tasks)


def outcomes(name: str, given: Any) -> dict[str, np.ndarray]:
    """Task -> right and wrong of each item as 1 and 0.

    Raises:
        InterpError: no mapping, or a task with anything but a list of right and wrong.
    """
    if not isinstance(given, Mapping):
        raise InterpError(
            f"{name} is a {type(given).__name__}; expected task -> right or wrong of each item, "
            f"such as {{'facts': [True, False]}}"
        )
    found = {}
    for task, values in given.items():
        hits = np.asarray(values.tolist() if hasattr(values, "tolist") else values)
        numbers = hits.dtype.kind in "biuf" or hits.size == 0
        if hits.ndim != 1 or not numbers or not np.isin(hits, (0, 1)).all():
            raise InterpError(
                f"task {task!r}, {name}: expected a list with True or False (or 1 and 0) for each "
                f"item, not {str(values)[:60]}; of probabilities take which are above a threshold"
            )
        found[task] = hits.astype(float)
    return found


def by_task(name: str, given: Any, task: str) -> Any:
    """One task's value in a mapping.

    Raises:
        InterpError: no mapping, or none for this task.
    """
    if not isinstance(given, Mapping):
        raise InterpError(
            f"{name} is a {type(given).__name__}; expected a mapping by task, such as "
            f"{{{task!r}: ...}}"
        )
    if task not in given:
        raise InterpError(f"{name} has nothing for task {task!r}; it has {', '.join(given)}")
    return given[task]


def _members(groups: Any, task: str, n: int) -> list[object]:
    members = list(by_task("groups", groups, task))
    if len(members) != n:
        raise InterpError(f"task {task!r} has {len(members)} groups for {n} items; one for each")
    return members


def _task(
    task: str,
    old: np.ndarray,
    new: np.ndarray,
    chance: float,
    groups: list[object] | None,
    seed: int,
) -> TaskChange:
    from scipy.stats import binomtest

    def rate(hits: np.ndarray) -> Estimate:
        if groups is None:
            return share(int(hits.sum()), len(hits))
        return cluster_mean(hits.astype(float).tolist(), groups, seed)

    members: list[object] = list(range(len(old))) if groups is None else groups
    lost, won = old > new, new > old
    flips = int(lost.sum() + won.sum())
    after = rate(new)
    return TaskChange(
        task=task,
        before=rate(old),
        after=after,
        change=cluster_mean((new - old).tolist(), members, seed, bounds=(-1.0, 1.0)),
        negative_flips=rate(lost),
        positive_flips=rate(won),
        p=float(binomtest(int(lost.sum()), flips).pvalue) if flips else 1.0,
        gap=Estimate(
            after.mean - chance, after.low - chance, after.high - chance, after.clusters, after.n
        ),
        ratio=_ratio(old, new, members, chance, seed),
        chance=chance,
    )


def _ratio(
    old: np.ndarray, new: np.ndarray, groups: list[object], chance: float, seed: int
) -> Estimate:
    """(before - after) / (before - chance) with a percentile bootstrap over groups."""
    _, index = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    counts = np.bincount(index).astype(float)
    sums = np.stack([np.bincount(index, weights=side) for side in (old, new)])
    room = old.mean() - chance
    value = float((old.mean() - new.mean()) / room) if room > 0 else math.nan
    draws = np.random.default_rng(seed).integers(0, len(counts), (2000, len(counts)))
    first, second = sums[:, draws].sum(-1) / counts[draws].sum(-1)
    low, high = math.nan, math.nan
    if len(counts) > 1 and room > 0 and float(np.mean(first <= chance)) < 0.025:
        kept = first > chance
        ratios = (first - second)[kept] / (first - chance)[kept]
        low, high = (float(q) for q in np.percentile(ratios, [2.5, 97.5]))
    return Estimate(value, low, high, len(counts), len(old))


def forgetting_measure(accuracy: Sequence[Sequence[float]]) -> float:
    """FM = 1/(N-1) sum_(k<N) (A[N, k] - A[k, k]) of N tasks learnt one after another; 0 is none.

    Args:
        accuracy: [stage task], accuracy on task k after stage i; what lies above the diagonal is
            not read.

    Raises:
        InterpError: fewer than two tasks, not a square, or a number missing where it is read.

    Examples:
        >>> forgetting_measure([[0.9, 0.2, 0.1], [0.8, 0.9, 0.1], [0.5, 0.6, 0.9]])
        -0.35

    Source: as in 2507.05386 (ICML 2026), after Chaudhry et al. 2018 (arXiv 1801.10112).
    """
    table = np.asarray(accuracy, dtype=float)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise InterpError(
            f"accuracy is {'x'.join(map(str, table.shape))}; expected stages x tasks, a square of "
            f"two or more"
        )
    lost = table[-1, :-1] - np.diag(table)[:-1]
    if not np.isfinite(lost).all():
        raise InterpError(
            f"no accuracy for task {int((~np.isfinite(lost)).argmax())} when it was learnt or at "
            f"the end"
        )
    return round(float(lost.mean()), 12)
