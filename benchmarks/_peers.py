"""transformer-lens and nnsight as their documentation uses them, each on its own copy."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._measure import Held
from benchmarks._models import Parts


class Peers:
    """Both peers over copies of one model, made when first used."""

    def __init__(self, module: PreTrainedModel) -> None:
        self._module = module

    @cached_property
    def bridge(self) -> Any:
        """transformer-lens."""
        return bridge_of(self._module)

    @cached_property
    def traced(self) -> Any:
        """nnsight."""
        return traced_of(self._module)


def bridge_of(module: PreTrainedModel) -> Any:
    """A TransformerBridge over a copy (it rewrites the module it boots on)."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    own = copy.deepcopy(module)
    return build_bridge_from_module(own, type(own).__name__, hf_config=own.config)


def bridge_capture(peers: Peers, ids: Tensor, hooks: dict[str, str]) -> Held:
    """`run_with_cache` with a filter of names: site -> hook name."""
    logits, cache = peers.bridge.run_with_cache(
        ids, names_filter=list(hooks.values()), return_cache_object=False
    )
    return Held({site: cache[hook] for site, hook in hooks.items()}, logits)


def bridge_lens(peers: Peers, ids: Tensor, last: bool, top_k: int) -> Held:
    """The obvious lens: residuals from the cache, final norm, unembedding, top tokens."""
    bridge = peers.bridge
    names = ("hook_resid_pre", "hook_resid_post")
    _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith(names))
    streams = cache.accumulated_resid(incl_mid=False, pos_slice=-1 if last else None)
    logits = bridge.unembed(bridge.ln_final(streams))
    top = logits.log_softmax(-1).topk(top_k, dim=-1)
    return Held({f"top.{layer}": values for layer, values in enumerate(top.values)})


def traced_of(module: PreTrainedModel) -> Any:
    """An nnsight model over a copy (it replaces every submodule's forward)."""
    import nnsight

    return nnsight.NNsight(copy.deepcopy(module))


def traced_capture(peers: Peers, parts: Parts, ids: Tensor, neurons: bool) -> Held:
    """A trace that saves residuals, and with `neurons` the inputs of both projections."""
    import nnsight

    model = peers.traced
    kept: dict[str, Any] = {}
    with model.trace(ids, use_cache=False):
        for number, block in enumerate(model.get(parts.blocks)):
            if neurons:
                kept[f"z.{number}"] = nnsight.save(block.get(parts.o_proj).input)
                kept[f"mlp_post.{number}"] = nnsight.save(block.get(parts.down).input)
            kept[f"resid_post.{number}"] = nnsight.save(block.output)
        logits = nnsight.save(model.get(parts.head).output)
    return Held(kept, logits)


def traced_lens(peers: Peers, parts: Parts, ids: Tensor, last: bool, top_k: int) -> Held:
    """The obvious lens: unembed every block's output inside the trace, keep the top tokens."""
    import nnsight

    model = peers.traced
    kept: dict[str, Any] = {}
    norm, head = model.get(parts.norm), model.get(parts.head)
    with model.trace(ids, use_cache=False):
        for number, block in enumerate(model.get(parts.blocks)):
            for stream in (block.input, block.output) if number == 0 else (block.output,):
                logits = head(norm(stream[:, -1:] if last else stream))
                top = logits.log_softmax(-1).topk(top_k, dim=-1)
                kept[f"top.{len(kept)}"] = nnsight.save(top.values)
    return Held(kept)


def hook_names(n_layers: int, kinds: tuple[str, ...]) -> dict[str, str]:
    """site -> transformer-lens hook name."""
    import interp

    sites = [interp.Site(kind, layer) for layer in range(n_layers) for kind in kinds]
    return {str(site): site.hook_name for site in sites}
