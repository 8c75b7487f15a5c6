"""What changed between checkpoints: a record with tidy tables and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from interp._errors import InterpError, nearest
from interp._record import load_record, save_record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KEYS = ["tensor", "layer", "module", "head", "expert", "tuned"]
_BY = ("tensor", "head", "module")


@dataclass(frozen=True, eq=False)
class WeightDiff:
    """The changes of one or more tuned checkpoints against one base.

    Args:
        rows: one dict of columns for each matrix and tuned checkpoint.
        heads: the same for each head.
        vectors: by `tuned/tensor/name`: `row_changed`, `column_changed` (shares of changed
            entries) and, where decomposed, `sigma_base`, `sigma_tuned`, `sigma_delta`.
        meta: sources, options and versions.
    """

    rows: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    vectors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        base = Path(str(self.meta.get("base", ""))).name or "base"
        labels = [*self.meta.get("tuned", ())]
        more = f", ... {len(labels)} in all" if len(labels) > 4 else ""
        return f"WeightDiff({base} to {', '.join(labels[:4])}{more}; {len(self.rows)} rows)"

    @property
    def tuned(self) -> list[str]:
        """Labels of the tuned checkpoints, in the order given."""
        return list(self.meta["tuned"])

    def table(self, by: Literal["tensor", "head", "module"] = "tensor") -> pd.DataFrame:
        """Tidy: `tensor layer module head expert tuned numel norm relative_norm rms cosine ...`.

        Both normalisations of 2507.10616 are there: `relative_norm` = ||D|| / ||W|| and `rms` =
        ||D|| / sqrt(mn); which module changed most can depend on the choice.

        Args:
            by: `tensor`; `head`, where matrices have heads; or `module`: weight matrices of one
                (layer, module) together, norms by sums of squares, shares by entries, spectral
                metrics as plain means.
        """
        import pandas as pd

        if by not in _BY:
            raise InterpError(f"no table by {by!r}; {nearest(by, _BY)}")
        rows = self.heads if by == "head" else self.rows
        frame = pd.DataFrame(rows)
        if frame.empty:
            return pd.DataFrame(columns=KEYS)
        frame = frame[[*KEYS, *(c for c in frame.columns if c not in KEYS)]]
        for column in ("layer", "head", "expert"):
            frame[column] = frame[column].astype("Int64")
        if by == "module":
            from interp._weights.aggregate import by_module

            return by_module(frame)
        return frame

    def vector(self, tensor: str, name: str, tuned: str | None = None) -> Tensor:
        """One vector of one matrix, such as `vector("layers.3.q.weight", "row_changed")`."""
        key = f"{tuned or self.tuned[0]}/{tensor}/{name}"
        if key not in self.vectors:
            raise InterpError(f"no vector {key!r}; {nearest(key, self.vectors)}")
        return self.vectors[key]

    def plot(
        self,
        metric: str = "relative_norm",
        *,
        tuned: str | None = None,
        kind: Literal["heat", "trajectory"] = "heat",
        ax: Axes | None = None,
    ) -> Axes:
        """A heat map layer x module of any metric, or its course over the tuned checkpoints.

        Args:
            metric: a numeric column of `table("module")`.
            tuned: which checkpoint, for the heat map; the first by default.
            kind: `heat`, or `trajectory`: one line a module, mean over layers.
            ax: where to draw; a new figure by default.
        """
        from interp._weights.plot import draw_heat_map, draw_trajectory

        table = self.table("module")
        numeric = table.select_dtypes("number").columns.difference(["layer"])
        if metric not in numeric:
            raise InterpError(f"no metric {metric!r} in this diff; {nearest(metric, numeric)}")
        if kind == "trajectory":
            return draw_trajectory(table, metric, self.tuned, ax)
        label = tuned or self.tuned[0]
        if label not in self.tuned:
            raise InterpError(f"no checkpoint {label!r} in this diff; {nearest(label, self.tuned)}")
        return draw_heat_map(table[table["tuned"] == label], metric, label, ax)

    def findings(self) -> list[str]:
        """What may be said: how far each checkpoint moved, then a sentence a metric with a null.

        "sft: the weights moved by 3.1 % of their norm, o most (11 %); 47 of 47 tensors changed";
        "sft: sparsity 0.087, null 0.084; no more than noise of this norm gives (|z| < 3 in all 47
        matrices)".
        """
        from interp._weights.aggregate import findings

        return findings(self.table())

    def save(self, path: str | Path) -> Path:
        """Write a folder with meta.json, table.parquet and tensors.safetensors."""
        meta = {"diff": self.meta, "rows": plain(self.rows), "heads": plain(self.heads)}
        return save_record(path, "weight_diff", self.vectors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> WeightDiff:
        """Read what `save` wrote."""
        vectors, meta = load_record(path, "weight_diff")
        return WeightDiff(restored(meta["rows"]), restored(meta["heads"]), vectors, meta["diff"])


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON has no NaN or infinity: as words."""
    return [
        {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
        for r in rows
    ]


def restored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    words = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    return [
        {k: words.get(v, v) if isinstance(v, str) else v for k, v in row.items()} for row in rows
    ]
