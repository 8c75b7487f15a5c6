"""A baked model from a module in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp._bake.plan import Plan
from interp._bake.recipe import Realised, cook


def assemble(module: Any, plan: Plan, *, keep: bool = True) -> tuple[Any, dict[str, Realised]]:
    """The new model, in eval mode, and what became of each changed tensor.

    Args:
        module: the base, which stays as it is.
        plan: what to change.
        keep: whether the base lives on; otherwise the two share the tensors that stay.
    """
    state: dict[str, Tensor] = {name: t.detach() for name, t in module.state_dict().items()}
    dtype = module.dtype
    realised, new = {}, {}
    for name in plan.recipes:
        new[name], realised[name] = cook(plan.recipes, name, state.__getitem__, dtype)
    for name, tensor in state.items():
        if name not in new and plan.canonical.get(name, name) == name:
            new[name] = tensor.clone() if keep else tensor
    wanted = {name: tensor.dtype for name, tensor in new.items()}
    generation = copy.deepcopy(getattr(module, "generation_config", None))
    with quiet():
        model = plan.form.model_class.from_pretrained(
            None, config=plan.form.config, state_dict=new, dtype=dtype
        )
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in wanted and tensor.dtype != wanted[name]:  # a model of several dtypes
            tensor.data = new[name]
    if generation is not None:
        model.generation_config = generation
    devices = {tensor.device for tensor in state.values()}
    if len(devices) == 1:
        model = model.to(devices.pop())
    return model.eval(), realised


@contextmanager
def quiet() -> Iterator[None]:
    """Loading without a progress bar of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.no_grad():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
