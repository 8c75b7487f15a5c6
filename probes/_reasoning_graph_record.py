"""A reasoning graph: every rollout as a walk, and what is measured of the walks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._record import load_record, save_record
from probes._brief import brief
from probes._reasoning_graph_compare import compare, difference
from probes._reasoning_graph_rates import Parts, Unit, rate_table
from probes._reasoning_graph_topology import topology_table
from probes._reasoning_graph_walks import QUANTITIES, Walks, measures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class ReasoningGraph:
    """Every rollout as a walk over nodes that all models share; the measurements are methods.

    Args:
        node: all visits, walk after walk; a step that stays in its node is no new visit.
        start: where each rollout's walk begins in `node`, and then its length.
        model: of each rollout, index into `models`.
        problem: of each rollout, index into `problems`.
        centroid: of each node.
        models: labels.
        problems: ids.
        steps: for each node, the step text that is in it most often.
        meta: the arguments, and how nodes were made.
    """

    node: Int[Tensor, " visit"]
    start: Int[Tensor, " boundary"]
    model: Int[Tensor, " rollout"]
    problem: Int[Tensor, " rollout"]
    centroid: Float[Tensor, "node d"]
    models: list[str]
    problems: list[str]
    steps: list[str]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a visited node of each model: `model node step visits degree betweenness`."""
        import pandas as pd

        parts = []
        for model in self.models:
            walks = self._walks(model)
            nodes = np.unique(walks.node)
            parts.append(
                pd.DataFrame(
                    {"model": model, "node": nodes, "step": [self.steps[n] for n in nodes]}
                    | measures(walks)
                )
            )
        return pd.concat(parts, ignore_index=True)

    def edges(self, model: str) -> pd.DataFrame:
        """One row a transition of one model: `source target count distance`.

        distance is that of the centroids, ||c_source - c_target||. Rates and metrics count every
        edge as one hop: our specification, because it could not be read whether the paper's
        shortest paths weigh edges by distance.
        """
        import pandas as pd

        source, target, count = self._walks(model).edges()
        distance = (self.centroid[source] - self.centroid[target]).norm(dim=1).numpy()
        return pd.DataFrame(
            {"source": source, "target": target, "count": count, "distance": distance}
        )

    def rates(self, *, per: Unit = "problem", draws: int = 20, seed: int = 0) -> pd.DataFrame:
        """How steeply visits, degree and betweenness fall with rank, beside their controls.

        beta is the slope of log10 X(R) = alpha - beta R over the nodes with X > 0, by least
        squares. It falls as more is sampled unless the law is exponential, so it means little
        without R^2, the number of nodes, and these:

        - beta_null, beta_z: transitions shuffled (every node keeps its visits, every walk its
          length), mean and z over `draws`; NaN for visits, which that null keeps;
        - beta_visits: at equal visits, mean over `draws` random subsets, whole walks but the last;
        - beta_length: walks cut to windows of the smallest median length too.

        Matching is within a problem, among the models that have it. beta is NaN with fewer than
        three nodes with X > 0, and 0 where all are equal.

        Args:
            per: a graph for each model and problem (as the paper), or one for each model.
            draws: of each control.
            seed: of them.

        Returns:
            One row a graph and quantity: `model problem quantity beta r2 nodes rollouts visits
            beta_null beta_z beta_visits beta_length`.
        """
        return rate_table(self._graphs(), self.problems, per, draws, seed)

    def compare(
        self,
        base: str | None = None,
        *,
        models: Sequence[str] | None = None,
        draws: int = 20,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Each model's rates relative to a base's: above 1 steeper, below 1 flatter.

        ratio is the mean over problems of a model's beta by that of the base's, over problems in
        which both have one; low and high are its 95 % interval by a bootstrap over problems (below
        thirty problems Student's, by the jackknife). It is there three times: as sampled, at equal
        visits, and at equal length as well; steeper as sampled but not when matched is a matter of
        how much was written. ratio_null and z are those of dealing the two models' rollouts out
        anew within each problem, `draws` times: what a ratio of equals looks like.

        Args:
            base: the model to compare with, by default the first.
            models: which others, by default all.
            draws: matched subsets, and draws of the null.
            seed: of all of them.

        Returns:
            One row a model, quantity and sampling: `model quantity sampling beta_base beta ratio
            low high ratio_null z problems`.
        """
        import pandas as pd

        first, others = self._against(base, models)
        rows = [
            {"model": model, **row}
            for model, parts in others.items()
            for row in compare(first, parts, draws, seed)
        ]
        columns = ["model", "quantity", "sampling", "beta_base", "beta", "ratio", "low", "high"]
        return pd.DataFrame(rows, columns=[*columns, "ratio_null", "z", "problems"])

    def topology(self, *, draws: int = 20, seed: int = 0) -> pd.DataFrame:
        """Eight global metrics and the shares of 4-node subgraphs, beside shuffled transitions.

        Of each model's graph over all problems, undirected and unweighted:
        `model metric value null z`. See `probes._reasoning_graph_topology.metrics`.

        Args:
            draws: of the null; with thousands of nodes each takes about ten seconds.
            seed: of the null and of the communities.
        """
        return topology_table(self._graphs(), draws, seed)

    def difference(
        self,
        base: str | None = None,
        *,
        models: Sequence[str] | None = None,
        draws: int = 20,
        seed: int = 0,
    ) -> pd.DataFrame:
        """SMAPE of each model's share of visits by node against a base's: `model smape null z`.

        100 / n sum |y - x| / ((|y| + |x|) / 2) over the nodes either visits, 0 to 200. Finite
        samples differ by themselves; the null deals the rollouts out anew within each problem.

        Args:
            base: the model to compare with, by default the first.
            models: which others, by default all.
            draws: of the null.
            seed: of it.
        """
        import pandas as pd

        first, others = self._against(base, models)
        found = [
            {"model": m, **difference(first, parts, len(self.centroid), draws, seed)}
            for m, parts in others.items()
        ]
        return pd.DataFrame(found, columns=["model", "smape", "null", "z"])

    def plot(self, quantity: str = "visits", ax: Axes | None = None) -> Axes:
        """X by rank for each model over all problems, logarithmic: an exponential law is a line.

        Args:
            quantity: "visits", "degree" or "betweenness".
            ax: where to draw; a new figure by default.
        """
        import matplotlib.pyplot as plt

        if quantity not in QUANTITIES:
            raise InterpError(f"no quantity {quantity!r}; {nearest(quantity, QUANTITIES)}")
        if ax is None:
            ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")[1]
        for model in self.models:
            values = measures(self._walks(model))[quantity]
            values = np.sort(values[values > 0])[::-1]
            ax.plot(np.arange(1, len(values) + 1), values, label=model)
        ax.set_yscale("log")
        ax.set(xlabel="rank", ylabel=quantity)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `ReasoningGraph.load` reads back, whole or not at all."""
        names = ("node", "start", "model", "problem", "centroid")
        lists = {"models": self.models, "problems": self.problems, "steps": self.steps}
        tensors = {name: getattr(self, name) for name in names}
        meta = {**lists, "arguments": self.meta}
        return save_record(path, "reasoning_graph", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> ReasoningGraph:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "reasoning_graph")
        return ReasoningGraph(
            **tensors,
            models=meta["models"],
            problems=meta["problems"],
            steps=meta["steps"],
            meta=meta["arguments"],
        )

    def _named(self, model: str) -> str:
        if model not in self.models:
            raise InterpError(f"no model {model!r} in this graph; {nearest(model, self.models)}")
        return model

    def _against(
        self, base: str | None, models: Sequence[str] | None
    ) -> tuple[Parts, dict[str, Parts]]:
        """The walks of the base and of each other model."""
        first = self._named(self.models[0] if base is None else base)
        others = [m for m in self.models if m != first] if models is None else models
        return self._by_problem(first), {m: self._by_problem(self._named(m)) for m in others}

    def _graphs(self) -> dict[str, Parts]:
        return {model: self._by_problem(model) for model in self.models}

    def _walks(self, model: str) -> Walks:
        return Walks.joined([*self._by_problem(self._named(model)).values()])

    def _by_problem(self, model: str) -> dict[int, Walks]:
        """The walks of one model by problem; problems in which it has no step are left out."""
        everything = Walks(self.node.numpy(), self.start.numpy())
        mine = np.flatnonzero(
            (self.model.numpy() == self.models.index(model)) & (everything.lengths > 0)
        )
        problem = self.problem.numpy()[mine]
        order = np.argsort(problem, kind="stable")
        edges = np.flatnonzero(np.diff(problem[order])) + 1
        groups = np.split(mine[order], edges) if len(mine) else []
        return {int(self.problem[group[0]]): everything.take(group) for group in groups}
