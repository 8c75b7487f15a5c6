"""Our sites and TransformerLens' hooks, both ways, and where equal names mean other tensors."""

from __future__ import annotations

import re

from torch import nn

from interp._anatomy import Anatomy
from interp._errors import SiteNotFound, UnsupportedSite, nearest
from interp._model import Model, as_model
from interp._ports import open_port
from interp._site import KINDS, Site

_ALIASES = {
    Site(kind, 0).hook_name.removeprefix("blocks.0."): kind for kind in KINDS if kind != "embed"
}
# The bridge's own names for what those aliases also reach.
_CANONICAL = {
    "hook_in": "resid_pre",
    "attn.q.hook_out": "q",
    "attn.k.hook_out": "k",
    "attn.v.hook_out": "v",
    "attn.o.hook_in": "z",
    "ln2.hook_in": "resid_mid",
    "mlp.out.hook_in": "mlp_post",
    "hook_out": "resid_post",
}
_RAW = {"attn.hook_out": "attn_out", "mlp.hook_out": "mlp_out"}
_ABSENT = {("opt", "pattern"), ("opt", "head_out"), ("gptj", "head_out")}


def hook_name(site: str | Site, model: Model | nn.Module | None = None) -> str:
    """The TransformerLens hook that holds a site's tensor: `z.3` -> `blocks.3.attn.hook_z`.

    Args:
        site: any site; without `model` the name alone is translated.
        model: refuse where this architecture's hook holds something else, or does not exist.

    Returns:
        The alias, which a bridge knows with and without compatibility mode.

    Raises:
        SiteNotFound: an unknown name, with the nearest valid ones.
        UnsupportedSite: with what the hook holds instead.

    Examples:
        >>> transformer_lens.hook_name("z.3")
        'blocks.3.attn.hook_z'
    """
    parsed = Site.parse(site)
    if model is not None:
        reason = mismatch(as_model(model).anatomy, parsed)
        if reason is not None:
            raise UnsupportedSite(f"no TransformerLens hook holds {parsed}: {reason}")
    return parsed.hook_name


def site(name: str) -> Site:
    """The site that a TransformerLens hook reads; aliases and the bridge's own names alike.

    Args:
        name: such as `blocks.3.attn.hook_z`, `blocks.3.attn.o.hook_in` or `hook_embed`.

    Raises:
        SiteNotFound: no site of ours, with the nearest names; also for `attn.hook_out` and
            `mlp.hook_out`, which are not what the block adds to the stream everywhere.

    Examples:
        >>> transformer_lens.site("blocks.3.attn.o.hook_in")
        Site('z.3')
    """
    if name in ("hook_embed", "embed.hook_out"):
        return Site("embed")
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    layer, inner = (int(found[1]), found[2]) if found else (0, name)
    kind = (_ALIASES | _CANONICAL).get(inner) if found else None
    if kind is not None:
        return Site(kind, layer)
    if found and inner in _RAW:
        added = Site(_RAW[inner], layer)
        raise SiteNotFound(
            f"{name!r} is the module's own output, before a post-norm (gemma2, olmo2, glm4) or a "
            f"residual multiplier (granite); what the block adds to the stream is "
            f"{added.hook_name!r}, our {str(added)!r}"
        )
    known = ["hook_embed", *(f"blocks.{layer}.{own}" for own in _ALIASES | _CANONICAL)]
    raise SiteNotFound(f"{name!r} is no hook that one of our sites names; {nearest(name, known)}")


def mismatch(anatomy: Anatomy, site: Site) -> str | None:
    """Why the hook of a site's name holds another tensor in this architecture, or None."""
    if site.layer is None:
        if anatomy.embedding_weight.shape[1] != anatomy.d_model:
            return "hook_embed is the embedding before its projection to d_model"
        return None
    if not 0 <= site.layer < anatomy.n_layers:
        raise SiteNotFound(f"{site}: this model has layers 0 to {anatomy.n_layers - 1}")
    try:
        open_port(anatomy, site)
    except UnsupportedSite as error:
        return str(error)
    block = anatomy.blocks[site.layer]
    model_type = getattr(anatomy.config, "model_type", "")
    if (model_type, site.kind) in _ABSENT:
        return f"the {model_type} bridge has no such hook; interp.capture reads it"
    plain = block.post_attn_norm or block.attn
    if site.kind == "attn_out" and block.attn_out_module is not plain:  # BLOOM; linear attention
        return "the bridge gives this attention no hook_attn_out; interp.capture reads it"
    if site.kind == "mlp_post" and block.experts is not None:
        return (
            "mlp.hook_post of a mixture of experts is the MLP's output, not neurons; "
            "interp.capture gives the experts' neurons, and hook_mlp_out is 'mlp_out'"
        )
    if site.kind == "z" and block.qkv is None:
        return (
            "attn.hook_z is split by the rotary width of MLA instead of the value width, so its "
            "heads are not the heads; interp.capture splits them right"
        )
    if site.kind == "q" and block.qkv is not None and block.qkv.gated_query:
        return "attn.hook_q also holds the output gate, as twice as many heads"
    if site.kind == "head_out" and block.multiplier != 1.0:
        return (
            f"attn.hook_result is multiplied by the residual multiplier {block.multiplier:g} "
            f"(and hook_attn_out as well); 'z' is the same on both sides"
        )
    return None
