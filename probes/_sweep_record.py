"""Probe scores of every site and position: a record with a table and a figure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._record import load_record, save_record
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEASURES = (
    "score", "low", "high", "control", "selectivity", "selectivity_low", "selectivity_high",
    "auroc", "auroc_low", "auroc_high", "ece", "brier", "random_init", "random_init_low",
    "random_init_high", "penalty", "n", "groups",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ProbeSweep:
    """How well labels are read at each cell, a site at a position; NaN is what was not asked for.

    Args:
        site: of each cell.
        layer: of each cell; -1 for the embedding and names that are no site.
        position: of each cell: an index, `last`, `mean`, or `given`.
        score: balanced accuracy of out-of-fold predictions.
        low: of the score's 95 % interval over groups.
        high: of it.
        control: mean balanced accuracy on control labels.
        selectivity: score - control.
        selectivity_low: of its interval; NaN below thirty groups a class.
        selectivity_high: of it.
        auroc: share of pairs within a fold in right order, of several classes their mean.
        auroc_low: of its interval.
        auroc_high: of it.
        ece: expected calibration error of the likeliest class, ten bins of equal count.
        brier: mean of sum_c (p_c - y_c)^2 / 2.
        random_init: score on the control model's activations.
        random_init_low: of its interval.
        random_init_high: of it.
        penalty: median over folds of what was chosen.
        n: examples.
        groups: groups.
        null: scores under shuffled labels, the same shuffle in all cells.
        correct: whether each example's held-out prediction is right; NaN where it has none.
        probability: held-out probability of each example's own label.
        meta: model, probe, labels, folds, seed, how labels were shuffled, cells skipped.
    """

    site: list[str]
    layer: Int[Tensor, " cell"]
    position: list[int | str]
    score: Float[Tensor, " cell"]
    low: Float[Tensor, " cell"]
    high: Float[Tensor, " cell"]
    control: Float[Tensor, " cell"]
    selectivity: Float[Tensor, " cell"]
    selectivity_low: Float[Tensor, " cell"]
    selectivity_high: Float[Tensor, " cell"]
    auroc: Float[Tensor, " cell"]
    auroc_low: Float[Tensor, " cell"]
    auroc_high: Float[Tensor, " cell"]
    ece: Float[Tensor, " cell"]
    brier: Float[Tensor, " cell"]
    random_init: Float[Tensor, " cell"]
    random_init_low: Float[Tensor, " cell"]
    random_init_high: Float[Tensor, " cell"]
    penalty: Float[Tensor, " cell"]
    n: Float[Tensor, " cell"]
    groups: Float[Tensor, " cell"]
    null: Float[Tensor, "permutation cell"]
    correct: Float[Tensor, "cell example"]
    probability: Float[Tensor, "cell example"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def p(self) -> Float[Tensor, " cell"]:
        """(1 + shuffles that score as high) / (1 + shuffles), of each cell on its own."""
        return self._p(self.null)

    @property
    def p_max(self) -> Float[Tensor, " cell"]:
        """The same against each shuffle's best cell: corrected for looking at all of them."""
        return self._p(self.null.max(dim=1, keepdim=True).values if len(self.null) else self.null)

    @property
    def threshold(self) -> float:
        """The 95th percentile of shuffles' best cell; NaN without shuffles."""
        if not len(self.null):
            return float("nan")
        return float(self.null.max(dim=1).values.quantile(0.95))

    def table(self) -> pd.DataFrame:
        """One row a cell: `site layer position score low high control p p_max selectivity ...`.

        Further columns `selectivity_low selectivity_high score_null score_z auroc auroc_low
        auroc_high ece brier random_init random_init_low random_init_high penalty n groups`, with
        `score_null` the shuffles' mean and `score_z` the score's distance from it in their
        standard deviations.
        """
        import pandas as pd

        few = torch.full_like(self.score, float("nan"))
        mean = self.null.mean(dim=0) if len(self.null) else few
        deviation = self.null.std(dim=0) if len(self.null) > 1 else few
        columns: dict[str, Any] = {
            "site": self.site,
            "layer": self.layer.numpy(),
            "position": self._position_column(),
        }
        columns |= {name: getattr(self, name).numpy() for name in MEASURES[:4]}
        columns |= {"p": self.p.numpy(), "p_max": self.p_max.numpy()}
        columns |= {name: getattr(self, name).numpy() for name in MEASURES[4:7]}
        columns |= {
            "score_null": mean.numpy(),
            "score_z": ((self.score - mean) / deviation).numpy(),
        }
        columns |= {name: getattr(self, name).numpy() for name in MEASURES[7:-2]}
        counts = {name: getattr(self, name).numpy().astype(int) for name in MEASURES[-2:]}
        return pd.DataFrame(columns | counts)

    def examples(self) -> pd.DataFrame:
        """One row a cell and example: `site layer position example correct probability`."""
        import pandas as pd

        cells, n = self.correct.shape
        positions = self._position_column()
        frame = pd.DataFrame(
            {
                "site": np.repeat(self.site, n),
                "layer": np.repeat(self.layer.numpy(), n),
                "position": np.repeat(positions, n),
                "example": np.tile(np.arange(n), cells),
                "correct": self.correct.flatten().numpy(),
                "probability": self.probability.flatten().numpy(),
            }
        )
        return frame.dropna(subset="correct").reset_index(drop=True)

    def plot(self, ax: Axes | None = None, *, measure: str = "score") -> Axes:
        """One measure by layer, a line a kind of site and position; a map where positions are many.

        Bands are intervals; dashes control labels, dots the control model, the grey line what the
        best cell of shuffled labels stays below in 95 %.

        Args:
            ax: where to draw; a new figure by default.
            measure: a measure of the table, such as `score`, `auroc`, `selectivity`.
        """
        from probes._sweep_plot import plot_sweep

        if measure not in MEASURES:
            raise InterpError(f"no measure {measure!r}; {nearest(measure, MEASURES)}")
        return plot_sweep(self, ax, measure)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `ProbeSweep.load` reads back, whole or not at all."""
        tensors = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("site", "position", "meta")
        }
        meta = {"site": self.site, "position": self.position, "sweep": self.meta}
        return save_record(path, "probe_sweep", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> ProbeSweep:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "probe_sweep")
        return ProbeSweep(
            site=meta["site"], position=meta["position"], meta=meta["sweep"], **tensors
        )

    def _p(self, null: Tensor) -> Tensor:
        if not len(null):
            return torch.full_like(self.score, float("nan"))
        # Scores are ratios of counts: equal ones may differ in their last bit.
        return (1 + (null >= self.score - 1e-12).sum(dim=0)) / (1.0 + len(null))

    def _position_column(self) -> list[Any]:
        """Whole numbers stay so; beside names they are written out, for parquet's sake."""
        if all(isinstance(position, int) for position in self.position):
            return list(self.position)
        return [str(position) for position in self.position]
