"""Where the parameters of a module lie in a checkpoint's files, to read them and to write them.

Most lie under their own name. Experts that are stored one by one, and tensors that transformers
renames on loading, are put together from pieces and taken apart again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from interp._bake.plan import Plan
from interp._errors import InterpError
from interp._weights.checkpoint import Checkpoint
from interp._weights.parameters import Assembled, Held, parameters_of, rows_of
from interp._weights.part import Part
from interp._weights.stored import Stored, whole


@dataclass(frozen=True)
class Piece:
    """A part of a parameter that is a part of a stored tensor."""

    parameter: str
    place: Part  # in the parameter
    part: Part  # in the stored tensor


@dataclass(frozen=True)
class Layout:
    """One checkpoint's parameters, and the stored tensors that a plan touches.

    Args:
        checkpoint: the base.
        held: its parameters by the module's names, tied ones once.
        plan: what to change.
    """

    checkpoint: Checkpoint
    held: Mapping[str, Held]
    plan: Plan

    def read(self, name: str) -> Tensor:
        """A parameter of the base in its stored dtype, in memory of its own."""
        source = self.held[self._named(name)].source
        return source.read() if isinstance(source, Assembled) else whole(source)

    @cached_property
    def whole_tensors(self) -> dict[str, str]:
        """Stored tensor -> the parameter that it is, for those that change."""
        found = {}
        for key, stored in self.checkpoint.tensors.items():
            name = self._owner.get(_place(stored), key)
            recipe = name if name in self.plan.recipes else self._tied(name)
            if recipe is not None:
                found[key] = recipe
        return found

    @cached_property
    def pieces(self) -> dict[str, list[Piece]]:
        """Stored tensor -> the pieces of changed parameters in it."""
        keys = {_place(stored): key for key, stored in self.checkpoint.tensors.items()}
        found: dict[str, list[Piece]] = {}
        for name, held in self.held.items():
            if name in self.plan.recipes and isinstance(held.source, Assembled):
                for place, stored, part in held.source.pieces:
                    found.setdefault(keys[_place(stored)], []).append(Piece(name, place, part))
        return found

    @cached_property
    def added(self) -> dict[str, str]:
        """New tensor -> the stored tensor beside which it belongs."""
        found = {}
        for name in self.plan.recipes:
            if name in self.whole_tensors.values() or name in self._assembled:
                continue
            module = name.rpartition(".")[0]
            beside = f"{module}.weight"
            if self.plan.untied and name in self.plan.canonical:
                beside = self._named(self.plan.canonical[name])
            if beside not in self.checkpoint.tensors:
                raise InterpError(
                    f"{self.checkpoint.source} does not store {beside} under this name, so "
                    f"{name} would not be found beside it"
                )
            found[name] = beside
        return found

    @cached_property
    def _owner(self) -> dict[tuple[str, int], str]:
        """Where a parameter lies -> its name, for those that are one stored tensor."""
        return {
            _place(held.source): name
            for name, held in self.held.items()
            if isinstance(held.source, Stored)
        }

    @cached_property
    def _assembled(self) -> set[str]:
        return {name for name, h in self.held.items() if isinstance(h.source, Assembled)}

    def _tied(self, name: str) -> str | None:
        """The recipe of the tensor that this one is another name of."""
        if self.plan.untied:
            return None
        canonical = self.plan.canonical.get(name)
        return canonical if canonical in self.plan.recipes else None

    def _named(self, name: str) -> str:
        """The name under which the base keeps a parameter, tied ones under one of theirs."""
        if name in self.held:
            return name
        canonical = self.plan.canonical.get(name, name)
        same = [n for n, c in self.plan.canonical.items() if c == canonical and n in self.held]
        if not same:
            raise InterpError(f"{self.checkpoint.source} holds no {name}")
        return same[0]


def layout_of(checkpoint: Checkpoint, plan: Plan) -> Layout | None:
    """How to stream a plan through a checkpoint; None where its names are not understood."""
    try:
        layout = Layout(checkpoint, parameters_of(checkpoint), plan)
        _ = layout.added, layout.pieces
        for recipe in plan.recipes.values():
            if recipe.source is not None:
                layout._named(recipe.source)
    except InterpError:
        return None
    return layout


def put_piece(piece: Piece, parameter: Tensor, stored: Tensor) -> None:
    """Write one piece of a parameter into a stored tensor, in place."""
    values = parameter.view(-1, piece.place.width)
    values = values[rows_of(piece.place)][:, slice(*piece.place.columns)]
    values = values.T if piece.part.transposed != piece.place.transposed else values
    stored.view(-1, piece.part.width)[rows_of(piece.part), slice(*piece.part.columns)] = values


def _place(stored: Stored) -> tuple[str, int]:
    return stored.file, stored.offset
