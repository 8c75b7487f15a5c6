"""Where a path starts: the value that stands for a unit's absence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp._anatomy import Anatomy
from interp._batch import Batch
from interp._capture import Prompts, capture
from interp._errors import InterpError
from interp._model import Model
from interp._site import Site, expand

Baseline = str | Tensor | Mapping[Any, Any]  # site or pattern -> tensor
_FORMS = (
    "expected 'zero', 'mean', a tensor that broadcasts to [batch *unit], or a mapping from site to "
    "such a tensor"
)


@dataclass(frozen=True)
class Baselines:
    """A value for each site.

    Args:
        names: `"zero"`, `"mean"` or `"given"`.
        values: a number, [*unit], [batch *unit], or [expert d_mlp] for expert neurons.
    """

    names: dict[Site, str]
    values: dict[Site, Tensor]

    def of(
        self,
        site: Site,
        activation: Tensor,
        rows: Int[Tensor, " prompt"],
        expert_ids: Tensor | None,
    ) -> Tensor:
        """The baseline of these prompts' activations, in their shape: [prompt *unit].

        Raises:
            InterpError: a given tensor of another shape.
        """
        value = self.values[site].to(activation)
        if value.ndim and expert_ids is not None:
            expected = f"[expert d_mlp] = [experts, {activation.shape[-1]}]"
            fits = value.ndim == 2 and value.shape[1] == activation.shape[-1]
            if fits and len(value) > int(expert_ids.max()):
                return _of_experts(site, value, expert_ids)
        else:
            if value.ndim == activation.ndim and len(value) > 1:
                value = value[rows.to(value.device)] if len(value) > int(rows.max()) else value
            expected = f"one that broadcasts to {['batch', *activation.shape[1:]]}"
            try:
                return value.expand_as(activation)
            except RuntimeError:
                pass
        raise InterpError(
            f"the baseline of {site} has shape {list(self.values[site].shape)}; expected {expected}"
        )


def needs_mean(anatomy: Anatomy, site: Site) -> bool:
    """Whether a zero baseline means nothing at this site.

    A norm reads nothing but the direction of what is scaled there: the whole stream, or z and
    neurons before a norm that follows their projection.
    """
    assert site.layer is not None
    block = anatomy.blocks[site.layer]
    if site.kind == "z":
        return block.post_attn_norm is not None
    if site.kind == "mlp_post":
        return block.post_mlp_norm is not None
    return site.kind.startswith("resid")


def find_baselines(
    model: Model,
    batch: Batch,
    sites: Iterable[Site],
    baseline: Baseline | None,
    reference: Prompts | None,
) -> Baselines:
    """The baseline of every site, by default zero where it means something and else the mean.

    Raises:
        InterpError: an unknown form, a site without an entry, a mean over one prompt, NaN.
    """
    sites = list(sites)
    if baseline is None and reference is not None:
        baseline = "mean"
    if reference is not None and baseline != "mean":
        raise InterpError(
            "reference is what the mean baseline is taken over; leave it out, or baseline='mean'"
        )
    names: dict[Site, str] = {}
    values: dict[Site, Tensor] = {}
    anatomy = model.anatomy
    given = _by_site(baseline, anatomy) if isinstance(baseline, Mapping) else None
    for site in sites:
        if isinstance(baseline, str) and baseline in ("zero", "mean"):
            names[site] = baseline
        elif baseline is None:
            names[site] = "mean" if needs_mean(anatomy, site) else "zero"
        elif given is not None and site not in given:
            raise InterpError(f"the baseline has no entry for {site}; {_FORMS}")
        elif given is not None or isinstance(baseline, Tensor):
            names[site] = "given"
            value = baseline if given is None else given[site]
            values[site] = _checked(site, value)
        else:
            raise InterpError(f"baseline {baseline!r}: {_FORMS}")
    values |= {site: torch.zeros(()) for site in sites if names[site] == "zero"}
    averaged = [site for site in sites if names[site] == "mean"]
    if averaged:
        values |= _means(model, batch, averaged, reference)
    return Baselines(names, values)


def refuse_zero(anatomy: Anatomy, baselines: Baselines) -> None:
    """Refuse a path from zero where a norm hides its length.

    Raises:
        InterpError: naming the site and the remedy.
    """
    for site, value in baselines.values.items():
        if needs_mean(anatomy, site) and not bool(value.any()):
            raise InterpError(
                f"{site}: a zero baseline means nothing here, since the norm that follows reads "
                f"the direction and not the length, so that all of the gradient lies at zero "
                f"itself; use baseline='mean', or give a tensor"
            )


def _by_site(baseline: Mapping[Any, Any], anatomy: Anatomy) -> dict[Site, Any]:
    """Keys are sites, their names, or patterns such as `z.*`."""
    return {
        site: value
        for key, value in baseline.items()
        for site, _starred in expand(key, anatomy.n_layers)
    }


def _checked(site: Site, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise InterpError(f"the baseline of {site} is a {type(value).__name__}; {_FORMS}")
    if not bool(value.isfinite().all()):
        raise InterpError(f"the baseline of {site} holds NaN or infinity")
    return value.detach()


def _means(
    model: Model, batch: Batch, sites: list[Site], reference: Prompts | None
) -> dict[Site, Tensor]:
    """Means of the last positions: [*unit], for expert neurons [expert d_mlp]."""
    over = batch if reference is None else model.batch(reference)
    if reference is None and len(over) == 1:
        raise InterpError(
            f"{sites[0]}: the mean over a batch of one prompt is that prompt itself, so nothing "
            f"would be attributed; give reference=[prompts to average over], or a baseline tensor"
        )
    acts = capture(model, over, sites, positions="last")
    means: dict[Site, Tensor] = {}
    for site in sites:
        if site in acts.expert_ids:
            means[site] = _mean_by_expert(acts[site], acts.expert_ids[site], n_experts(model, site))
        else:
            means[site] = acts[site][:, 0].mean(dim=0)
    return means


def n_experts(model: Model, site: Site) -> int:
    """How many experts the site's layer chooses among."""
    experts: Any = model.anatomy.blocks[site.layer or 0].experts
    return int(experts.num_experts)


def _mean_by_expert(activation: Tensor, ids: Tensor, n: int) -> Tensor:
    """[expert d_mlp]: each expert's mean over the prompts routed to it; NaN where none was."""
    ids, rows = ids.flatten(), activation.flatten(0, 2)
    total = rows.new_zeros(n, rows.shape[-1]).index_add(0, ids, rows)
    return total / ids.bincount(minlength=n)[:, None]


def _of_experts(site: Site, value: Tensor, ids: Tensor) -> Tensor:
    chosen = value[ids]
    unknown = ids[chosen.isnan().any(-1)]
    if len(unknown):
        raise InterpError(
            f"{site}: no reference prompt was routed to expert {int(unknown[0])}, so it has no "
            f"mean; give more reference prompts, or baseline='zero'"
        )
    return chosen
