"""Plain torch ways to read and change a model, independent of the library's hooks.

Changes are made to a copy, by replacing a module's `forward` or by editing its weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def forward(model: Any, ids: Tensor, **options: Any) -> Any:
    """The model's own forward with explicit positions, where it takes any, and no cache."""
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        options.setdefault("position_ids", torch.arange(ids.shape[1]).expand_as(ids))
    with torch.no_grad():
        return model(ids, use_cache=False, **options)


def logits_of(model: Any, ids: Tensor) -> Tensor:
    return forward(model, ids).logits


def watch(module: Any, side: str, into: dict[str, Tensor], name: str) -> None:
    """A plain hook that keeps a copy of a module's hidden states."""

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        into[name] = value.detach().clone()

    def after(_module: Any, _args: Any, output: Any) -> None:
        into[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    if side == "input":
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(after)


def map_input(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """From now on the module computes f(change(x)) instead of f(x)."""
    plain = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        if args:
            return plain(change(args[0]), *args[1:], **kwargs)
        return plain(**{**kwargs, "hidden_states": change(kwargs["hidden_states"])})

    module.forward = changed


def map_output(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """From now on the module returns change(f(x)) instead of f(x)."""
    plain = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    module.forward = changed


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a context must leave as it was: bits, keys, hooks, attributes, settings."""
    config: Any = model.config
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
        "training": {name: m.training for name, m in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    assert list(before["state"]) == list(after["state"])
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key]), key
    for part in set(before) - {"state"}:
        assert before[part] == after[part], part
