"""What one task found, and how it is kept on disk until all are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp._weights.checkpoint import local_folder, stamp

Row = dict[str, Any]


@runtime_checkable
class Job(Protocol):
    """What the engine needs to know of a task."""

    @property
    def tensor(self) -> str:
        """Canonical name."""

    @property
    def nbytes(self) -> int:
        """Bytes it reads."""

    @property
    def on_disk(self) -> bool:
        """Whether another process can do it."""

    def key(self) -> str:
        """A name for its result."""


@dataclass(frozen=True)
class Measurement:
    """What a task found: columns of the matrix, of its heads, and vectors by name."""

    row: Row
    heads: list[Row] = field(default_factory=list)
    vectors: dict[str, Tensor] = field(default_factory=dict)


def job_key(sources: Sequence[str], *words: Any) -> str:
    """A hash of what a result depends on: files with their sizes and times, names, options."""
    stamps = [stamp(local_folder(source)) for source in sources]
    text = json.dumps([list(sources), stamps, *words])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def save_measurement(found: Measurement, path: Path) -> None:
    """Write one result under a temporary name, then rename."""
    from safetensors.torch import save_file

    scratch = path.with_suffix(".part")
    text = json.dumps([found.row, found.heads])
    vectors = {name: vector.contiguous() for name, vector in found.vectors.items()}
    save_file(vectors or {"none": torch.zeros(0)}, scratch, metadata={"rows": text})
    scratch.replace(path)


def load_measurement(path: Path) -> Measurement:
    """Read what `save_measurement` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        row, heads = json.loads(file.metadata()["rows"])
        vectors = {name: file.get_tensor(name) for name in file.keys() if name != "none"}  # noqa: SIM118
    return Measurement(row, heads, vectors)
