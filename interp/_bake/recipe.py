"""How one tensor of a baked checkpoint is computed: `scale * (W + changes) + shift`, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp._edit.change import Change, wide

Read = Callable[[str], Tensor]
_CHUNK = 2**20  # entries


@dataclass(frozen=True)
class Through:
    """`factor * (W @ vector)`: what a vector at a projection's input adds to its output.

    Args:
        weight: the projection's matrix, before anything is folded into it.
        vector: [in], or [expert in].
        transposed: the matrix is stored [in out] (GPT-2, GPT-OSS).
        factor: [] or [out].
    """

    weight: str
    vector: Tensor
    transposed: bool
    factor: Tensor

    def added(self, matrix: Tensor) -> Tensor:
        """[out], or [expert out]."""
        matrix = matrix if self.transposed else matrix.mT
        vector = self.vector.to(matrix)
        return (vector[..., None, :] @ matrix)[..., 0, :] * self.factor.to(matrix)


@dataclass
class Fold:
    """`scale * (W + offset) - offset + shift + through`; offset is 1 where a norm stores w - 1."""

    scale: Tensor | None = None
    offset: float = 0.0
    shift: Tensor | None = None
    through: list[Through] = field(default_factory=list)

    def apply_(self, weight: Tensor, raw: Read) -> Tensor:
        """Fold into a tensor in place; `raw(name)` gives matrices before folding."""
        if self.scale is not None:
            if self.offset:
                weight += self.offset
            weight *= self.scale.to(weight)
            if self.offset:
                weight -= self.offset
        if self.shift is not None:
            weight += self.shift.to(weight)
        for term in self.through:
            weight += term.added(raw(term.weight))
        return weight


@dataclass(frozen=True)
class Recipe:
    """A tensor that differs from the base: what it starts from, its changes, then its fold.

    Args:
        source: a tensor of the base; None where the base has none, which means zeros.
        shape: of the tensor.
        changes: weight changes, in order.
        fold: what affine maps do to it.
    """

    source: str | None
    shape: tuple[int, ...]
    changes: tuple[Change, ...] = ()
    fold: Fold | None = None


@dataclass(frozen=True)
class Realised:
    """What became of one tensor's change on rounding to the dtype it is stored in."""

    dtype: str
    intended: float  # norm of the change in float32
    stored: float  # norm of the change that is stored
    cosine: float  # of the two
    moving: int  # coordinates that should move
    unmoved: int  # those of them that did not


def cook(
    recipes: Mapping[str, Recipe], name: str, read: Read, dtype: torch.dtype
) -> tuple[Tensor, Realised]:
    """Compute one tensor, and what rounding left of its change.

    Args:
        recipes: all of them: a bias may need its projection's matrix after its changes.
        name: which one.
        read: tensors of the base, in their own dtype.
        dtype: what new tensors are stored in; others keep theirs.
    """
    recipe = recipes[name]
    before = (
        read(recipe.source) if recipe.source is not None else torch.zeros(recipe.shape, dtype=dtype)
    )

    def raw(weight: str) -> Tensor:
        other = recipes.get(weight)
        start = read(weight if other is None or other.source is None else other.source)
        return _changed(start, () if other is None else other.changes)

    after = _changed(before, recipe.changes)
    if after.data_ptr() == before.data_ptr():  # the base keeps its numbers
        after = after.clone()
    if recipe.fold is not None:
        after = recipe.fold.apply_(after, raw)
    stored = after.to(before.dtype)
    return stored, _realised(before, after, stored)


def _changed(weight: Tensor, changes: tuple[Change, ...]) -> Tensor:
    weight = weight.to(wide(weight.dtype))
    for change in changes:
        weight = change.applied_to(weight)
    return weight


def _realised(before: Tensor, after: Tensor, stored: Tensor) -> Realised:
    """In chunks, because the differences of a whole matrix are four more of its size."""
    squares = torch.zeros(3, dtype=torch.float64)  # intended, realised, their product
    moving = unmoved = 0
    flat = (tensor.reshape(-1) for tensor in (before, after, stored))
    for was, wanted, got in zip(*(tensor.split(_CHUNK) for tensor in flat), strict=True):
        start = was.to(wanted.dtype)
        intended, realised = wanted - start, got.to(wanted.dtype) - start
        pairs = (intended, intended), (realised, realised), (intended, realised)
        squares += torch.stack([torch.dot(a, b) for a, b in pairs]).cpu()
        moves = intended != 0
        moving += int(moves.sum())
        unmoved += int((moves & (realised == 0)).sum())
    size, kept = float(squares[0].sqrt()), float(squares[1].sqrt())
    cosine = min(float(squares[2]) / (size * kept), 1.0) if size and kept else float("nan")
    dtype = str(stored.dtype).removeprefix("torch.")
    return Realised(dtype, size, kept, cosine, moving, unmoved)
