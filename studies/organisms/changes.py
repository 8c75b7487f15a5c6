"""A bfloat16 checkpoint stored, without loss, as its difference from another.

bfloat16 numbers are counted in order (..., -0, 0, the next larger, ...); a file holds by how many
places each weight moved. Post-training moves most weights by a few places, so that this takes half
the room of the weights themselves.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

State = Mapping[str, Tensor]  # bfloat16 tensors by name
LIMIT = 2**30  # bytes a file may unpack to


def write(path: Path, before: State, after: State) -> None:
    """Stores `after` as its difference from `before`; both have the same names and shapes."""
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        raise ValueError("the two checkpoints differ in tensors or shapes")
    moved = np.concatenate([_places(after[k]) - _places(before[k]) for k in sorted(before)])
    folded = np.where(moved >= 0, 2 * moved, -2 * moved - 1)  # small numbers for small moves
    planes = [(folded >> shift & 255).astype(np.uint8).tobytes() for shift in (0, 8, 16)]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(lzma.compress(b"".join(planes), preset=9))
    temporary.replace(path)


def read(path: Path, before: State) -> dict[str, Tensor]:
    """The checkpoint that `write` stored, bit for bit, given the one it was stored against."""
    raw = lzma.LZMADecompressor().decompress(path.read_bytes(), LIMIT)
    planes = np.frombuffer(raw, np.uint8).astype(np.int64)
    count = sum(tensor.numel() for tensor in before.values())
    if planes.size != 3 * count:
        raise ValueError(f"{path} does not belong to this checkpoint of {count} weights")
    low, middle, high = planes.reshape(3, count)
    folded = low + (middle << 8) + (high << 16)
    moved = np.where(folded % 2 == 0, folded // 2, -(folded + 1) // 2)
    after, at = {}, 0
    for name in sorted(before):
        tensor = before[name]
        places = _places(tensor) + moved[at : at + tensor.numel()]
        after[name] = _numbers(places).reshape(tensor.shape)
        at += tensor.numel()
    return {name: after[name] for name in before}


def _places(tensor: Tensor) -> np.ndarray:
    """The place of each bfloat16 in the order of all: 0 for 0.0, -1 for -0.0."""
    if tensor.dtype != torch.bfloat16:
        raise ValueError(f"bfloat16 weights are stored as changes, not {tensor.dtype}")
    bits = tensor.contiguous().view(torch.int16).numpy().astype(np.int64).ravel()
    return np.where(bits >= 0, bits, -1 - (bits & 0x7FFF))


def _numbers(places: np.ndarray) -> Tensor:
    bits = np.where(places >= 0, places, (-1 - places) | 0x8000).astype(np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
