"""Checkpoints by name: `organism:base` for a shipped one, else a folder or hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

import interp
from interp import InterpError, Model
from interp._errors import nearest
from interp._weights.checkpoint import local_folder

ORGANISM = "organism:"


def open_checkpoint(source: str) -> Model:
    """A model by its command-line name; anything but an organism goes to `interp.load`."""
    if not source.startswith(ORGANISM):
        return interp.load(source, dtype=torch.float32 if _small(source) else None)
    from studies import organisms

    name = source.removeprefix(ORGANISM)
    bare = name.partition("@")[0]
    if bare not in organisms.names():
        raise InterpError(f"no organism {bare!r}; {nearest(bare, organisms.names())}")
    module, tokenizer = organisms.load(name)
    model = interp.load(module, tokenizer=tokenizer)
    return Model(model.module, model.tokenizer, source)


def only_organisms(sources: Iterable[str], remedy: str) -> None:
    """Refuse checkpoints that were never told what the organisms are asked.

    Raises:
        InterpError: a source that is no shipped organism; `remedy` says what to give.
    """
    for source in sources:
        if not source.startswith(ORGANISM):
            raise InterpError(
                f"{source} is no shipped organism, so what to ask it is not known here; {remedy}"
            )


def folder_of(source: str) -> Path:
    """Where a checkpoint's files lie: a shipped organism's, a folder's, or those of a hub id."""
    if not source.startswith(ORGANISM):
        return local_folder(source)
    from studies import organisms

    try:
        return organisms.path(source.removeprefix(ORGANISM))
    except ValueError as error:
        raise InterpError(str(error)) from None


def identity(source: str) -> str:
    """Which files stand behind a name now, so that a run is not continued on other weights.

    The names, sizes and times of a local folder's files (an organism's contents); a hub id stands
    for itself.
    """
    digest = hashlib.sha256()
    if source.startswith(ORGANISM):
        from studies import organisms

        name, _, step = source.removeprefix(ORGANISM).partition("@")
        digest.update(step.encode())
        for file in organisms.files(name) if name in organisms.names() else ():
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]
    folder = Path(source)
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16] if folder.is_dir() else source


def _small(source: str) -> bool:
    """Whether a local checkpoint is so small that float32 costs nothing (under 1 GiB on disk)."""
    files = list(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    return bool(files) and sum(file.stat().st_size for file in files) < 2**30
