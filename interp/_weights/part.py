"""One logical matrix of a checkpoint, wherever its rows and columns are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Part:
    """A matrix with a canonical name, as a selection of one stored tensor.

    The stored tensor is seen as [-1, width]; the matrix is its row ranges `blocks` and its columns
    `range(*columns)`, transposed where the checkpoint stores [in, out].

    Args:
        tensor: canonical name, `layers.3.q.weight`, the same in every layout.
        layer: index of the block; None outside blocks.
        module: `q k v o gate up down embed head norm`, or a word for what has no such name.
        expert: index of the expert; None outside experts.
        source: the state-dict key that holds it.
        width: length of a stored row.
        blocks: ranges of stored rows.
        columns: start, stop and step in a stored row.
        transposed: whether stored rows run over the input.
        heads: into how many heads `head_axis` divides; 0 where it does not.
        head_axis: `out` for q, k, v; `in` for o.
    """

    tensor: str
    layer: int | None
    module: str
    expert: int | None
    source: str
    width: int
    blocks: tuple[tuple[int, int], ...]
    columns: tuple[int, int, int]
    transposed: bool = False
    heads: int = 0
    head_axis: str = "out"

    @property
    def n_rows(self) -> int:
        """Stored rows."""
        return sum(stop - start for start, stop in self.blocks)

    @property
    def n_columns(self) -> int:
        """Stored columns."""
        return len(range(*self.columns))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        shape = (self.n_rows, self.n_columns)
        return shape[::-1] if self.transposed else shape

    @property
    def numel(self) -> int:
        """Entries."""
        return self.n_rows * self.n_columns

    @property
    def vocabulary(self) -> bool:
        """Whether rows are tokens."""
        return self.module in ("embed", "head")

    @property
    def segments(self) -> int:
        """Equal pieces of a stored row that heads need apart (1 when heads are rows)."""
        by_columns = (self.head_axis == "in") != self.transposed
        return self.heads if self.heads and by_columns else 1

    def first_rows(self, count: int) -> Part:
        """The same part cut to its first `count` rows (a vocabulary that grew)."""
        start = self.blocks[0][0]
        return replace(self, blocks=((start, start + count),))

    def chunks(self, rows: int) -> Iterator[list[tuple[int, int]]]:
        """Ranges of stored rows, at most `rows` rows at a time, in order."""
        pending: list[tuple[int, int]] = []
        room = rows
        for first, last in self.blocks:
            start = first
            while start < last:
                stop = min(last, start + room)
                pending.append((start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    yield pending
                    pending, room = [], rows
        if pending:
            yield pending
