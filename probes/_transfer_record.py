"""Probes carried from one checkpoint to another: a record with two tables and a figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._record import load_record, save_record
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAIRS = (("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"))  # trained on, tested on
SCORES = ("score", "low", "high", "auroc", "auroc_low", "auroc_high")
COSINES = ("across", "within_a", "within_b")


@dataclass(frozen=True, eq=False)
class ProbeTransfer:
    """Scores within and across two checkpoints a and b, and the angles of their directions.

    Args:
        site: of each cell.
        layer: of each cell; -1 for the embedding and names that are no site.
        position: of each cell.
        scores: by pair (a on a, a on b, b on a, b on b) and `score low high auroc auroc_low
            auroc_high`, with 95 % intervals over groups.
        cosines: of each halving of the groups: across checkpoints, within a, within b.
        meta: models, probe, folds, seed.
    """

    site: list[str]
    layer: Int[Tensor, " cell"]
    position: list[int | str]
    scores: Float[Tensor, "cell pair score"]
    cosines: Float[Tensor, "cell split cosine"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """Four rows a cell: `site layer position train test score low high auroc ...`."""
        import pandas as pd

        rows = [
            {**place, "train": train, "test": test, **dict(zip(SCORES, values, strict=True))}
            for place, cell in zip(self._places(), self.scores.tolist(), strict=True)
            for (train, test), values in zip(PAIRS, cell, strict=True)
        ]
        return pd.DataFrame(rows)

    def angles(self) -> pd.DataFrame:
        """One row a cell: `site layer position cosine low high within_a within_b corrected angle`.

        Means over halvings; `low` and `high` are the 2.5th and 97.5th percentiles of the cosine
        across halvings (spread, not a confidence interval, since halvings share examples).
        `corrected` is cosine / sqrt(within_a within_b), NaN where a checkpoint does not reliably
        agree with itself (the 2.5th percentile of its own cosine is not above 0): there is no
        direction to compare. `angle` is its arc cosine in degrees.
        """
        import pandas as pd

        means = self.cosines.mean(dim=1)
        across, a, b = means.unbind(dim=1)
        edges = torch.tensor([0.025, 0.975], dtype=self.cosines.dtype)
        agrees = (self.cosines[..., 1:].quantile(edges[0], dim=1) > 0).all(dim=1)
        noise = torch.where(agrees, a * b, torch.nan).sqrt()
        corrected = across / noise
        low, high = self.cosines[..., 0].quantile(edges, dim=1)
        columns = {
            "cosine": across, "low": low, "high": high, "within_a": a, "within_b": b,
            "corrected": corrected, "angle": corrected.clamp(-1, 1).arccos().rad2deg(),
        }  # fmt: skip
        return pd.concat(
            [
                pd.DataFrame(self._places()),
                pd.DataFrame({name: column.numpy() for name, column in columns.items()}),
            ],
            axis=1,
        )

    def plot(self, ax: Axes | None = None, *, measure: str = "score") -> Axes:
        """The four scores by layer, at the first position of the first kind of site.

        Args:
            ax: where to draw; a new figure by default.
            measure: `score` (balanced accuracy) or `auroc`.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1]
        table = self.table()
        table["kind"] = [site.rsplit(".", 1)[0] for site in table["site"]]
        first = table.iloc[0]
        table = table[(table["kind"] == first["kind"]) & (table["position"] == first["position"])]
        low, high = ("low", "high") if measure == "score" else ("auroc_low", "auroc_high")
        for (train, test), style in zip(PAIRS, ("-", "--", "--", "-"), strict=True):
            part = table[(table["train"] == train) & (table["test"] == test)]
            colour = "C0" if train == "a" else "C1"
            label = f"trained on {train}, tested on {test}"
            ax.plot(part["layer"], part[measure], style, color=colour, label=label, marker="o",
                    markersize=3)  # fmt: skip
            if train == test:
                ax.fill_between(part["layer"], part[low], part[high], color=colour, alpha=0.15,
                                linewidth=0)  # fmt: skip
        layers = np.unique(table["layer"])
        ax.set_xticks(layers[:: max(1, len(layers) // 12)])
        name = "balanced accuracy" if measure == "score" else "AUROC"
        ax.set(xlabel="layer", ylabel=f"{name}, held-out groups")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `ProbeTransfer.load` reads back, whole or not at all."""
        tensors = {"layer": self.layer, "scores": self.scores, "cosines": self.cosines}
        meta = {"site": self.site, "position": self.position, "transfer": self.meta}
        return save_record(path, "probe_transfer", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> ProbeTransfer:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "probe_transfer")
        return ProbeTransfer(
            site=meta["site"], position=meta["position"], meta=meta["transfer"], **tensors
        )

    def _places(self) -> list[dict[str, Any]]:
        whole = all(isinstance(position, int) for position in self.position)
        return [
            {"site": site, "layer": layer, "position": place if whole else str(place)}
            for site, layer, place in zip(
                self.site, self.layer.tolist(), self.position, strict=True
            )
        ]
