"""An SAE in place of the activation that it reads, in a forward."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from interp import InterpError, Site
from interp._batch import Batch
from interp._errors import nearest
from interp._ports import SiteFn
from interventions._sae import SAE

GRADS = ("full", "ste", "none")


def splice(sae: SAE, batch: Batch, grad: str = "full") -> SiteFn:
    """A function for `interp.hooked` that puts `x_hat` in place of x at the tokens it stands for.

    Args:
        sae: the SAE.
        batch: what is run, so that first and padded tokens are known.
        grad: what flows back through it: `"full"`, the SAE's own gradient; `"ste"`, the gradient as
            it is (`x + (x_hat - x)` with the bracket held fixed); `"none"`, nothing.
    """
    if grad not in GRADS:
        raise InterpError(f"sae_grad={grad!r}; {nearest(grad, GRADS)}")

    def replaced(tensor: Tensor, site: Site) -> Tensor:
        rows = sae.flat(tensor, site)
        if grad == "full":
            made = sae.reconstruct(rows).to(tensor.dtype)
        else:
            with torch.no_grad():
                made = sae.reconstruct(rows).to(tensor.dtype)
            made = rows + (made - rows).detach() if grad == "ste" else made
        stands = stands_for(sae, rows.detach(), batch)
        return torch.where(stands[..., None], made, rows).view(tensor.shape)

    return replaced


def stands_for(sae: SAE, rows: Tensor, batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Tokens like those it was trained on: real, not first and not of massive norm."""
    real = batch.attention_mask.bool().clone()
    if sae.meta.get("drop_first"):
        real[torch.arange(len(real), device=real.device), batch.starts] = False
    real = real.to(rows.device)
    most = sae.meta.get("max_norm")
    if most is not None and bool(real.any()):
        norm = rows.float().norm(dim=-1)
        real &= norm <= most * norm[real].median()
    return real
