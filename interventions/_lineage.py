"""How far apart two checkpoints are: one trained from the other, or of another origin?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from interp._weights.pair import Side
from interp._weights.parameters import rows_of
from interp._weights.part import Part
from interventions._weights import Source, Weights, open_weights

_ROWS = 16  # of each matrix, evenly spread


@dataclass(frozen=True)
class Lineage:
    """Cosine of two checkpoints' weights and the relative norm of their difference.

    Two runs from one start keep a cosine near 1; two of different starts, or one with its neurons
    permuted, have one near 0 and a relative norm near sqrt(2).

    Args:
        cosine: of all shared matrices as one vector.
        relative_norm: ||a - b|| / ||b||.
        entries: how many numbers it rests on.
    """

    cosine: float
    relative_norm: float
    entries: int

    def __str__(self) -> str:
        return f"cosine {self.cosine:.4f}, relative distance {self.relative_norm:.3g}"


def lineage(a: Source, b: Source) -> Lineage:
    """Whether two checkpoints share a history, from 16 rows of each of their matrices.

    `cos = <a, b> / ||a|| ||b||` and `||a - b|| / ||b||`, summed in float64, each matrix weighted by
    its size. Norms and biases are left out: their means make any two models look alike.

    Args:
        a: a folder, a hub id, a module or a handle; an adapter's folder where b is its base.
        b: the one that the distance is relative to.

    Examples:
        >>> iv.weights.lineage("rl/", "base/").cosine > 0.99
        True
    """
    start = open_weights(b)
    return lineage_of(open_weights(a, start), start)


def lineage_of(a: Weights, b: Weights) -> Lineage:
    """`lineage` of two opened checkpoints."""
    total = torch.zeros(4, dtype=torch.float64)  # <a, b>, <a, a>, <b, b>, ||a - b||^2
    entries = 0
    for label, part in b.checkpoint.parts.items():
        other = a.checkpoint.parts.get(label)
        if other is None or min(part.shape) < 2 or part.width != other.width:
            continue
        both = min(part.n_rows, other.n_rows)  # a vocabulary may have grown
        x = Side(a.checkpoint, _sampled(other, both)).matrix().double()
        y = Side(b.checkpoint, _sampled(part, both)).matrix().double()
        if x.shape != y.shape:
            continue
        weight = part.numel / max(1, y.numel())
        sums = [(x * y).sum(), x.square().sum(), y.square().sum(), (x - y).square().sum()]
        total += weight * torch.stack(sums)
        entries += y.numel()
    dot, xx, yy, dd = total.tolist()
    cosine = dot / (xx * yy) ** 0.5 if xx and yy else float("nan")
    return Lineage(cosine, (dd / yy) ** 0.5 if yy else float("nan"), entries)


def _sampled(part: Part, limit: int) -> Part:
    """Evenly spread rows of a part, among its first `limit`."""
    stored = rows_of(part)[:limit]
    at = torch.linspace(0, len(stored) - 1, min(_ROWS, len(stored))).long()
    return replace(part, blocks=tuple((row, row + 1) for row in stored[at].tolist()))
