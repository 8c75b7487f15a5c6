"""Attribution the slow and obvious way: a whole forward of one prompt for each value of a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import interp

Target = Callable[[Tensor], Tensor]  # last logits [vocab] -> a number


def last_values(model: Any, prompt: Sequence[int], sites: Sequence[str]) -> dict[str, Tensor]:
    """What stands at each site at the prompt's last position: [*unit]."""
    acts = interp.capture(model, [list(prompt)], list(sites), positions="last")
    return {site: acts[site][0, 0] for site in sites}


def target_at(
    model: Any, prompt: Sequence[int], site: str, value: Tensor, target: Target
) -> Tensor:
    """The target with the site's last position set to `value`."""

    def put(tensor: Tensor, _site: interp.Site) -> Tensor:
        return torch.cat([tensor[:, :-1], value.to(tensor)[None, None]], dim=1)

    module = interp.load(model).module
    with interp.hooked(model, {site: put}):
        return target(module(torch.tensor([list(prompt)]), use_cache=False).logits[0, -1])


def integrated_gradients(
    model: Any,
    prompt: Sequence[int],
    site: str,
    ends: tuple[Tensor, Tensor],
    target: Target,
    nodes: int,
) -> Tensor:
    """[*unit] from the first of `ends` to the second, by Gauss-Legendre nodes."""
    baseline, activation = ends
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros_like(activation)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        value = (baseline + point * (activation - baseline)).requires_grad_()
        found = target_at(model, prompt, site, value, target)
        (gradient,) = torch.autograd.grad(found, value)
        total += weight * gradient
    return (activation - baseline) * total
