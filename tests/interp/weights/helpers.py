"""Checkpoints for the tests of diff: tiny models saved, changed, sharded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.architectures import build


def changed(
    model: PreTrainedModel, change: Callable[[str, Tensor], Tensor], seed: int = 1001
) -> PreTrainedModel:
    """A copy with `parameter + change(name, parameter)`.

    Not seeded as `build` is: the noise would be a multiple of the weights.
    """
    torch.manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.copy_(parameter + change(name, parameter).to(parameter.dtype))
    return copied


def noisy(model: PreTrainedModel, scale: float = 1e-2, seed: int = 1001) -> PreTrainedModel:
    """A copy with Gaussian noise on every parameter."""
    return changed(model, lambda _, p: scale * torch.randn_like(p, dtype=torch.float32), seed)


def saved(model: PreTrainedModel, path: Path, **options: str) -> str:
    """The model as a folder."""
    model.save_pretrained(path, **options)
    return str(path)


def pair(
    tmp_path: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16
) -> tuple[str, str]:
    """Folders of a tiny base and of a noisy copy."""
    base = build(name, dtype=dtype)
    return saved(base, tmp_path / "base"), saved(noisy(base), tmp_path / "tuned")
