"""An affine atom spread over all units of its site."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp._edit.affine import Affine
from interp._errors import InterpError


def coefficients(
    affine: Affine, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) over the whole site, each None where it changes nothing.

    Args:
        affine: the map.
        shape: the site's axes after batch and pos: [head d_head], [d_mlp] or [d_model].
        dtype: to compute in.
    """
    index = None if affine.index is None else _within(affine, shape[0])
    scale = shift = None
    if affine.scales:
        given = affine.scale.to(dtype)
        if affine.heads and given.ndim < 2:  # one number a head
            given = given.expand(1, 1) if given.ndim == 0 else given[:, None]
            full = torch.ones(shape[0], 1, dtype=dtype)
        else:
            full = torch.ones(shape, dtype=dtype)
        scale = _placed(affine, "scale", full, given, index, shape)
    if affine.shift is not None:
        given = affine.shift.to(dtype)
        lead = given.shape[:2] if affine.per_prompt else ()
        shift = _placed(
            affine, "shift", torch.zeros(*lead, *shape, dtype=dtype), given, index, shape
        )
    return scale, shift


def expert_coefficients(
    affine: Affine, experts: int, width: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) of each expert's neurons: [expert d_mlp], or [d_mlp] where all share a scale.

    Args:
        affine: the map.
        experts: how many there are.
        width: neurons of each.
        dtype: to compute in.
    """
    if affine.index is None:
        scale, shift = coefficients(affine, (width,), dtype)
        return scale, None if shift is None else shift.expand(experts, width)
    if not isinstance(affine.index[0], tuple):
        raise InterpError(
            f"{affine.site} is a mixture of {experts} experts, so its neurons are (expert, neuron) "
            f"pairs and not numbers such as {affine.index[0]}"
        )
    pairs = torch.tensor(affine.index)
    worst = pairs.max(dim=0).values.tolist()
    if worst[0] >= experts or worst[1] >= width:
        raise InterpError(
            f"{affine.site} has experts 0 to {experts - 1} with neurons 0 to {width - 1}, and the "
            f"edit names expert {worst[0]}, neuron {worst[1]} at the highest"
        )
    scale, shift = None, None
    if affine.scales:
        scale = torch.ones(experts, width, dtype=dtype)
        scale[pairs[:, 0], pairs[:, 1]] = affine.scale.to(dtype)
    if affine.shift is not None:
        shift = torch.zeros(experts, width, dtype=dtype)
        shift[pairs[:, 0], pairs[:, 1]] = affine.shift.to(dtype)
    return scale, shift


def _placed(
    affine: Affine, name: str, full: Tensor, given: Tensor, index: Tensor | None, shape: Any
) -> Tensor:
    """`given` written into the chosen units of `full`."""
    units = -2 if affine.heads else -1
    try:
        if index is None:
            full.copy_(given.expand(full.shape) if given.ndim else given.expand_as(full))
        elif units == -2:
            full[..., index, :] = given
        else:
            full[..., index] = given
    except RuntimeError as error:
        raise InterpError(
            f"the {name} at {affine.site} has shape {list(getattr(affine, name).shape)}; this "
            f"model's {affine.site} is [batch pos {' '.join(map(str, shape))}]"
        ) from error
    return full


def _within(affine: Affine, units: int) -> Tensor:
    index = affine.index or ()
    noun = "head" if affine.heads else "neuron"
    if isinstance(index[0], tuple):
        raise InterpError(
            f"{affine.site} is dense here, so its neurons are numbers and not pairs such as "
            f"{index[0]}"
        )
    worst = max(index)
    if worst >= units:
        raise InterpError(
            f"{affine.site} has {noun}s 0 to {units - 1}, and the edit names {noun} {worst}"
        )
    return torch.tensor(index)
