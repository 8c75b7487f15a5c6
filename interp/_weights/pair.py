"""One matrix in two checkpoints, read in chunks or whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp._weights.checkpoint import Checkpoint
from interp._weights.part import Part
from interp._weights.stored import DTYPES, Buffers, Stored, opened, read_blocks


@dataclass(frozen=True)
class Side:
    """One matrix of one checkpoint."""

    checkpoint: Checkpoint
    part: Part

    @property
    def stored(self) -> Stored:
        """Where its bytes are."""
        return self.checkpoint.tensors[self.part.source]

    @property
    def dtype(self) -> torch.dtype:
        """As stored; an adapter's sum is float32."""
        if self.part.source in self.checkpoint.low_rank:
            return torch.float32
        return DTYPES[self.stored.dtype]

    def chunks(self, rows: int, buffers: Buffers, name: str) -> Iterator[Float[Tensor, "row col"]]:
        """The matrix as float32, `rows` stored rows at a time, in a reused buffer."""
        part, stored = self.part, self.stored
        start, stop, step = part.columns
        block = buffers.take(name, rows * part.width * DTYPES[stored.dtype].itemsize)
        wide = buffers.take(f"{name}32", 4 * rows * part.n_columns)
        room = torch.from_numpy(wide).view(torch.float32).view(rows, part.n_columns)
        delta = self.checkpoint.low_rank.get(part.source)
        with opened(stored) as descriptor:
            for blocks in part.chunks(rows):
                raw = read_blocks(stored, descriptor, blocks, width=part.width, block=block)
                out = room[: len(raw)]
                out.copy_(raw[:, start:stop:step])
                if delta is not None:
                    added = [delta.rows(first, last)[:, start:stop:step] for first, last in blocks]
                    out += torch.cat(added)
                yield out

    def matrix(self) -> Float[Tensor, "out in"]:
        """The whole matrix in float32, [out, in]."""
        part = self.part
        (whole,) = self.chunks(part.n_rows, Buffers(), "matrix")
        return whole.T.contiguous() if part.transposed else whole
