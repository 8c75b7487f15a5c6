"""A TransformerBridge over the same checkpoint, hook names both ways, and caches both ways.

TransformerLens rebuilds the module it boots on, in place and for good: its layers are replaced, its
state-dict keys change and `save_pretrained` fails afterwards. So `bridge` always boots on a copy.

A few of its hooks hold something else than our sites of the same name in some architectures.
Those are refused with the reason; measured on TransformerLens 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from interp._activations import Activations
from interp._capture import Prompts, _Recorder
from interp._errors import InterpError, SiteNotFound, UnsupportedSite, nearest
from interp._model import Model, as_model
from interp._site import Site
from interp.adapters._bridge import bridge
from interp.adapters._hook_names import hook_name, mismatch, site

__all__ = ["bridge", "from_cache", "hook_name", "site", "to_cache"]


def from_cache(
    cache: Any,
    model: Model | nn.Module,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site] | None = None,
) -> Activations:
    """Activations from what `run_with_cache` returned, as `interp.capture` would give them.

    Args:
        cache: an ActivationCache with its batch dimension, or a dict of hook name -> tensor.
        model: the model that the bridge was made from; it tells where a hook means another tensor.
        prompts: what was run, as a batch, texts or token ids, padded as it was run.
        sites: which to take, by our names or theirs (no `*`); by default every site that the cache
            holds, those left out being in `meta["skipped"]` with the reason.

    Returns:
        Activations at all positions, counted in real tokens.

    Raises:
        UnsupportedSite: a site asked for whose hook holds something else.
        SiteNotFound: a site asked for that the cache lacks.
        InterpError: tensors of another size than the prompts; a bridge with processed weights.

    Examples:
        >>> batch = model.batch(["Once upon", "The"])
        >>> _, cache = tl.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
        >>> acts = transformer_lens.from_cache(cache, model, batch, ["z.3", "resid_post.3"])
    """
    handle = as_model(model)
    if getattr(getattr(cache, "model", None), "_weights_processed", False):
        raise InterpError(
            "this cache comes from a bridge in compatibility mode, whose folded norms and centred "
            "weights give another residual stream than the checkpoint's; use a fresh bridge(model)"
        )
    batch = handle.batch(prompts)
    held = _sites_in(cache)
    given = [sites] if isinstance(sites, str | Site) else sites
    wanted = list(held) if given is None else [_parse(one) for one in given]
    recorder, skipped = _Recorder(batch, "all", None, None), {}
    for one in wanted:
        reason = mismatch(handle.anatomy, one)
        if reason is not None:
            if given is not None:
                raise UnsupportedSite(f"{one} cannot be taken from this cache: {reason}")
            skipped[str(one)] = reason
            continue
        if one not in held:
            raise SiteNotFound(
                f"{one} ({one.hook_name}) is not in this cache; "
                f"{nearest(str(one), [str(other) for other in held])}"
            )
        tensor = cache[held[one]]
        _check_shape(tensor, one, batch.input_ids)
        recorder.take(tensor, one)
    layout = recorder.layout(batch)
    return Activations(
        recorder.tensors,
        tokens=layout["tokens"],
        mask=layout["mask"],
        meta={
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "sites": [str(one) for one in recorder.tensors],
            "positions": "all",
            "source": "transformer_lens",
            "skipped": skipped,
        },
    )


def to_cache(acts: Activations) -> dict[str, Tensor]:
    """A dict of hook name -> tensor, as `ActivationCache(to_cache(acts), bridge)` takes it.

    Args:
        acts: captured at all positions. Prompts of different lengths stay left-aligned, zero
            beyond each prompt's end.

    Raises:
        UnsupportedSite: expert neurons, for which TransformerLens has no name.
        InterpError: activations of some positions only.

    Examples:
        >>> acts = interp.capture(model, "Once upon", "z.*")
        >>> ActivationCache(transformer_lens.to_cache(acts), tl)["z", 3]
    """
    if acts.meta.get("positions", "all") != "all":
        raise InterpError(
            f"these activations are of positions={acts.meta['positions']!r}; a cache holds whole "
            f"prompts: capture with positions='all'"
        )
    if acts.expert_ids:
        raise UnsupportedSite(
            f"{', '.join(map(str, acts.expert_ids))}: TransformerLens has no hook for the neurons "
            f"of experts (its mlp.hook_post is the MLP's output there); leave these sites out"
        )
    return {one.hook_name: tensor for one, tensor in acts.items()}


def _parse(name: str | Site) -> Site:
    return site(name) if isinstance(name, str) and "hook_" in name else Site.parse(name)


def _sites_in(cache: Any) -> dict[Site, str]:
    """The hook to read for each site that a cache holds; the alias where it has both."""
    found: dict[Site, str] = {}
    for name in cache:
        try:
            one = site(name)
        except SiteNotFound:  # norms, scores, inputs: not ours
            continue
        if one not in found or name == one.hook_name:
            found[one] = name
    return found


def _check_shape(tensor: Tensor, site: Site, ids: Tensor) -> None:
    batch, pos = ids.shape
    expected = (batch, None, pos, pos) if site.kind == "pattern" else (batch, pos)
    shape = tuple(tensor.shape)
    if tensor.ndim != len(site.axes) or any(
        size is not None and size != own for size, own in zip(expected, shape, strict=False)
    ):
        raise InterpError(
            f"{site} has shape {list(shape)} in this cache; expected axes {' '.join(site.axes)} "
            f"with batch {batch} and pos {pos}, the prompts given (keep the batch dimension)"
        )
