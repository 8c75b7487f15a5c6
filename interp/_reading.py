"""What every reading of a model needs: trust in it, dropout off, and its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from interp._errors import InterpError, UnsupportedSite
from interp._forward import every_module
from interp._model import Model
from interp._selfcheck import evaluating, verdicts


@contextmanager
def reading(model: Model) -> Iterator[None]:
    """No gradients and no dropout, whatever mode the module is in, and back."""
    refuse_compiled(model.module)
    with torch.no_grad(), evaluating(model.module):
        yield


def require_unembed(model: Model) -> None:
    """Refuse where the unembedding found is not the model's own.

    Raises:
        UnsupportedSite: with what the self-check measured.
    """
    refuse_compiled(model.module)
    if model.check and "unembed" in (distrusted := verdicts(model.anatomy)):
        raise UnsupportedSite(
            f"no logits can be read from {type(model.module).__name__}: {distrusted['unembed']}; "
            f"interp.load(..., check=False) reads them anyway"
        )


def refuse_compiled(module: nn.Module) -> None:
    """Refuse a compiled module, in which hooks are silently skipped."""
    if hasattr(module, "_orig_mod") or any(
        getattr(part, "_compiled_call_impl", None) is not None for part in every_module(module)
    ):
        raise InterpError(
            "this module is compiled, and compiled code skips hooks without a word; give interp "
            "the module as it was before torch.compile (compiled._orig_mod, or load it again)"
        )


def fingerprint(module: nn.Module) -> str:
    """A short hash of the config, of every weight and of the edits on them: which model this is.

    Of each tensor the sum of its bits as whole numbers is taken, which one changed entry changes,
    and a sample, which a reordering changes.
    """
    from interp._edit.applied import applications
    from interp._edit.identity import digest, stable_config

    found = hashlib.sha256()
    config: Any = getattr(module, "config", None)
    if config is not None:
        found.update(json.dumps(stable_config(config.to_dict()), sort_keys=True).encode())
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {digest(tensor)} {_bits(tensor)}".encode())
    for application in applications(module):
        for atom in application.edit.atoms:
            found.update(repr(atom).encode())
            for held in _numbers(atom):
                found.update(f"{digest(held)} {_bits(held)}".encode())
    return found.hexdigest()[:16]


def _numbers(atom: Any) -> list[torch.Tensor]:
    """What an affine map or a delta holds."""
    held = atom.change.tensors().values() if hasattr(atom, "change") else (atom.scale, atom.shift)
    return [tensor for tensor in held if tensor is not None]


def _bits(tensor: torch.Tensor) -> int:
    if tensor.is_meta or not tensor.numel():
        return 0
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().contiguous().reshape(-1)
    return int(flat.view(whole[min(flat.element_size(), 8)]).sum(dtype=torch.int64))
