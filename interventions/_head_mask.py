"""What learning a mask over heads returns: which heads carry something, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from interp import Place
from interp._record import load_record, save_record

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HeadMask:
    """The heads whose outputs, taken from another prompt, give its answer; accuracies on test.

    Args:
        weight: what each head keeps of its own output, before rounding; NaN where a layer has no
            such head.
        accuracy: with the chosen heads taken from the source.
        none: with no head taken.
        every: with all heads taken.
        random: with as many heads drawn at random: the control.
        history: accuracy on the validation split and heads taken, after each epoch.
        meta: model, arguments and sizes of the splits.
    """

    weight: Float[Tensor, "layer head"]
    accuracy: float
    none: float
    every: float
    random: Float[Tensor, " draw"]
    history: list[dict[str, float | int]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of those taken from the source: weight rounded to 0."""
        taken = self.weight.nan_to_num(nan=1.0) < 0.5
        return [(int(layer), int(head)) for layer, head in taken.nonzero().tolist()]

    @property
    def places(self) -> list[Place]:
        """The same for `interp.patch` and `interp.circuit_scores`, at the positions of the mask."""
        found: dict[int, list[int]] = {}
        for layer, head in self.heads:
            found.setdefault(layer, []).append(head)
        positions = self.meta["positions"]
        return [Place(f"z.{layer}", heads, positions) for layer, heads in found.items()]

    def table(self) -> pd.DataFrame:
        """A row for each head: `layer head weight taken`."""
        import pandas as pd

        taken = set(self.heads)
        rows = [
            {"layer": layer, "head": head, "weight": weight, "taken": (layer, head) in taken}
            for layer, row in enumerate(self.weight.tolist())
            for head, weight in enumerate(row)
            if weight == weight
        ]
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `HeadMask.load` reads back."""
        numbers = {"accuracy": self.accuracy, "none": self.none, "every": self.every}
        meta = {**numbers, "history": self.history, "mask": self.meta}
        tensors = {"weight": self.weight, "random": self.random}
        return save_record(path, "head_mask", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> HeadMask:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "head_mask")
        return HeadMask(
            tensors["weight"],
            meta["accuracy"],
            meta["none"],
            meta["every"],
            tensors["random"],
            meta["history"],
            meta["mask"],
        )

    def __repr__(self) -> str:
        low, high = float(self.random.min()), float(self.random.max())
        return (
            f"HeadMask({len(self.heads)} heads: {_brief(self.heads)}; accuracy "
            f"{self.accuracy:.2f}, none {self.none:.2f}, all {self.every:.2f}, random {low:.2f} to "
            f"{high:.2f})"
        )


def _brief(heads: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{layer}.{head}" for layer, head in heads[:8])
    return shown + (f" and {len(heads) - 8} more" if len(heads) > 8 else "")
