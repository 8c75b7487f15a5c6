"""All maps on one site as one: `scale * x + shift` over every unit of it, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp._edit.affine import Affine
from interp._edit.coefficients import coefficients, expert_coefficients


@dataclass(frozen=True)
class Map:
    """What the atoms at one site do together.

    Args:
        scale: the site's shape without batch and pos, or None where nothing is multiplied.
        shift: the same, or None where nothing is added.
        scaling: the atoms that multiply.
        shifting: the atoms that add.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    scaling: tuple[Affine, ...] = ()
    shifting: tuple[Affine, ...] = ()

    @property
    def factor(self) -> Tensor:
        """The scale, 1 where there is none."""
        return torch.ones((), dtype=torch.float64) if self.scale is None else self.scale

    def then(self, after: Map) -> Map:
        """This map, then another."""
        scale, shift = self.scale, self.shift
        if after.scale is not None:
            scale = after.scale if scale is None else after.scale * scale
            shift = None if shift is None else after.scale * shift
        if after.shift is not None:
            shift = after.shift if shift is None else shift + after.shift
        return _tidy(scale, shift, self.scaling + after.scaling, self.shifting + after.shifting)

    def before(self, shift: Tensor, because_of: tuple[Affine, ...]) -> Map:
        """This map on an input that something has already been added to."""
        return Map(shift=shift, shifting=because_of).then(self)


def compose(affines: Sequence[Affine], shape: tuple[int, ...], experts: int = 0) -> Map:
    """The maps of one site in their order.

    Args:
        affines: at all positions, the same for every prompt.
        shape: the site's axes after batch and pos: [head d_head], [d_mlp] or [d_model].
        experts: how many experts share the layer, where the site is their neurons.
    """
    found = Map()
    for affine in affines:
        found = found.then(_single(affine, shape, experts))
    return found


def _single(affine: Affine, shape: tuple[int, ...], experts: int) -> Map:
    if experts:
        scale, shift = expert_coefficients(affine, experts, shape[-1], torch.float64)
        shape = (experts, *shape)
    else:
        scale, shift = coefficients(affine, shape, torch.float64)
    scale = None if scale is None else scale.expand(shape)
    return _tidy(scale, shift, (affine,), (affine,))


def _tidy(
    scale: Tensor | None,
    shift: Tensor | None,
    scaling: tuple[Affine, ...],
    shifting: tuple[Affine, ...],
) -> Map:
    """A map without the parts that do nothing."""
    if scale is None or bool((scale == 1).all()):
        scale, scaling = None, ()
    if shift is None or not bool(shift.any()):
        shift, shifting = None, ()
    return Map(scale, shift, scaling, shifting)
