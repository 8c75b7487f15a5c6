"""The state of a training on disk, so that an interrupted one continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interp import InterpError
from interp._record import FILES, load_record, save_record


class Checkpoint:
    """A folder with the last state that was written whole.

    Args:
        path: the folder.
        kind: of training.
        asked: what identifies the training, as plain JSON.

    Raises:
        InterpError: a file is there, or a folder with anything that is no state of a training:
            said before any work, for the folder is removed at the end.
    """

    def __init__(self, path: str | Path, kind: str, asked: Mapping[str, Any]) -> None:
        self.path, self.kind = Path(path), kind
        self.asked = json.loads(json.dumps(asked))
        other = self.path.exists() and (
            not self.path.is_dir() or {held.name for held in self.path.iterdir()} - FILES
        )
        if other:
            raise InterpError(
                f"checkpoint={str(path)!r} is there and holds something else; name a new folder, "
                f"which is removed when the training is done"
            )

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last; None for nothing yet.

        Raises:
            InterpError: the folder holds another training.
        """
        if not (self.path / "meta.json").is_file():
            return None
        tensors, meta = load_record(self.path, self.kind)
        if meta["asked"] != self.asked:
            differing = [k for k in self.asked if meta["asked"].get(k) != self.asked[k]]
            raise InterpError(
                f"{self.path} holds the state of another training (another "
                f"{' and '.join(differing)}); choose a new folder, or delete this one"
            )
        return tensors, meta

    def save(self, tensors: Mapping[str, Tensor], **meta: Any) -> None:
        """Write a state in place of the one before."""
        save_record(self.path, self.kind, tensors, {"asked": self.asked, **meta})

    def remove(self) -> None:
        """The training is done."""
        if self.path.is_dir():
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without the prefix."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def digest(*things: Any) -> str:
    """A short hash of data: of whole tensors, and of whatever else by its repr."""
    found = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Tensor):
            thing = (
                thing.dtype,
                tuple(thing.shape),
                thing.detach().cpu().float().numpy().tobytes(),
            )
        found.update(repr(thing).encode())
    return found.hexdigest()[:16]
