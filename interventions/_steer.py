"""Steering: a vector added to the stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from interp import Affine, Edit, InterpError, Site


def steer(
    sites: str | Site | Iterable[str | Site],
    vector: Tensor,
    *,
    strength: float = 1.0,
    positions: Any = "all",
) -> Edit:
    """Add `strength * vector` at a site: `x -> x + strength * vector`.

    The vector is in activation units: a direction found on standardised activations must be
    divided by their standard deviation first.

    Args:
        sites: one site or several, such as `"resid_post.6"`.
        vector: [d_model], or the site's own width.
        strength: multiplies it.
        positions: as for `Affine`.

    Examples:
        >>> iv.steer("resid_post.3", torch.ones(128), strength=0.5, positions="generated")
        Edit(resid_post.3: add norm 5.66, at generated)
    """
    vector = torch.as_tensor(vector, dtype=torch.float32)
    if vector.ndim != 1:
        raise InterpError(f"steer takes one vector, got shape {list(vector.shape)}")
    named = [sites] if isinstance(sites, str | Site) else list(sites)
    return Edit(
        tuple(
            Affine(Site.parse(site), shift=strength * vector, positions=positions) for site in named
        )
    )
