"""Attribution patching: every patch at once, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from interp._attribute_sweep import Score, _frozen
from interp._forward import Stop, run_until_stopped
from interp._hooked import ports_of
from interp._patch.exact import Donor, unit_mask
from interp._patch.plan import HEADS, Patch, Units
from interp._patch.run import Run
from interp._selfcheck import evaluating
from interp._site import Site


def attribution_patches(
    run: Run, donor: Donor, patches: Sequence[Patch], score: Score, unpatched: Tensor
) -> Float[Tensor, "prompt patch"]:
    """The run's score + sum of gradient * (donor - own) over the patch; NaN as for `run_patches`.

    Args:
        run: what is patched.
        donor: what is put in.
        patches: each on its own.
        score: the metric of last streams.
        unpatched: the metric of the run as it is, [prompt].
    """
    sites = list(dict.fromkeys(part.site for patch in patches for part in patch.parts))
    slopes = _slopes(run, sites, score)
    # [prompt pos unit]: heads' widths are summed, so that any patch is a sum over this
    effects = {
        site: _by_unit((donor.acts[site].to(slope) - run.at(site)) * slope, site)
        for site, slope in slopes.items()
    }
    sums = _Sums(run, effects)
    found = torch.full((len(run.ids), len(patches)), float("nan"), dtype=unpatched.dtype)
    for number, patch in enumerate(patches):
        for prompt in range(len(run.ids)):
            spans = [part.at[prompt] for part in patch.parts]
            if not any(spans):
                continue
            effect = sum(
                sums.of(part.site, part.units)[prompt][position]
                for part in patch.parts
                for position in part.at[prompt]
            )
            found[prompt, number] = unpatched[prompt] + effect
    return found


class _Sums:
    """Effects summed over the units of a patch, [prompt][pos] as plain numbers."""

    def __init__(self, run: Run, effects: dict[Site, Tensor]) -> None:
        self._run, self._effects = run, effects
        self._known: dict[tuple[Site, Units | None], list[list[float]]] = {}

    def of(self, site: Site, units: Units | None) -> list[list[float]]:
        key = site, units
        if key not in self._known:
            effects = self._effects[site]
            if units is not None:
                mask = unit_mask(self._run.at(site), site, units).flatten()
                effects = effects * mask.to(effects)
            self._known[key] = effects.sum(-1).tolist()
        return self._known[key]


def _by_unit(product: Tensor, site: Site) -> Tensor:
    return product.sum(-1) if site.kind in HEADS else product


def _slopes(run: Run, sites: Sequence[Site], score: Score) -> dict[Site, Tensor]:
    """The metric's gradient at each site: [prompt pos *unit]; one forward, one backward."""
    model = run.model
    last = Site("resid_post", model.anatomy.n_layers - 1)
    ports = ports_of(model, list(dict.fromkeys([*sites, last])))
    seen: dict[Site, Tensor] = {}

    def read(tensor: Tensor, site: Site) -> Tensor:
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        seen[site] = tensor
        if site == last:
            raise Stop(seen)
        return tensor

    positions = torch.arange(run.n_tokens, device=run.ids.device).expand(len(run.ids), -1)
    inputs = {"input_ids": run.ids, "position_ids": positions}
    prompt = torch.arange(len(run.ids), device=run.ids.device)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(model.module))
        stack.enter_context(_frozen(model.module))
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        run_until_stopped(model.module, inputs, owner=seen)
        value = score(seen[last][:, -1], prompt).sum()
        slopes = torch.autograd.grad(value, [seen[site] for site in sites], allow_unused=True)
    found = {}
    for site, slope in zip(sites, slopes, strict=True):
        slope = torch.zeros_like(seen[site]) if slope is None else slope
        found[site] = slope.transpose(1, 2) if site.kind == "pattern" else slope
    return found
