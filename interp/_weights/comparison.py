"""What several updates of one base share: a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from interp._errors import InterpError, nearest
from interp._record import load_record, save_record
from interp._weights.weight_diff import plain, restored

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_BY = ("pair", "consensus")


@dataclass(frozen=True, eq=False)
class WeightComparison:
    """Updates of one base compared with each other.

    Args:
        pairs: one dict of columns for each matrix and pair of checkpoints.
        consensus: one for each matrix, over all checkpoints.
        vectors: by `tensor/name`: `consensus_rows`, `consensus_columns`.
        meta: sources and options.
    """

    pairs: list[dict[str, Any]]
    consensus: list[dict[str, Any]]
    vectors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        labels = [*self.meta.get("tuned", ())]
        more = f", ... {len(labels)} in all" if len(labels) > 4 else ""
        return f"WeightComparison({', '.join(labels[:4])}{more}; {len(self.pairs)} rows)"

    def table(self, by: Literal["pair", "consensus"] = "pair") -> pd.DataFrame:
        """Tidy: `tensor layer module expert tuned_a tuned_b jaccard jaccard_null jaccard_z ...`."""
        import pandas as pd

        if by not in _BY:
            raise InterpError(f"no table by {by!r}; {nearest(by, _BY)}")
        frame = pd.DataFrame(self.pairs if by == "pair" else self.consensus)
        return frame.astype({"layer": "Int64", "expert": "Int64"}) if len(frame) else frame

    def plot(self, metric: str = "jaccard", *, ax: Axes | None = None) -> Axes:
        """A metric over layers, its null beside it; the mean over matrices and pairs.

        Args:
            metric: a numeric column of `table()`.
            ax: where to draw; a new figure by default.
        """
        from interp._weights.plot import draw_beside_null

        table = self.table()
        numeric = table.select_dtypes("number").columns.difference(["layer", "expert"])
        if metric not in numeric:
            raise InterpError(f"no metric {metric!r} here; {nearest(metric, numeric)}")
        return draw_beside_null(table, metric, ax)

    def findings(self) -> list[str]:
        """What may be said: of each pair and metric, how many matrices lie outside the null."""
        from interp._weights.aggregate import findings

        table = self.table()
        return findings(table.assign(tuned=table["tuned_a"] + " and " + table["tuned_b"]))

    def save(self, path: str | Path) -> Path:
        """Write a folder with meta.json, table.parquet and tensors.safetensors."""
        meta = {"compare": self.meta, "pairs": plain(self.pairs), "all": plain(self.consensus)}
        return save_record(path, "weight_comparison", self.vectors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> WeightComparison:
        """Read what `save` wrote."""
        vectors, meta = load_record(path, "weight_comparison")
        return WeightComparison(
            restored(meta["pairs"]), restored(meta["all"]), vectors, meta["compare"]
        )
