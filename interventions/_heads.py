"""Edits of single heads: scale what a head gives, or add to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp import Affine, Edit, InterpError, Site

Head = tuple[int, int]


def scale_heads(scales: Mapping[Head, float | Tensor], *, positions: Any = "all") -> Edit:
    """Multiply the outputs of heads: `z[h] -> scale * z[h]` before the output projection.

    Args:
        scales: (layer, head) -> a number, or a vector [d_head]; 0 removes the head, 1 leaves it.
        positions: as for `Affine`.

    Returns:
        An Edit with one atom a layer.

    Examples:
        >>> iv.scale_heads({(3, 5): 0.0, (3, 2): 2.0})
        Edit(z.3, heads 5, 2: scale 0 to 2)
    """
    atoms = []
    for layer, heads in _by_layer(scales).items():
        values = [torch.as_tensor(v, dtype=torch.float32) for v in heads.values()]
        if any(v.ndim for v in values):  # numbers beside vectors stand for constant vectors
            width = next(v.shape[0] for v in values if v.ndim)
            values = [v.expand(width) if v.ndim == 0 else v for v in values]
        atoms.append(
            Affine(
                Site("z", layer),
                tuple(heads),
                scale=_stack(values, "scale", layer),
                positions=positions,
            )
        )
    return Edit(tuple(atoms))


def add_to_heads(vectors: Mapping[Head, Tensor], *, positions: Any = "all") -> Edit:
    """Add to the outputs of heads: `z[h] -> z[h] + vector` before the output projection.

    Args:
        vectors: (layer, head) -> [d_head].
        positions: as for `Affine`.

    Returns:
        An Edit with one atom a layer.

    Examples:
        >>> iv.add_to_heads({(4, 1): torch.ones(32)})
        Edit(z.4, head 1: add norm 5.66)
    """
    atoms = []
    for layer, heads in _by_layer(vectors).items():
        values = [torch.as_tensor(v, dtype=torch.float32) for v in heads.values()]
        odd = next((list(v.shape) for v in values if v.ndim != 1), None)
        if odd is not None:
            raise InterpError(
                f"layer {layer}: a head is given shape {odd}; expected a vector [d_head]"
            )
        shift = _stack(values, "vector", layer)
        atoms.append(Affine(Site("z", layer), tuple(heads), shift=shift, positions=positions))
    return Edit(tuple(atoms))


def _by_layer(heads: Mapping[Head, Any]) -> dict[int, dict[int, Any]]:
    if not isinstance(heads, Mapping) or not heads:
        raise InterpError("expected a mapping from (layer, head), such as {(3, 5): 0.0}")
    found: dict[int, dict[int, Any]] = {}
    for head, value in heads.items():
        if not isinstance(head, tuple) or len(head) != 2:
            raise InterpError(f"a head is named (layer, head), such as (3, 5); got {head!r}")
        found.setdefault(int(head[0]), {})[int(head[1])] = value
    return found


def _stack(values: list[Tensor], what: str, layer: int) -> Tensor:
    widths = {tuple(v.shape) for v in values}
    if len(widths) > 1:
        raise InterpError(
            f"layer {layer}: each {what} must be as wide as a head, got widths "
            f"{sorted(w[0] for w in widths)}"
        )
    return torch.stack(values)
