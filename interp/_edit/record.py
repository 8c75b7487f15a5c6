"""An edit on disk: safetensors and JSON, read back with nothing taken on trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interp._edit.affine import Affine
from interp._edit.change import change_from
from interp._edit.delta import Delta
from interp._edit.edit import Atom, Edit
from interp._edit.identity import Identity
from interp._errors import InterpError
from interp._record import load_record, save_record

_LARGEST_META = 64 * 2**20


def save_edit(edit: Edit, path: str | Path) -> Path:
    """Write an edit; what it would have read from disk when needed is read and stored."""
    tensors: dict[str, Tensor] = {}
    atoms = []
    for number, atom in enumerate(edit.atoms):
        described, held = _affine_out(atom) if isinstance(atom, Affine) else _delta_out(atom)
        atoms.append(described)
        tensors |= {f"{number}.{name}": tensor for name, tensor in held.items()}
    meta = {
        "atoms": atoms,
        "made_on": [identity.to_json() for identity in edit.made_on],
        "notes": dict(edit.notes),
        "reads": repr(edit),
    }
    return save_record(path, "edit", tensors, meta)


def load_edit(path: str | Path) -> Edit:
    """Read an edit.

    Raises:
        InterpError: no edit there, or one that is damaged: every field is checked again by the
            atoms themselves.
    """
    path = Path(path)
    meta_path = path / "meta.json"
    if meta_path.is_file() and meta_path.stat().st_size > _LARGEST_META:
        raise InterpError(f"{meta_path} is {meta_path.stat().st_size} bytes, which no edit needs")
    tensors, meta = load_record(path, "edit")
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, field = name.partition(".")
        held.setdefault(number, {})[field] = tensor
    try:
        atoms = [_atom_in(atom, held.pop(str(i), {})) for i, atom in enumerate(meta["atoms"])]
        made_on = [Identity.from_json(identity) for identity in meta.get("made_on", [])]
        notes = dict(meta.get("notes", {}))
    except InterpError as error:
        raise InterpError(f"{path} holds no usable edit: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InterpError(f"{path} is damaged and cannot be read ({error!r})") from error
    if held:
        raise InterpError(f"{path} holds tensors of no atom, such as atom {next(iter(held))!r}")
    return Edit(tuple(atoms), tuple(made_on), notes)


def _affine_out(atom: Affine) -> tuple[dict[str, Any], dict[str, Tensor]]:
    described = {
        "atom": "affine",
        "site": str(atom.site),
        "index": atom.index,
        "positions": atom.positions,
    }
    held = {"scale": atom.scale}
    return described, held if atom.shift is None else {**held, "shift": atom.shift}


def _delta_out(atom: Delta) -> tuple[dict[str, Any], dict[str, Tensor]]:
    described = {"atom": "delta", "parameter": atom.parameter, "untie": atom.untie}
    return described, atom.change.tensors()


def _atom_in(described: Mapping[str, Any], held: Mapping[str, Tensor]) -> Atom:
    if described["atom"] == "affine":
        if not {"scale"} <= set(held) <= {"scale", "shift"}:
            raise InterpError(f"an affine atom is stored as {sorted(held)}")
        index, positions = described["index"], described["positions"]
        return Affine(
            described["site"],
            None if index is None else tuple(tuple(u) if isinstance(u, list) else u for u in index),
            held["scale"],
            held.get("shift"),
            positions if isinstance(positions, str) else tuple(positions),
        )
    if described["atom"] == "delta":
        return Delta(described["parameter"], change_from(held), bool(described["untie"]))
    raise InterpError(f"an atom called {described['atom']!r}; expected 'affine' or 'delta'")
