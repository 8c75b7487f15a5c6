"""Clusters of trajectories: how many, and how many to expect among fewer samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._record import load_record, save_record
from probes._brief import brief
from probes._ratio import ratio_of_means

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The cluster of every rollout, in the order in which rollouts were given.

    Args:
        model: index into `models`.
        problem: index into `problems`.
        correct: the verifier's word.
        cluster: number of its cluster, from 0 within (model, problem, correct).
        models: labels.
        problems: ids.
        meta: the arguments.
    """

    model: Int[Tensor, " rollout"]
    problem: Int[Tensor, " rollout"]
    correct: Bool[Tensor, " rollout"]
    cluster: Int[Tensor, " rollout"]
    models: list[str]
    problems: list[str]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self, n: int | None = None) -> pd.DataFrame:
        """One row a problem, model and side: how many clusters, also at equal sample size.

        Columns `problem model correct samples side_samples clusters n clusters_at_n`. `samples`
        are all rollouts of that model for that problem, `side_samples` those that are (in)correct,
        0 where none is: then there are 0 clusters. `clusters_at_n` is `rarefaction` at n.

        Args:
            n: sample size to compare at; by default the smallest that any model has for any
                problem. NaN where a model has fewer.
        """
        import pandas as pd

        sizes = self._sizes()
        n = min(total for total, _ in sizes.values()) if n is None else n
        rows = []
        for (problem, model, correct), (total, counts) in sizes.items():
            at_n = float(rarefaction(counts, n, total)) if n <= total else float("nan")
            rows.append(
                {
                    "problem": self.problems[problem],
                    "model": self.models[model],
                    "correct": correct,
                    "samples": total,
                    "side_samples": int(counts.sum()),
                    "clusters": len(counts),
                    "n": n,
                    "clusters_at_n": at_n,
                }
            )
        return pd.DataFrame(rows)

    def compare(
        self, base: str | None = None, *, models: Sequence[str] | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Each model's clusters relative to a base's, twice, each over the problems both have.

        `at` "samples" takes as many samples of each model: fewer wrong clusters may then only
        mean fewer wrong samples. `at` "side" takes as many correct (or incorrect) samples of each,
        where both have at least two: are there fewer ways, given how often it is wrong?

        Args:
            base: the model to compare with, by default the first.
            models: which others, by default all.
            seed: of the bootstrap over problems.

        Returns:
            One row a model, side and `at`: `model correct at clusters_base clusters ratio low high
            problems`, counts as means over problems. NaN where a base's mean is 0.
        """
        import pandas as pd

        first = self._index(self.models[0] if base is None else base)
        named = [m for m in self.models if m != self.models[first]] if models is None else models
        rows = []
        for other in map(self._index, named):
            for correct in (True, False):
                for at in ("samples", "side"):
                    one, two = self._pairs(first, other, correct, by_side=at == "side")
                    ratio, low, high = ratio_of_means(one, two, seed)
                    rows.append(
                        {
                            "model": self.models[other],
                            "correct": correct,
                            "at": at,
                            "clusters_base": float(one.mean()) if len(one) else float("nan"),
                            "clusters": float(two.mean()) if len(two) else float("nan"),
                            "ratio": ratio,
                            "low": low,
                            "high": high,
                            "problems": len(one),
                        }
                    )
        columns = ["model", "correct", "at", "clusters_base", "clusters", "ratio", "low", "high"]
        return pd.DataFrame(rows, columns=[*columns, "problems"])

    def curves(self) -> pd.DataFrame:
        """The rarefaction curve of each model, mean over problems: `model correct n clusters`.

        Up to the smallest number of samples that the model has for any problem, so that every
        point of a curve is over the same problems.
        """
        import pandas as pd

        rows = []
        sizes = self._sizes()
        for index, model in enumerate(self.models):
            for correct in (True, False):
                mine = [v for (_, m, c), v in sizes.items() if m == index and c == correct]
                smallest = min(total for total, _ in mine)
                n = np.arange(1, smallest + 1)
                mean = np.mean([rarefaction(counts, n, total) for total, counts in mine], axis=0)
                rows += [
                    {"model": model, "correct": correct, "n": int(k), "clusters": float(value)}
                    for k, value in zip(n, mean, strict=True)
                ]
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Rarefaction curves: solid for correct, dashed for incorrect clusters."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")[1]
        for (model, correct), curve in self.curves().groupby(["model", "correct"], sort=False):
            ax.plot(
                curve["n"],
                curve["clusters"],
                color=f"C{self.models.index(model)}",
                linestyle="-" if correct else "--",
                label=f"{model}, {'correct' if correct else 'incorrect'}",
            )
        ax.set(xlabel="samples a problem", ylabel="expected clusters a problem", ylim=(0, None))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Trajectories.load` reads back, whole or not at all."""
        tensors = {name: getattr(self, name) for name in ("model", "problem", "correct", "cluster")}
        meta = {"models": self.models, "problems": self.problems, "arguments": self.meta}
        return save_record(path, "trajectories", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> Trajectories:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "trajectories")
        return Trajectories(
            **tensors, models=meta["models"], problems=meta["problems"], meta=meta["arguments"]
        )

    def _index(self, model: str) -> int:
        if model not in self.models:
            raise InterpError(f"no model {model!r} here; {nearest(model, self.models)}")
        return self.models.index(model)

    def _pairs(
        self, base: int, other: int, correct: bool, *, by_side: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clusters of both at equal effort, a value a problem."""
        sizes, pairs = self._sizes(), []
        for problem in range(len(self.problems)):
            keys = [(problem, model, correct) for model in (base, other)]
            if not all(key in sizes for key in keys):
                continue
            both = [sizes[key] for key in keys]
            totals = [int(counts.sum()) if by_side else total for total, counts in both]
            n = min(totals)
            if n >= (2 if by_side else 1):
                found = [
                    float(rarefaction(counts, n, total))
                    for (_, counts), total in zip(both, totals, strict=True)
                ]
                pairs.append(found)
        one, two = np.array(pairs).reshape(-1, 2).T
        return one, two

    def _sizes(self) -> dict[tuple[int, int, bool], tuple[int, np.ndarray]]:
        """(problem, model, correct) -> samples of both sides together, samples by cluster."""
        model, problem = self.model.numpy(), self.problem.numpy()
        correct, cluster = self.correct.numpy(), self.cluster.numpy()
        sizes = {}
        for p, m in dict.fromkeys(zip(problem.tolist(), model.tolist(), strict=True)):
            mine = (problem == p) & (model == m)
            for side in (True, False):
                counts = np.bincount(cluster[mine & (correct == side)])
                sizes[p, m, side] = (int(mine.sum()), counts)
        return sizes


def rarefaction(counts: np.ndarray, n: int | np.ndarray, total: int | None = None) -> np.ndarray:
    """Clusters expected among n samples drawn without replacement.

    E(n) = sum over clusters c of 1 - C(N - N_c, n) / C(N, n), the closed form of Hurlbert (1971).

    Args:
        counts: samples in each cluster.
        n: how many to draw, at most N.
        total: N, where there are samples outside these clusters too; by default their sum.
    """
    from scipy.special import gammaln

    counts = np.asarray(counts, dtype=float).reshape(-1, 1)
    total = int(counts.sum()) if total is None else total
    n = np.asarray(n, dtype=float)
    left = total - counts - n  # fewer than none: a draw cannot miss this cluster
    possible = left >= 0
    log_missed = (
        gammaln(total - counts + 1)
        - gammaln(np.where(possible, left, 0) + 1)
        - gammaln(total + 1)
        + gammaln(total - n + 1)
    )
    missed = np.where(possible, np.exp(np.where(possible, log_missed, 0.0)), 0.0)
    return (1 - missed).sum(axis=0).reshape(n.shape)
