"""What a bake did: the record beside the new checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp._bake.ledger import Slot
from interp._bake.plan import Plan
from interp._bake.recipe import Realised
from interp._bake.verify import Verification
from interp._edit.edit import Edit
from interp._errors import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Folded:
    """One tensor that baking changed or added.

    Args:
        tensor: its name.
        shape: its shape.
        dtype: what it is stored in.
        new: whether the base lacks it.
        change_norm: Frobenius norm of the intended change.
        norm_ratio: norm of the stored change relative to it; rounding makes it differ from 1.
        cosine: of the two.
        moving: how many coordinates should move.
        unmoved: the share of them that did not.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    new: bool
    change_norm: float
    norm_ratio: float
    cosine: float
    moving: int
    unmoved: float


@dataclass(frozen=True)
class BakeReport:
    """What was edited, where it went, what rounding left of it, and whether the logits agree.

    Args:
        base: where the base came from.
        atoms: the edit in words.
        notes: the edit's own notes.
        slots: which part of which atom went into which tensor.
        folded: the tensors that changed or are new.
        config: settings that differ from the base's.
        architecture: class of the result.
        verification: None where it was switched off.
        path: the folder, where one was written.
        streamed: whether it was written tensor by tensor.
    """

    base: str
    atoms: tuple[str, ...]
    notes: Mapping[str, Any]
    slots: tuple[Slot, ...]
    folded: tuple[Folded, ...]
    config: Mapping[str, Any]
    architecture: str
    verification: Verification | None = None
    path: Path | None = None
    streamed: bool = False

    def __repr__(self) -> str:
        new = sum(folded.new for folded in self.folded)
        found = self.verification
        said = (
            "not verified" if found is None else f"logits differ by {found.difference:.2g} at most"
        )
        changed = counted(len(self.folded) - new, "tensor")
        return f"BakeReport({self.base}: {changed} changed, {new} new; {said})"

    def table(self) -> pd.DataFrame:
        """One row a tensor, with the fields of `Folded` as columns."""
        import pandas as pd

        return pd.DataFrame([vars(folded) for folded in self.folded])

    @property
    def realised(self) -> dict[str, float]:
        """All tensors' changes as one long vector: its `norm_ratio`, `cosine` and `unmoved`."""
        moving = [f for f in self.folded if f.change_norm > 0]
        intended = math.sqrt(sum(f.change_norm**2 for f in moving))
        if intended == 0:
            return {"norm_ratio": 1.0, "cosine": 1.0, "unmoved": 0.0}
        stored = math.sqrt(sum((f.change_norm * f.norm_ratio) ** 2 for f in moving))
        inner = sum(f.cosine * f.norm_ratio * f.change_norm**2 for f in moving if f.norm_ratio)
        unmoved = sum(f.unmoved * f.moving for f in moving) / sum(f.moving for f in moving)
        return {
            "norm_ratio": stored / intended,
            "cosine": inner / (intended * stored) if stored else float("nan"),
            "unmoved": unmoved,
        }

    def card(self) -> str:
        """The model card, in Markdown."""
        from interp._bake.card import card

        return card(self)


def report_of(
    base: str,
    edit: Edit,
    plan: Plan,
    realised: Mapping[str, Realised],
    verification: Verification | None,
    path: Path | None = None,
    streamed: bool = False,
) -> BakeReport:
    """The record of one bake."""
    folded = [
        Folded(
            name,
            tuple(plan.recipes[name].shape),
            r.dtype,
            plan.recipes[name].source is None,
            r.intended,
            r.stored / r.intended if r.intended else 1.0,
            r.cosine if r.intended else 1.0,
            r.moving,
            r.unmoved / max(1, r.moving),
        )
        for name, r in realised.items()
    ]
    return BakeReport(
        Path(base).name if Path(base).exists() else base,  # a card tells nobody's folders
        tuple(atom.describe() for atom in edit.atoms),
        dict(edit.notes),
        plan.slots,
        tuple(folded),
        plan.form.changed,
        plan.form.model_class.__name__,
        verification,
        path,
        streamed,
    )
