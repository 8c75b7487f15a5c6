"""Calling a decoder: which inputs it takes, and stopping it half-way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn


class Stop(Exception):
    """Raised by a hook when everything that `owner` asked for has been seen."""

    def __init__(self, owner: object) -> None:
        super().__init__("a forward ended early on purpose")
        self.owner = owner


# Who is reading, outermost first: a function inside a forward may itself read the model, and the
# outer reader must not take the inner forward's tensors for its own.
_READERS: list[object] = []


def innermost(owner: object) -> bool:
    """Whether the forward that is running was started by this reader."""
    return bool(_READERS) and _READERS[-1] is owner


def every_module(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, each once, in a fixed order.

    What `modules()` gives without its generators within generators: every reading of a model walks
    the tree several times, and on a small model that is most of what the reading adds.
    """
    found = {id(module): module}
    stack = [module]
    while stack:
        for child in stack.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                stack.append(child)
    return list(found.values())


def run(module: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Any:
    """One forward without a key-value cache."""
    return module(**accepted(module, inputs), **{"use_cache": False, **options})


def run_until_stopped(module: nn.Module, inputs: dict[str, Tensor], *, owner: object) -> Any:
    """One forward that `owner` may end early by raising `Stop(owner)`; None when it did."""
    _READERS.append(owner)
    try:
        return run(module, inputs)
    except Stop as stop:
        if stop.owner is not owner:
            raise
        return None
    finally:
        _READERS.pop()


def accepted(module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that this forward knows: ALiBi models take no position_ids."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module  # peft
    names = _parameters(type(inner).forward)
    return {name: value for name, value in inputs.items() if name in names}


@lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def may_stop_early(module: nn.Module) -> bool:
    """Whether leaving a forward half-way is safe: not where weights are moved in and out."""
    placed = getattr(module, "hf_device_map", None) or {}
    return (
        not any(device in ("cpu", "disk") for device in placed.values())
        or len(set(placed.values())) == 1
    )
