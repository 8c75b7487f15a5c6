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
    """A short hash of the config and of a sample of every weight: which checkpoint this is."""
    digest = hashlib.sha256()
    config: Any = getattr(module, "config", None)
    if config is not None:
        digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        if not tensor.is_meta:
            digest.update(str(tensor.reshape(-1)[:8].float().tolist()).encode())
    return digest.hexdigest()[:16]
