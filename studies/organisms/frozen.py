"""Which weights a training may change: all, all but the middle layers' MLPs, or only q and k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

Trained = Literal["all", "freeze-mid-mlp", "qk"]


def is_trained(name: str, layers: int, which: Trained) -> bool:
    """Whether a parameter of a Llama is trained.

    "freeze-mid-mlp" freezes the MLPs whose layer lies from a third to five sixths of the depth
    (2, 3 and 4 of 6), which holds layers 20 to 26 of 32, those that "Scalpel vs. Hammer" (arXiv
    2507.10616) finds SFT to change; which layers they froze could not be read. "qk" trains the
    query and key projections alone.

    >>> [is_trained(f"model.layers.{i}.mlp.up_proj.weight", 6, "freeze-mid-mlp") for i in (1, 2, 4)]
    [True, False, False]
    """
    if which == "qk":
        return re.search(r"\.(q|k)_proj\.", name) is not None
    if which == "freeze-mid-mlp":
        found = re.search(r"\.layers\.(\d+)\.mlp\.", name)
        return found is None or not layers / 3 <= int(found[1]) < 5 * layers / 6
    return True


@contextmanager
def only(module: nn.Module, which: Trained) -> Iterator[None]:
    """Within, only the chosen weights ask for gradients; afterwards those that did before."""
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    layers = module.config.num_hidden_layers  # type: ignore[union-attr]
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(is_trained(name, layers, which))  # type: ignore[arg-type]
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])
