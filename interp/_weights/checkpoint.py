"""A checkpoint as a list of tensors on disk (or in memory), opened without building a model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp._errors import InterpError, folders_near, neither_folder_nor_hub
from interp._weights.config import read_config
from interp._weights.lora import LowRank, is_adapter, open_adapter
from interp._weights.names import parts_of
from interp._weights.part import Part
from interp._weights.stored import DTYPES, Stored, dtype_name

_INDEX = "model.safetensors.index.json"
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their state-dict names, and the config that says what they are.

    Args:
        source: folder, or the name of a module in memory.
        tensors: where each tensor lies.
        config: the config as a plain dict, defaults included; empty when there is none.
        low_rank: for an adapter, what it adds to tensors of its base.
    """

    source: str
    tensors: Mapping[str, Stored] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict, repr=False)

    @property
    def in_memory(self) -> bool:
        """Whether the tensors belong to a module here, which no other process can read."""
        return any(s.held is not None and not s.file for s in self.tensors.values())

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The matrices by canonical name."""
        return parts_of(self.config, self.tensors)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, so that one tensor serves as both."""
        return "embed.weight" in self.parts and "head.weight" not in self.parts


def open_checkpoint(
    source: str | Path | nn.Module | Checkpoint,
    base: str | Path | nn.Module | Checkpoint | None = None,
) -> Checkpoint:
    """The tensors of a folder, a hub id (`name` or `name@revision`), a module or a LoRA adapter.

    Headers are read, weights are not. Legacy `.bin` files are opened with `weights_only=True`.

    Args:
        source: what to open.
        base: the checkpoint that an adapter changes.

    Raises:
        InterpError: nothing there, truncated or missing shards, an index that disagrees with its
            shards, quantised weights, an adapter without its base.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        return _of_module(source)
    folder = local_folder(source)
    if is_adapter(folder):
        if base is None:
            raise InterpError(
                f"{source} holds a LoRA adapter, which is a change and no checkpoint: give its "
                f"base model as the first argument and the adapter as the second"
            )
        if isinstance(base, nn.Module | Checkpoint):
            return _of_adapter(folder, open_checkpoint(base))
        root = local_folder(base)
        return _of_adapter_folder(str(folder), stamp(folder), str(root), stamp(root))
    return _of_folder(str(folder), stamp(folder))


def local_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; a hub id is downloaded (weights and configs only)."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    text = str(source)
    looks_like_path = folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1
    if looks_like_path or folder.suffix in (".safetensors", ".bin"):
        raise InterpError(f"no checkpoint folder at {source}; {folders_near(folder)}")
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    try:
        patterns = ["*.safetensors", "*.json"]
        found = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InterpError(neither_folder_nor_hub(text, reason)) from error
    return Path(found)


def stamp(folder: Path) -> Stamp:
    """Names, sizes and times of a folder's files: it is opened anew when one changes."""
    status = [(p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file()]
    return tuple((name, s.st_size, s.st_mtime_ns) for name, s in status)


@lru_cache(maxsize=64)
def _of_folder(folder: str, _files: Stamp) -> Checkpoint:
    path = Path(folder)
    config = read_config(path)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise InterpError(
            f"{folder} stores quantised weights ({method}), whose entries are codes and not "
            f"numbers; compare the checkpoint it was made from, or dequantise it first"
        )
    files = _shards(path)
    tensors = dict(_headers(path, files)) if files else dict(_legacy(path))
    return Checkpoint(folder, tensors, config)


def _of_module(module: nn.Module) -> Checkpoint:
    """A module's parameters and buffers, each storage once."""
    tensors, seen = {}, set()
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key in seen and tensor.numel():
            continue
        seen.add(key)
        held = tensor.detach().cpu().contiguous()
        tensors[name] = Stored(dtype_name(tensor.dtype), tuple(tensor.shape), held=held)
    config = getattr(module, "config", None)
    as_dict = config.get_text_config().to_dict() if config is not None else {}
    return Checkpoint(str(getattr(module, "name_or_path", "") or "module"), tensors, as_dict)


@lru_cache(maxsize=16)
def _of_adapter_folder(folder: str, _own: Stamp, base: str, _base: Stamp) -> Checkpoint:
    return _of_adapter(Path(folder), open_checkpoint(base))


def _of_adapter(folder: Path, start: Checkpoint) -> Checkpoint:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        stored = dict(_headers(folder, [file]))
    else:
        stored = dict(_legacy(folder, pattern="adapter_model.bin"))
    replaced, low_rank = open_adapter(folder, stored, start.tensors)
    return Checkpoint(str(folder), {**start.tensors, **replaced}, start.config, low_rank)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, as its index lists them; checked to be there."""
    index = folder / _INDEX
    if not index.is_file():
        return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_"))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise InterpError(f"{index} is damaged: {error!r}; fetch the checkpoint anew") from error
    outside = [n for n in names if not isinstance(n, str) or n in ("", "..") or {*n} & {*"/\\"}]
    if outside:
        raise InterpError(
            f"{index} names {outside[0]!r}, which is no file of its folder: do not trust this "
            f"checkpoint"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InterpError(
            f"{folder} lacks {len(missing)} of {len(names)} shards, such as {missing[0]}; "
            f"fetch the checkpoint anew"
        )
    files = [folder / name for name in names]
    present = {*files, *folder.glob("model-*-of-*.safetensors")}  # a shard no entry points to
    inside = {tensor: file.name for file in sorted(present) for tensor in _header(file)[0]}
    _check_index(index, weight_map, inside)
    return files


def _check_index(index: Path, listed: Mapping[str, str], inside: Mapping[str, str]) -> None:
    lost = sorted(name for name, file in listed.items() if inside.get(name) != file)
    if lost:
        raise InterpError(
            f"{index} lists {len(lost)} tensors that their shards do not hold, such as {lost[0]} "
            f"in {listed[lost[0]]}; fetch the checkpoint anew"
        )
    unlisted = sorted(set(inside) - set(listed))
    if unlisted:
        raise InterpError(
            f"{index} misses {len(unlisted)} tensors that the shards hold, such as {unlisted[0]}, "
            f"so transformers would not load them; write the index anew"
        )


def _headers(folder: Path, files: list[Path]) -> Iterator[tuple[str, Stored]]:
    for file in files:
        header, start = _header(file)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES and entry["dtype"] in ("U8", "I8", "U4", "I4"):
                raise InterpError(
                    f"{name} in {folder} has dtype {entry['dtype']}, the codes of quantised "
                    f"weights; compare the checkpoint it was made from, or dequantise it first"
                )
            if entry["dtype"] in DTYPES:  # integers are counters and masks, no weights
                offset = start + entry["data_offsets"][0]
                yield name, Stored(entry["dtype"], tuple(entry["shape"]), str(file), offset)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header and where its data begin; checks that the file is whole."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise InterpError(f"{file} is truncated within its header; fetch that file anew")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise InterpError(f"{file} is no safetensors file or is damaged ({error!r})") from error
    if size != 8 + length + end:
        raise InterpError(
            f"{file} is truncated or damaged: its header asks for {8 + length + end} bytes and it "
            f"has {size}; fetch that file anew"
        )
    return header, 8 + length


def _legacy(folder: Path, pattern: str = "pytorch_model*.bin") -> Iterator[tuple[str, Stored]]:
    """Tensors of pickled files, mapped, opened with `weights_only=True` (which runs no code)."""
    files = sorted(folder.glob(pattern))
    if not files:
        raise InterpError(
            f"{folder} has neither *.safetensors nor {pattern}; expected a folder written by "
            f"save_pretrained"
        )
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            raise InterpError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
        except Exception as error:  # UnpicklingError, whose home moves between versions
            raise InterpError(
                f"{file} holds more than tensors, so opening it could run code; convert it to "
                f"safetensors with a loader you trust"
            ) from error
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                shape = tuple(tensor.shape)
                yield name, Stored(dtype_name(tensor.dtype), shape, str(file), held=tensor)
