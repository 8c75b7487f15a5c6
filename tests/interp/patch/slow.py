"""Patching the obvious way: one whole forward of one prompt for each patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import interp

Metric = Callable[[Tensor], Tensor]  # last logits [vocab] -> a number


def activations(model: Any, prompt: Sequence[int], site: str) -> Tensor:
    """[pos *unit]; a pattern as [query head key]."""
    found = interp.capture(model, [list(prompt)], site)[site][0]
    return found.transpose(0, 1) if site.startswith("pattern") else found


def patched(
    model: Any,
    prompt: Sequence[int],
    places: Sequence[tuple[str, Tensor, Sequence[int], Sequence[int] | None]],
    metric: Metric,
) -> float:
    """The metric with places overwritten: (site, values [pos *unit], positions, units)."""

    def put(values: Tensor, positions: Sequence[int], units: Sequence[int] | None) -> Any:
        def fn(tensor: Tensor, site: interp.Site) -> Tensor:
            tensor = tensor.clone()
            seen = tensor.transpose(1, 2) if site.kind == "pattern" else tensor
            for position in positions:
                if units is None:
                    seen[0, position] = values[position]
                else:
                    for unit in units:
                        seen[0, position, unit] = values[position, unit]
            return tensor

        return fn

    ids = torch.tensor([list(prompt)])
    module = interp.load(model).module
    from contextlib import ExitStack

    with ExitStack() as stack, torch.no_grad():
        for site, values, positions, units in places:
            stack.enter_context(interp.hooked(model, {site: put(values, positions, units)}))
        return float(metric(module(ids, use_cache=False).logits[0, -1]))


def difference(logits: Tensor) -> Tensor:
    """Of two tokens' logits."""
    return logits[..., 11] - logits[..., 40]
