"""Where a Hugging Face decoder keeps its parts: the only module that knows.

Structural, not a table per architecture: parts are found by the handful of names that modeling
files share, and `interp._selfcheck` then proves numerically, on four tokens, that what was found
is what the site names promise.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from interp._anatomy import Anatomy, Block, Qkv
from interp._errors import InterpError
from interp._forward import every_module

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_LINEAR_ATTENTION = ("linear_attn", "mamba", "mixer", "temporal_block")
_O_PROJ = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2", "wo")
_FINAL_NORM = (
    "norm",
    "ln_f",
    "final_layer_norm",
    "final_layernorm",
    "final_norm",
    "norm_f",
    "layer_norm",
)
_PRE_MLP_NORM = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "feedforward_layernorm",
    "ln_2",
    "norm2",
    "norm_2",
)
_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "embed_position")

_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Anatomy]] = (
    weakref.WeakKeyDictionary()
)


def anatomy_of(module: nn.Module) -> Anatomy:
    """The anatomy of a decoder, found on first use.

    Raises:
        InterpError: the module is not a decoder with a language-model head.
    """
    # Adapters, resized embeddings and the like change the tree under a model already known.
    tree = tuple(map(id, every_module(module)))
    found = _CACHE.get(module)
    if found is None or found[0] != tree:
        found = _CACHE[module] = (tree, _resolve(module))
    return found[1]


def _resolve(module: Any) -> Anatomy:
    config = _text_config(module)
    name = type(module).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise InterpError(
            f"{name} is an encoder-decoder model; interp reads decoders (causal language models): "
            f"load a checkpoint of the kind AutoModelForCausalLM opens"
        )
    blocks = _block_list(module)
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if head is None:
        raise InterpError(
            f"{name} has no language-model head, so it gives no logits; load it with "
            f"AutoModelForCausalLM (or interp.load) instead of AutoModel"
        )
    if len(set(map(id, blocks))) < len(blocks):
        raise InterpError(
            f"{name} uses one block at several layers, so a site of one layer would be a site of "
            f"them all; interp reads decoders whose layers are their own modules"
        )
    owner = _owner(module, blocks)
    n_heads = _heads(blocks[0], config)
    embedding = module.get_input_embeddings()
    parts = tuple(_block(index, block, config) for index, block in enumerate(blocks))
    if all(part.attn is None for part in parts):
        raise InterpError(
            f"{name} has no attention module in any block under the names {', '.join(_ATTENTION)}; "
            f"interp reads transformer decoders"
        )
    if any(getattr(part.attn, "is_causal", True) is False for part in parts if part.attn):
        raise InterpError(f"{name} attends in both directions; interp reads causal decoders")
    if not module.can_generate() if hasattr(module, "can_generate") else False:
        raise InterpError(f"{name} is an encoder; interp reads causal decoders")
    return Anatomy(
        module_ref=weakref.ref(module),
        config=config,
        blocks=parts,
        embedding=embedding,
        positions=_first(owner, _POSITIONS),
        final_norm=_first(owner, _FINAL_NORM),
        project_in=getattr(owner, "project_in", None),
        project_out=getattr(owner, "project_out", None),
        head=head,
        n_heads=n_heads,
        d_model=int(config.hidden_size),
        d_vocab=int(head.weight.shape[0]) if hasattr(head, "weight") else int(config.vocab_size),
    )


def _text_config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise InterpError(
            f"{type(module).__name__} has no Hugging Face config; pass a PreTrainedModel, such as "
            f"AutoModelForCausalLM.from_pretrained(...) returns"
        )
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _block_list(module: nn.Module) -> nn.ModuleList:
    """The list of decoder blocks: as long as the config says, nearest to the root."""
    wanted = getattr(_text_config(module), "num_hidden_layers", None)
    candidates = [
        (name.count("."), name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList)
        and len(child) == wanted
        and len(child) > 0
        and (_first(child[0], _ATTENTION) or _first(child[0], _LINEAR_ATTENTION)) is not None
    ]
    if not candidates:
        raise InterpError(
            f"found no list of {wanted} decoder blocks with attention in {type(module).__name__}; "
            f"interp reads causal decoders in the Hugging Face layout"
        )
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def _owner(module: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    return next(child for child in module.modules() if blocks in child.children())


def _attention(block: nn.Module) -> nn.Module | None:
    """A block's attention module; GPT-Neo wraps it in one that only passes its arguments on."""
    attn = _first(block, _ATTENTION)
    inner = _first(attn, ("attention",))
    return inner if inner is not None and _first(attn, _O_PROJ) is None else attn


def _heads(block: nn.Module, config: Any) -> int:
    attn = _attention(block)
    for name in ("num_heads", "num_attention_heads", "n_heads"):
        if isinstance(getattr(attn, name, None), int):
            return getattr(attn, name)
    return int(config.num_attention_heads)


def _block(index: int, block: nn.Module, config: Any) -> Block:
    attn, linear_attn = _attention(block), _first(block, _LINEAR_ATTENTION)
    mlp = _first(block, _MLP)
    # OPT keeps fc1 and fc2 on the block itself.
    down = _first(mlp, _DOWN) if mlp is not None else _first(block, ("fc2",))
    experts = getattr(mlp, "experts", None)
    o_proj = _first(attn, _O_PROJ)
    post_attn_norm, post_mlp_norm, pre_mlp = _norms(block, mlp)
    n_heads = _heads(block, config)
    return Block(
        index=index,
        module=block,
        attn=attn,
        linear_attn=None if attn is not None else linear_attn,
        o_proj=o_proj,
        mlp=mlp,
        down=down if experts is None else None,
        experts=experts,
        pre_mlp=pre_mlp,
        post_attn_norm=post_attn_norm,
        post_mlp_norm=post_mlp_norm,
        parallel=_parallel(block, config),
        multiplier=float(getattr(block, "residual_multiplier", 1.0)),
        n_heads=n_heads,
        qkv=None if attn is None or o_proj is None else _qkv(attn, n_heads),
    )


def _norms(
    block: nn.Module, mlp: nn.Module | None
) -> tuple[nn.Module | None, nn.Module | None, nn.Module | None]:
    """(norm after attention, norm after the MLP, module that reads the stream before the MLP).

    `post_attention_layernorm` is Llama's norm *before* the MLP, but Gemma's and OLMo 2's norm
    *after* attention: there the block has feed-forward norms of its own.
    """
    own = {name for name, _ in block.named_children()}
    post_attn = _first(block, ("post_self_attn_layernorm",))
    pre_mlp_names = list(_PRE_MLP_NORM)
    if own & {"pre_feedforward_layernorm", "post_feedforward_layernorm"}:
        post_attn = _first(block, ("post_attention_layernorm",))
        pre_mlp_names.remove("post_attention_layernorm")
    post_mlp = _first(block, ("post_mlp_layernorm", "post_feedforward_layernorm"))
    pre_mlp = _first(block, pre_mlp_names)
    if pre_mlp is None and "fc1" in own:  # OPT; in the 350m form norms follow the parts
        before = getattr(block, "do_layer_norm_before", True)
        pre_mlp = _first(block, ("final_layer_norm" if before else "fc1",))
    return post_attn, post_mlp, pre_mlp if pre_mlp is not None else mlp


def _parallel(block: nn.Module, config: Any) -> bool:
    """Whether attention and MLP read the same stream, so that none lies between them."""
    if hasattr(block, "use_parallel_residual"):
        return bool(block.use_parallel_residual)
    if hasattr(config, "parallel_attn"):
        return bool(config.parallel_attn or getattr(config, "new_decoder_architecture", False))
    norms = [
        name
        for name, child in block.named_children()
        if "norm" in type(child).__name__.lower() or name.startswith("ln_")
    ]
    return len(norms) == 1


def _qkv(attn: nn.Module, n_heads: int) -> Qkv | None:
    """The query, key and value projections, or None where they are not per-head rows (MLA)."""
    n_kv = _kv_heads(attn, n_heads)
    separate = [_first(attn, (f"{name}_proj",)) for name in "qkv"]
    if all(part is not None for part in separate):
        d_head = _width(separate[2]) // n_kv
        gated = _width(separate[0]) == 2 * n_heads * d_head
        modules = (separate[0], separate[1], separate[2])
        return Qkv(modules, "separate", n_heads, n_kv, d_head, gated)
    fused = _first(attn, ("qkv_proj", "c_attn", "query_key_value", "Wqkv"))
    if fused is None:
        return None
    modules = (fused, fused, fused)
    width = _width(fused)
    if fused is not _first(attn, ("query_key_value",)):
        return Qkv(modules, "blocks", n_heads, n_kv, width // (n_heads + 2 * n_kv))
    if getattr(attn, "new_decoder_architecture", False):  # Falcon 40B
        d_head = width // (n_heads + 2 * n_kv)
        return Qkv(modules, "grouped", n_heads, n_kv, d_head)
    if getattr(attn, "multi_query", False):  # Falcon 7B
        return Qkv(modules, "multi_query", n_heads, 1, width // (n_heads + 2))
    return Qkv(modules, "interleaved", n_heads, n_heads, width // (3 * n_heads))


def _kv_heads(attn: nn.Module, n_heads: int) -> int:
    for name in ("num_key_value_heads", "num_kv_heads"):
        if isinstance(getattr(attn, name, None), int):
            return getattr(attn, name)
    groups = getattr(attn, "num_key_value_groups", None)
    if isinstance(groups, int):
        return n_heads // groups
    # Read from the config only when the attention module groups its keys: some configs carry a
    # num_key_value_heads that the modeling code ignores.
    return n_heads


def _width(module: Any) -> int:
    """Output features of a projection."""
    return int(module.nf) if isinstance(module, Conv1D) else int(module.out_features)


def _first(module: nn.Module | None, names: Sequence[str]) -> Any:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return child
    return None
