"""What learning edits of heads returns: the edit, the gates behind it, and how it was learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from interp import Edit, InterpError
from interp._record import load_record, replacing, save_record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class HeadGates:
    """Which heads were edited, and how far each gate stayed open.

    Args:
        edit: `z -> (1 + g_m a) z + g_a v` for every head with an open gate.
        additive: g_a of each head, 0 where closed, NaN where a layer has no such head.
        multiplicative: g_m of each head.
        history: a row an epoch: `epoch loss dev`, and how many gates of each kind are open.
        meta: model and arguments, `best epoch`, `dev at the start` (without an edit), `stopped`.
    """

    edit: Edit
    additive: Float[Tensor, "layer head"]
    multiplicative: Float[Tensor, "layer head"]
    history: list[dict[str, float | int | None]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of those with an open gate."""
        either = self.additive.nan_to_num() + self.multiplicative.nan_to_num() > 0
        return [(int(layer), int(head)) for layer, head in either.nonzero().tolist()]

    def table(self) -> pd.DataFrame:
        """A row for each head: `layer head additive multiplicative edited`."""
        import pandas as pd

        edited = set(self.heads)
        rows = [
            {
                "layer": layer,
                "head": head,
                "additive": additive,
                "multiplicative": float(self.multiplicative[layer, head]),
                "edited": (layer, head) in edited,
            }
            for layer, row in enumerate(self.additive.tolist())
            for head, additive in enumerate(row)
            if additive == additive
        ]
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The larger of both gates, layer by head."""
        import matplotlib.pyplot as plt
        import torch

        larger = torch.maximum(self.additive, self.multiplicative).numpy()
        if ax is None:
            ax = plt.subplots(figsize=(5.5, 0.4 * len(larger) + 1.6), layout="constrained")[1]
        image = ax.imshow(larger, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1)
        ax.set_xticks(range(larger.shape[1]))
        ax.set_yticks(range(len(larger)))
        ax.set(xlabel="head", ylabel="layer")
        ax.figure.colorbar(image, ax=ax, label="gate (the larger of two)", pad=0.01)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `HeadGates.load` reads back; the edit is a folder within.

        Earlier gates at `path` are replaced, once the new ones are written.
        """
        tensors = {"additive": self.additive, "multiplicative": self.multiplicative}
        meta = {"history": self.history, "gates": self.meta}
        with replacing(path, {"gates", "edit"}) as folder:
            save_record(folder / "gates", "head_gates", tensors, meta, self.table())
            self.edit.save(folder / "edit")
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> HeadGates:
        """Read what `save` wrote.

        Raises:
            InterpError: no gates there, or damaged ones.
        """
        tensors, meta = load_record(Path(path) / "gates", "head_gates")
        edit = Edit.load(Path(path) / "edit")
        try:
            additive, multiplicative = tensors["additive"], tensors["multiplicative"]
            return HeadGates(edit, additive, multiplicative, meta["history"], meta["gates"])
        except KeyError as error:
            raise InterpError(f"{path} is damaged: it lacks {error}; learn it anew") from error

    def __repr__(self) -> str:
        shown = ", ".join(f"{layer}.{head}" for layer, head in self.heads[:8])
        more = f" and {len(self.heads) - 8} more" if len(self.heads) > 8 else ""
        exist = int((~self.additive.isnan()).sum())
        return f"HeadGates({len(self.heads)} of {exist} heads: {shown}{more})"
