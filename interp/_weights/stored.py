"""One tensor where it lies: in a file, to be read by position, or in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp._errors import InterpError

# Names as safetensors writes them. What is missing here is no floating-point weight.
DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype: `torch.bfloat16` is `BF16`."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: its type, its shape, and where its bytes are.

    `file` and `offset` point into a safetensors file; `held` is a tensor in memory (a module's, or
    a mapped legacy file's), and then nothing is read.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    offset: int = 0
    held: Tensor | None = field(default=None, repr=False, compare=False)


class Buffers:
    """Two reused blocks of memory, so that reading a checkpoint of any size costs the same."""

    def __init__(self) -> None:
        self._blocks: dict[str, np.ndarray] = {}

    def take(self, name: str, nbytes: int) -> np.ndarray:
        """The first `nbytes` of the block called `name`, grown when it is too small."""
        block = self._blocks.get(name)
        if block is None or block.nbytes < nbytes:
            block = self._blocks[name] = np.empty(nbytes, dtype=np.uint8)
        return block[:nbytes]


@contextmanager
def opened(stored: Stored) -> Iterator[int]:
    """A descriptor of the file that holds a tensor; -1 for one in memory."""
    if stored.held is not None:
        yield -1
        return
    descriptor = os.open(stored.file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_blocks(
    stored: Stored,
    descriptor: int,
    blocks: Sequence[tuple[int, int]],
    *,
    width: int,
    block: np.ndarray,
) -> Tensor:
    """Ranges of rows of a tensor seen as [-1, width], one below the other, in its own dtype.

    The result lives in `block`. Reads, never maps: mapped pages count as resident.
    """
    if stored.held is not None:
        rows = stored.held.detach().reshape(-1, width)
        parts = [rows[start:stop] for start, stop in blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    dtype = DTYPES[stored.dtype]
    row, done, view = width * dtype.itemsize, 0, block.data
    for start, stop in blocks:
        size = (stop - start) * row
        _read_into(descriptor, view[done : done + size], stored.offset + start * row, stored.file)
        done += size
    return torch.from_numpy(block[:done]).view(dtype).view(-1, width)


def whole(stored: Stored) -> Tensor:
    """A tensor as it is stored, in memory of its own."""
    width = stored.shape[-1] if len(stored.shape) > 1 else 1
    rows = int(np.prod(stored.shape)) // max(width, 1)
    block = np.empty(rows * width * DTYPES[stored.dtype].itemsize, dtype=np.uint8)
    with opened(stored) as descriptor:
        read = read_blocks(stored, descriptor, [(0, rows)], width=width, block=block)
    return read.view(stored.shape)


def _read_into(descriptor: int, view: memoryview, offset: int, file: str) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise InterpError(f"{file} ends before its header says; fetch that file anew")
        done += count
