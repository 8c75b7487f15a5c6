"""What folding adds up to for each tensor, and which atoms could not be folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp._bake.forms import Forms
from interp._bake.parts import Linear
from interp._bake.recipe import Fold, Through
from interp._edit.affine import Affine
from interp._errors import InterpError


@dataclass(frozen=True)
class Slot:
    """Where one part of an atom went.

    Args:
        atom: the atom in words.
        part: `scale`, `shift` or `change`.
        tensor: the tensor it was folded into.
        by: what gives that tensor where the base has none: a config flag, or "Llama".
    """

    atom: str
    part: str
    tensor: str
    by: str = ""


@dataclass(frozen=True)
class Refusal:
    """An atom that cannot be folded, and why."""

    atom: Affine
    reason: str


class Unfoldable(InterpError):
    """Atoms that no weight can take; `refusals` holds each with its reason."""

    def __init__(self, message: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


@dataclass
class Ledger:
    """Folds by tensor, while a plan is being made."""

    forms: Forms
    folds: dict[str, Fold] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def scale(self, name: str, by: Tensor, atoms: Sequence[Affine], *, offset: float = 0.0) -> None:
        """Multiply a tensor; `by` broadcasts against it."""
        if not self.forms.has(name):
            return  # a bias that is not there is zero
        fold = self.folds.setdefault(name, Fold())
        fold.scale = by if fold.scale is None else fold.scale * by
        fold.offset = offset
        self._note(atoms, "scale", name)

    def shift(self, name: str, by: Tensor, atoms: Sequence[Affine]) -> None:
        """Add to a tensor; `by` broadcasts against it."""
        fold = self.folds.setdefault(name, Fold())
        fold.shift = by if fold.shift is None else fold.shift + by
        self._note(atoms, "shift", name)

    def through(
        self, name: str, linear: Linear, vector: Tensor, factor: Tensor, atoms: Sequence[Affine]
    ) -> None:
        """Add to a bias what a vector at a projection's input gives."""
        fold = self.folds.setdefault(name, Fold())
        fold.through.append(Through(linear.weight, vector, linear.transposed, factor))
        self._note(atoms, "shift", name)

    def choose(self, names: Sequence[str]) -> str | None:
        """The first tensor that is there, else the first that a config can add, else a Llama's."""
        means = {name: self.forms.means(name) for name in names}
        order: tuple[Callable[[str | None], bool], ...] = (
            lambda by: by == "",
            lambda by: by is not None and by != "Llama",
            lambda by: by is not None,
        )
        for wanted in order:
            for name, by in means.items():
                if wanted(by):
                    return name
        return None

    def refuse(self, atoms: Iterable[Affine], reason: str) -> None:
        """Remember atoms that cannot be folded."""
        for atom in atoms:
            if all(atom is not refusal.atom for refusal in self.refusals):
                self.refusals.append(Refusal(atom, reason))

    def no_bias(self) -> str:
        """Why a shift found no bias."""
        if self.forms.windowed:
            return (
                "no bias there, and with its sliding window this model is not a Llama with biases"
            )
        return "no bias there, and no setting of its config adds one"

    def _note(self, atoms: Sequence[Affine], part: str, name: str) -> None:
        by = self.forms.means(name) or ""
        for atom in atoms:
            slot = Slot(atom.describe(), part, name, by)
            if slot not in self.slots:
                self.slots.append(slot)


def spread(rows: Tensor, values: Tensor, width: int, fill: float) -> Tensor:
    """[width], `values` at `rows` and `fill` elsewhere."""
    full = torch.full((width,), fill, dtype=torch.float64)
    full[rows] = values
    return full
