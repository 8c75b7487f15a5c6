"""What `circuit_scores` returns: how well some heads stand for the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp._record import load_record, save_record

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class CircuitScores:
    """How well a circuit stands for its model; all scores by prompt.

    Args:
        model: the metric of the whole model.
        circuit: with every head outside the circuit at its mean.
        empty: with every head at its mean: what needs no heads.
        random: with random circuits of the same size instead: the control.
        without: model and circuit without each of the random subsets K.
        minimality: the largest relative drop when a node is removed, NaN where not asked for.
        nodes: the circuit's nodes in words.
        subsets: each K as indices of nodes.
        meta: model and arguments.
    """

    model: Float[Tensor, " prompt"]
    circuit: Float[Tensor, " prompt"]
    empty: Float[Tensor, " prompt"]
    random: Float[Tensor, "draw prompt"]
    without: Float[Tensor, "subset 2 prompt"]
    minimality: Float[Tensor, " node"]
    nodes: list[str]
    subsets: list[list[int]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def faithfulness(self) -> float:
        """Mean(circuit) / mean(model)."""
        return float(self.circuit.mean() / self.model.mean())

    @property
    def recovered(self) -> float:
        """(circuit - empty) / (model - empty), of means: what no head is needed for left out."""
        empty = self.empty.mean()
        return float((self.circuit.mean() - empty) / (self.model.mean() - empty))

    @property
    def random_faithfulness(self) -> Float[Tensor, " draw"]:
        """Faithfulness of random circuits of the same size."""
        return self.random.mean(1) / self.model.mean()

    @property
    def incompleteness(self) -> Float[Tensor, " subset"]:
        """|mean(model without K) - mean(circuit without K)| for each subset; 0 is complete."""
        means = self.without.mean(-1)
        return (means[:, 0] - means[:, 1]).abs()

    def summary(self, clusters: Sequence[Any] | None = None, seed: int = 0) -> pd.DataFrame:
        """A row each: `quantity mean low high`; intervals resample prompts or clusters of them.

        Args:
            clusters: of each prompt; by default each is its own.
            seed: of the bootstrap (2000 draws).
        """
        import pandas as pd

        named = range(len(self.model)) if clusters is None else clusters
        _, index = np.unique([str(one) for one in named], return_inverse=True)
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(index.max() + 1, [1 / (index.max() + 1)] * (index.max() + 1), 2000)
        weights = torch.from_numpy(counts[:, index]).double()  # [draw prompt]
        weights = torch.cat([torch.ones_like(weights[:1]), weights])
        means = {
            name: (weights * value.double()).sum(1) / weights.sum(1)
            for name, value in (("m", self.model), ("c", self.circuit), ("e", self.empty))
        }
        m, c, e = means["m"], means["c"], means["e"]
        r = (self.random.double().mean(0) * weights).sum(1) / weights.sum(1)
        rows = {
            "model": m,
            "circuit": c,
            "no heads": e,
            "faithfulness": c / m,
            "faithfulness of random circuits": r / m,
            "recovered": (c - e) / (m - e),
        }
        return pd.DataFrame(
            [
                {
                    "quantity": name,
                    "mean": float(values[0]),
                    "low": float(values[1:].nanquantile(0.025)),
                    "high": float(values[1:].nanquantile(0.975)),
                }
                for name, values in rows.items()
            ]
        )

    def table(self) -> pd.DataFrame:
        """A row for each node: `node minimality`."""
        import pandas as pd

        return pd.DataFrame({"node": self.nodes, "minimality": self.minimality.tolist()})

    def save(self, path: str | Path) -> Path:
        """Write a folder that `CircuitScores.load` reads back."""
        names = ("model", "circuit", "empty", "random", "without", "minimality")
        tensors = {name: getattr(self, name) for name in names}
        meta = {"nodes": self.nodes, "subsets": self.subsets, "scores": self.meta}
        return save_record(path, "circuit_scores", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> CircuitScores:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "circuit_scores")
        return CircuitScores(
            **tensors, nodes=meta["nodes"], subsets=meta["subsets"], meta=meta["scores"]
        )
