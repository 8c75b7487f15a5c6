"""An edit: an ordered list of atoms that can be applied, composed, saved, loaded and baked."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from interp._edit.affine import Affine
from interp._edit.applied import Application, applications, originals, put_on, take_off
from interp._edit.clock import PromptLength
from interp._edit.delta import Delta
from interp._edit.identity import Identity, identity_of
from interp._errors import InterpError, nearest
from interp._model import Model, as_model

Atom = Affine | Delta


@dataclass(frozen=True, eq=False, init=False)
class Edit:
    """What to change in a model, as data.

    Deltas act on the raw weights, in their order; affines act on the activations that follow, in
    theirs. `a + b` is a, then b; `t * e` scales the change (`scale -> 1 + t (scale - 1)`,
    `shift -> t shift`, `change -> t change`); `-e` is `-1 * e`.

    Args:
        atoms: `Affine` and `Delta`, in order.
        made_on: the models it was learned on, where it was; applying it to another one then needs
            `transfer=True`.
        notes: anything worth knowing of its origin, as plain JSON.

    Examples:
        >>> edit = Edit([Affine("z.3", (5,), scale=0.0)])
        >>> with edit.applied(model):
        ...     changed = model.module(input_ids).logits
        >>> edit + 0.5 * edit
        Edit(z.3, head 5: scale 0; z.3, head 5: scale 0.5)
    """

    atoms: tuple[Atom, ...]
    made_on: tuple[Identity, ...]
    notes: Mapping[str, Any]

    def __init__(
        self,
        atoms: Iterable[Atom] = (),
        made_on: Iterable[Identity] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "atoms", tuple(atoms))
        put(self, "made_on", tuple(made_on))
        put(self, "notes", dict(notes or {}))
        for atom in self.atoms:
            if not isinstance(atom, Affine | Delta):
                raise InterpError(f"an Edit holds Affine and Delta, got {type(atom).__name__}")

    @property
    def affines(self) -> tuple[Affine, ...]:
        """The maps on activations, in order."""
        return tuple(atom for atom in self.atoms if isinstance(atom, Affine))

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """The changes of weights, in order."""
        return tuple(atom for atom in self.atoms if isinstance(atom, Delta))

    def select(self, *patterns: str) -> Edit:
        """The atoms at matching sites or parameters, in order.

        Args:
            patterns: with `*` for anything: `"z.*"`, `"mlp_post.3"`, `"*.q_proj.weight"`.

        Raises:
            InterpError: a pattern that matches nothing, with the nearest names.
        """
        names = [_name(atom) for atom in self.atoms]
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                known = nearest(pattern, dict.fromkeys(names))
                raise InterpError(f"no atom of this edit is at {pattern!r}; {known}")
        chosen = [
            atom
            for atom, name in zip(self.atoms, names, strict=True)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        return replace(self, atoms=tuple(chosen))

    @contextmanager
    def applied(
        self,
        model: Model | nn.Module,
        *,
        transfer: bool = False,
        prompt_len: PromptLength = None,
    ) -> Iterator[None]:
        """The model with this edit while the context is open; then without it, bit for bit.

        Everything is checked before anything changes. Contexts nest. It works under `generate`,
        under gradients (call `backward` inside), on a model that peft has wrapped, and with
        quantised or offloaded weights where the change is low-rank.

        Args:
            model: a handle or a bare PreTrainedModel.
            transfer: allow another model of the same shapes than the one it was made on.
            prompt_len: tokens in each prompt, for positions such as "last" where no cache tells:
                a number, or one for each row (`batch.lengths`).

        Raises:
            InterpError: a parameter, head or neuron that the model lacks, another shape, a model
                it was not made on.
            UnsupportedSite: a site that this architecture does not have, with the reason.
        """
        application = self._put_on(as_model(model), transfer, prompt_len)
        module = as_model(model).module
        try:
            yield
        finally:
            take_off(application, module)

    def apply_(
        self,
        model: Model | nn.Module,
        *,
        transfer: bool = False,
        prompt_len: PromptLength = None,
    ) -> None:
        """Put this edit on a model until `undo_`; arguments as for `applied`."""
        self._put_on(as_model(model), transfer, prompt_len)

    def undo_(self, model: Model | nn.Module) -> None:
        """Take this edit off again: the saved weights come back, so bits do too.

        Raises:
            InterpError: it is not on this model, or a later edit changed the same weights.
        """
        module = as_model(model).module
        mine = [a for a in applications(module) if a.edit is self]
        mine = mine or [a for a in applications(module) if a.edit == self]
        if not mine:
            raise InterpError("this edit is not on this model, so there is nothing to undo")
        take_off(mine[-1], module)

    def on(self, model: Model | nn.Module) -> Edit:
        """The same edit, remembering that it was made on this model."""
        handle = as_model(model)
        identity = identity_of(handle.module, handle.name, originals(handle.module))
        return replace(self, made_on=(identity,))

    def save(self, path: str | Path, *, model: Model | nn.Module | None = None) -> Path:
        """Write a folder with `tensors.safetensors` and `meta.json`, whole or not at all.

        Args:
            path: the folder; an edit saved there before is replaced.
            model: record this model's identity too.
        """
        from interp._edit.record import save_edit

        return save_edit(self if model is None else self.on(model), path)

    @staticmethod
    def load(path: str | Path) -> Edit:
        """Read an edit that `save` wrote; nothing in the folder is trusted.

        Raises:
            InterpError: no edit there, a damaged or hostile file, a newer schema.
        """
        from interp._edit.record import load_edit

        return load_edit(path)

    def _put_on(self, model: Model, transfer: bool, prompt_len: PromptLength) -> Application:
        if self.made_on:
            here = identity_of(model.module, model.name, originals(model.module))
            for identity in self.made_on:
                identity.check(here, transfer=transfer)
        return put_on(self, self.atoms, model, prompt_len)

    def __add__(self, other: Edit) -> Edit:
        if not isinstance(other, Edit):
            return NotImplemented
        made_on = self.made_on + tuple(i for i in other.made_on if i not in self.made_on)
        return Edit(self.atoms + other.atoms, made_on, {**self.notes, **other.notes})

    def __radd__(self, other: Any) -> Edit:
        return self if other == 0 else NotImplemented  # sum() starts from 0

    def __mul__(self, t: int | float) -> Edit:
        if isinstance(t, bool) or not isinstance(t, int | float):
            return NotImplemented
        if not math.isfinite(t):
            raise InterpError(f"an edit cannot be taken {t} times")
        return replace(self, atoms=tuple(atom.times(t) for atom in self.atoms))

    __rmul__ = __mul__

    def __neg__(self) -> Edit:
        return -1 * self

    def __sub__(self, other: Edit) -> Edit:
        return self + (-other)

    def __len__(self) -> int:
        return len(self.atoms)

    def __iter__(self) -> Iterator[Atom]:
        return iter(self.atoms)

    def __eq__(self, other: object) -> bool:
        return self.atoms == other.atoms if isinstance(other, Edit) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [atom.describe() for atom in self.atoms[:8]]
        if len(self.atoms) > 8:
            shown.append(f"and {len(self.atoms) - 8} more")
        return f"Edit({'; '.join(shown)})"


def _name(atom: Atom) -> str:
    return str(atom.site) if isinstance(atom, Affine) else atom.parameter
