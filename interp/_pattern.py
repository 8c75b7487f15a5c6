"""Attention probabilities, through the attention interface of transformers.

The model's own kernel (SDPA by default) keeps running. Only in a layer whose pattern is asked for
is the modeling file's eager function run beside it, so softcaps and sinks are exactly the model's;
a pattern that is only read leaves the logits bit-identical, and one that is written, or kept in a
graph, gives pattern @ v.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp._errors import InterpError, UnsupportedSite
from interp._site import Site

SiteFn = Callable[[Tensor, Site], Tensor | None]
_PREFIX = "interp_pattern_over_"  # + the implementation that goes on running
_ACTIVE = "_interp_pattern_visitors"


@dataclass(frozen=True)
class PatternPort:
    """Attention probabilities [batch head query key] of one attention module."""

    site: Site
    attn: nn.Module

    @contextmanager
    def attach(self, fn: SiteFn, *, reads: bool) -> Iterator[None]:
        if not _uses_interface(self.attn):
            with _from_output(self.attn, self.site, fn):
                yield
            return
        visitors = self.attn.__dict__.setdefault(_ACTIVE, {"edits": [], "reads": []})
        mine = visitors["reads" if reads else "edits"]
        entry = (fn, self.site)
        mine.append(entry)
        try:
            with _switched(self.attn.config):
                yield
        finally:
            mine.remove(entry)
            if not visitors["edits"] and not visitors["reads"]:
                del self.attn.__dict__[_ACTIVE]


def _uses_interface(attn: nn.Module) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names


@contextmanager
def _switched(config: Any) -> Iterator[None]:
    """Run the model's attention through `_attention`, over the implementation it had."""
    before = config._attn_implementation_internal
    if str(before).startswith(_PREFIX):  # an outer context already did
        yield
        return
    over = before if before in ("sdpa", "eager") else "eager"
    name = _PREFIX + over
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask if over == "sdpa" else eager_mask)
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function: the plain one, and the eager one where a pattern is asked for."""
    over = module.config._attn_implementation_internal.removeprefix(_PREFIX)
    eager = _eager_function(module)
    plain = ALL_ATTENTION_FUNCTIONS.get_interface(over, eager)
    visitors = module.__dict__.get(_ACTIVE)
    if not visitors:
        return plain(module, query, key, value, attention_mask, **kwargs)
    mask = _additive(attention_mask, query, key)
    eager_out, pattern = eager(module, query, key, value, mask, **kwargs)
    edited = pattern
    for fn, site in (*visitors["edits"], *visitors["reads"]):
        new = fn(edited, site)
        if new is not None and new.shape != pattern.shape:
            raise InterpError(
                f"the function on {site} returned shape {list(new.shape)}; expected "
                f"{list(pattern.shape)}, axes {' '.join(site.axes)}"
            )
        edited = edited if new is None else new
    if edited is pattern and not pattern.requires_grad:
        if plain is eager:
            return eager_out, pattern
        return plain(module, query, key, value, attention_mask, **kwargs)
    heads = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    out = torch.matmul(edited.to(heads.dtype), heads)
    return out.transpose(1, 2).contiguous(), edited


def _eager_function(module: nn.Module) -> Callable[..., Any]:
    """The `eager_attention_forward` of the module's own modeling file."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise UnsupportedSite(
        f"{type(module).__name__} has no eager attention function, so its pattern cannot be read"
    )


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask as numbers to add to the scores, from SDPA's boolean mask or from none."""
    if mask is not None and mask.dtype != torch.bool:
        return mask[..., : key.shape[-2]]
    if mask is None:  # SDPA leaves out a plain causal mask, and any mask for a single query
        n_query, n_key = query.shape[-2], key.shape[-2]
        mask = torch.ones(n_query, n_key, dtype=torch.bool, device=query.device)
        mask = mask.tril(n_key - n_query)[None, None]
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


@contextmanager
def _from_output(attn: Any, site: Site, fn: SiteFn) -> Iterator[None]:
    """Read the probabilities that GPT-J, BLOOM and Falcon return beside their output."""
    config = attn.config if hasattr(attn, "config") else None
    falcon = hasattr(attn, "new_decoder_architecture")
    if falcon and getattr(config, "alibi", False):
        raise UnsupportedSite(
            f"{site}: Falcon with ALiBi fuses the bias into its mask and gives no pattern"
        )

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        pattern = output[1]
        if (new := fn(pattern, site)) is not None and new is not pattern:
            raise UnsupportedSite(
                f"{site} can be read but not written in {type(attn).__name__}, which does not run "
                f"through the attention interface; edit 'z.{site.layer}' or 'v.{site.layer}' (for "
                f"gradients, let the model's parameters require them)"
            )

    handle = attn.register_forward_hook(on_output)
    before = config._attn_implementation_internal if falcon and config is not None else None
    if falcon and config is not None:  # its SDPA path returns no probabilities
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        handle.remove()
        if falcon and config is not None:
            config._attn_implementation_internal = before
