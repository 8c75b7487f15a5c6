"""Writing a baked checkpoint from its base's files, tensor by tensor.

Shards keep their names and their order; bytes that stay are copied by the kernel; one tensor at a
time is computed. Memory is bounded by the largest tensor that changes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from interp._bake.layout import Layout, put_piece
from interp._bake.recipe import Realised, cook
from interp._errors import InterpError
from interp._weights.stored import DTYPES, dtype_name, whole

INDEX = "model.safetensors.index.json"
_UNTIED = "model-untied.safetensors"
_BLOCK = 64 * 2**20


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its entries in the order of their bytes, and where these begin."""

    path: Path
    entries: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    start: int


def stream(layout: Layout, folder: Path, out: Path) -> dict[str, Realised]:
    """Write every weight file of the result, and its index where the base has one.

    Returns:
        What became of each changed tensor.
    """
    shards = [open_shard(folder / name) for name in shard_names(folder)]
    job = _Job(layout)
    where = {name: shard.path.name for shard in shards for name in shard.entries}
    added: dict[str, dict[str, _New]] = {}
    for name, beside in layout.added.items():
        apart = len(shards) > 1 and name in layout.plan.canonical
        file = _UNTIED if apart else where[beside]
        added.setdefault(file, {})[name] = job.new(name, beside)
        where[name] = file
    with tqdm(total=len(where), desc="bake", unit="tensor", leave=False) as progress:
        for shard in shards:
            new = added.pop(shard.path.name, {})
            _write(shard, out / shard.path.name, job, new)
            progress.update(len(shard.entries) + len(new))
        for file, new in added.items():
            empty = Shard(out / file, {}, shards[0].metadata, 0)
            _write(empty, out / file, job, new)
            progress.update(len(new))
    if (folder / INDEX).is_file():
        _write_index(folder / INDEX, out / INDEX, where, job.new_bytes)
    return job.realised


def shard_names(folder: Path) -> list[str]:
    """The weight files that transformers reads, by name.

    Raises:
        InterpError: an index that names anything but files of this folder.
    """
    if not (folder / INDEX).is_file():
        if not (folder / "model.safetensors").is_file():
            raise InterpError(f"{folder} has no model.safetensors; expected what save_pretrained")
        return ["model.safetensors"]
    listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return sorted(set(listed))  # checked when the checkpoint was opened


def open_shard(path: Path) -> Shard:
    """The header of a safetensors file, checked by safetensors itself."""
    try:
        with safetensors.safe_open(path, framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise InterpError(f"{path} is damaged: {error}; fetch that file anew") from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    entries = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    return Shard(path, entries, metadata, 8 + length)


@dataclass(frozen=True)
class _New:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class _Job:
    """Computes tensors when they are due, each parameter once."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.realised = layout, dict[str, Realised]()
        self.new_bytes = 0
        self._latest: tuple[str, Tensor] | None = None

    def changes(self, key: str) -> bool:
        """Whether a stored tensor is other than the base's."""
        return key in self.layout.whole_tensors or key in self.layout.pieces

    def stored(self, key: str) -> Tensor:
        """What to store instead of a tensor of the base."""
        if key in self.layout.whole_tensors:
            return self._cooked(self.layout.whole_tensors[key], torch.float32)
        tensor = whole(self.layout.checkpoint.tensors[key])
        for piece in self.layout.pieces[key]:
            put_piece(piece, self._cooked(piece.parameter, tensor.dtype), tensor)
        return tensor

    def new(self, name: str, beside: str) -> _New:
        """A tensor that the base lacks, in the dtype of its neighbour."""
        dtype = DTYPES[self.layout.checkpoint.tensors[beside].dtype]
        found = _New(dtype, self.layout.plan.recipes[name].shape)
        self.new_bytes += found.nbytes
        return found

    def added(self, name: str, new: _New) -> Tensor:
        """The numbers of a new tensor."""
        return self._cooked(name, new.dtype)

    def _cooked(self, name: str, dtype: torch.dtype) -> Tensor:
        if self._latest is None or self._latest[0] != name:
            self._latest = None  # before the next one is computed
            recipes = self.layout.plan.recipes
            tensor, self.realised[name] = cook(recipes, name, self.layout.read, dtype)
            self._latest = (name, tensor)
        return self._latest[1]


def _write(shard: Shard, path: Path, job: _Job, new: Mapping[str, _New]) -> None:
    """One file: the base's entries in their order, then the new ones."""
    changed = [name for name in shard.entries if job.changes(name)]
    if not changed and not new:
        shutil.copyfile(shard.path, path)
        return
    header, end = {}, 0
    for name, entry in shard.entries.items():
        first, last = entry["data_offsets"]
        header[name] = {**entry, "data_offsets": [end, end + last - first]}
        end += last - first
    for name, tensor in new.items():
        header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps({"__metadata__": {"format": "pt", **shard.metadata}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as out:
        _put(out.fileno(), memoryview(struct.pack("<Q", len(text)) + text))
        if shard.entries:
            _write_entries(shard, out.fileno(), job)
        for name, tensor in new.items():
            _put_tensor(out.fileno(), job.added(name, tensor))


def _write_entries(shard: Shard, out: int, job: _Job) -> None:
    """Runs of unchanged bytes are copied at once."""
    with shard.path.open("rb", buffering=0) as source:
        run = [shard.start, shard.start]
        for name, entry in shard.entries.items():
            last = shard.start + entry["data_offsets"][1]
            if not job.changes(name):
                run[1] = last
                continue
            _copy(source.fileno(), out, *run)
            _put_tensor(out, job.stored(name))
            run = [last, last]
        _copy(source.fileno(), out, *run)


def _copy(source: int, out: int, start: int, stop: int) -> None:
    """Bytes from one file to the end of another, within the kernel where it can."""
    copy: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    while start < stop:
        count = 0
        if copy is not None:
            try:
                count = copy(source, out, stop - start, offset_src=start)
            except OSError:  # between file systems, or one that cannot
                copy = None
        if count == 0:
            block = os.pread(source, min(_BLOCK, stop - start), start)
            if not block:
                raise InterpError("a weight file of the base became shorter while it was read")
            count = os.write(out, block)
        start += count


def _put_tensor(out: int, tensor: Tensor) -> None:
    if tensor.numel():
        _put(out, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _put(out: int, data: memoryview) -> None:
    while data:
        data = data[os.write(out, data[:_BLOCK]) :]


def _write_index(source: Path, path: Path, where: Mapping[str, str], new_bytes: int) -> None:
    index = json.loads(source.read_text(encoding="utf-8"))
    metadata = dict(index.get("metadata") or {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += new_bytes
    metadata.pop("total_parameters", None)
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(where.items()))}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
