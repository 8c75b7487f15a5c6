"""Ablation: a part of the model replaced by nothing, by its mean, or by another prompt's value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interp import Activations, Affine, Edit, InterpError, Site

Method = Literal["zero", "mean", "resample"]


def ablate(
    sites: str | Site | Iterable[str | Site],
    index: Sequence[int] | int | None = None,
    *,
    method: Method = "zero",
    reference: Activations | None = None,
    seed: int = 0,
    positions: Any = "all",
) -> Edit:
    """Replace activations by a constant: 0, their mean, or what another prompt gave there.

    Zero takes a part out of the distribution the rest was trained on; the mean keeps its constant
    contribution; resampling keeps its whole distribution (Chan et al. 2022, causal scrubbing).

    Args:
        sites: one site or several.
        index: heads or neurons of each site; None for all.
        method: `"zero"`, `"mean"` (over the real tokens of the reference) or `"resample"` (prompt i
            gets the values of another prompt of the reference, token by token; bound to a batch
            of as many prompts, so it cannot be baked).
        reference: `interp.capture(model, prompts, sites)` where the method needs one.
        seed: which prompt each gets.
        positions: as for `Affine`; where a continuation is generated, resample with `"prompt"`.

    Raises:
        InterpError: an unknown method, no reference, one whose prompts differ in length or are
            fewer than two (resample), or one that lacks the site.

    Examples:
        >>> acts = interp.capture(model, texts[:4], "z.2")
        >>> iv.ablate("z.2", [0], method="mean", reference=acts).atoms[0].index
        (0,)
    """
    if method not in ("zero", "mean", "resample"):
        raise InterpError(f"method={method!r}: expected 'zero', 'mean' or 'resample'")
    if method != "zero" and reference is None:
        raise InterpError(
            f"{method} ablation needs values to put there: pass "
            f"reference=interp.capture(model, prompts, sites)"
        )
    named = [sites] if isinstance(sites, str | Site) else list(sites)
    chosen = [index] if isinstance(index, int) else index
    atoms = []
    for name in named:
        site = Site.parse(name)
        shift = None
        if reference is not None and method == "mean":
            shift = _mean(reference, site)
        elif reference is not None and method == "resample":
            shift = _resampled(reference, site, seed)
        if shift is not None and chosen is not None:
            shift = shift[..., list(chosen), :] if _has_width(site) else shift[..., list(chosen)]
        where = None if chosen is None else tuple(chosen)
        atoms.append(Affine(site, where, scale=0.0, shift=shift, positions=positions))
    return Edit(tuple(atoms))


def _has_width(site: Site) -> bool:
    return site.axes[-1] == "d_head"


def _mean(reference: Activations, site: Site) -> Tensor:
    _dense(reference, site)
    values = reference[site]
    return values[reference.mask.to(values.device)].float().mean(dim=0)


def _resampled(reference: Activations, site: Site, seed: int) -> Tensor:
    _dense(reference, site)
    prompts = len(reference.mask)
    if prompts < 2:
        raise InterpError("resample ablation needs at least two prompts in the reference")
    if not bool(reference.mask.all()):
        lengths = reference.mask.sum(dim=1).tolist()
        raise InterpError(
            f"resample ablation needs prompts of one length, and the reference has {min(lengths)} "
            f"to {max(lengths)} tokens; group them by length, or use method='mean'"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(prompts, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)  # one cycle, so nobody gets itself
    values = reference[site].float()
    return values[partner.to(values.device)]


def _dense(reference: Activations, site: Site) -> None:
    if site in reference.expert_ids:
        raise InterpError(
            f"{site} belongs to a mixture of experts, whose neurons are active on other tokens in "
            f"other prompts; use method='zero'"
        )
