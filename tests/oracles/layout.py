"""Where each architecture keeps its parts, written by hand from the modeling files.

The library finds parts by structure; this table states them, so that a wrong guess cannot agree
with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.architectures import NAMES, VARIANTS


@dataclass(frozen=True)
class Layout:
    """Module paths, relative to a block except `blocks`; None where there is no such part."""

    blocks: str = "model.layers"
    o_proj: str = "self_attn.o_proj"
    # Whose output, times the residual multiplier, is added to the stream. BLOOM's o_proj too:
    # its attention module adds the stream itself.
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    down: str = "mlp.down_proj"
    pre_mlp: str | None = "post_attention_layernorm"  # reads resid_mid; None: parallel
    qkv: str = "self_attn.{}_proj"
    rows: str = "separate"
    attn: str = "self_attn"


_FALCON = Layout(
    blocks="transformer.h",
    o_proj="self_attention.dense",
    attn_out="self_attention",
    down="mlp.dense_4h_to_h",
    pre_mlp=None,
    qkv="self_attention.query_key_value",
    rows="multi_query",
    attn="self_attention",
)
_GPT2 = Layout(
    blocks="transformer.h",
    o_proj="attn.c_proj",
    attn_out="attn",
    down="mlp.c_proj",
    pre_mlp="ln_2",
    qkv="attn.c_attn",
    rows="columns",
    attn="attn",
)
_NEOX = Layout(
    blocks="gpt_neox.layers",
    o_proj="attention.dense",
    attn_out="attention",
    down="mlp.dense_4h_to_h",
    pre_mlp=None,
    qkv="attention.query_key_value",
    rows="interleaved",
    attn="attention",
)
_NORM_AFTER = {
    "attn_out": "post_attention_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
_OPT = Layout(
    blocks="model.decoder.layers",
    o_proj="self_attn.out_proj",
    mlp_out="fc2",
    down="fc2",
    pre_mlp="final_layer_norm",
)
_MOE = Layout(down="")  # neurons live in mlp.experts

LAYOUTS: dict[str, Layout] = {
    **{name: Layout() for name in ("llama", "qwen2", "qwen3", "mistral", "smollm3", "stablelm")},
    "granite": Layout(),
    "starcoder2": Layout(down="mlp.c_proj"),
    "phi3": Layout(qkv="self_attn.qkv_proj", rows="blocks"),
    "gpt2": _GPT2,
    "gemma2": Layout(**_NORM_AFTER, pre_mlp="pre_feedforward_layernorm"),
    "gemma3": Layout(**_NORM_AFTER, pre_mlp="pre_feedforward_layernorm"),
    "olmo2": Layout(**_NORM_AFTER, pre_mlp="mlp"),
    "glm4": Layout(attn_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"),
    "gpt_neox": _NEOX,
    "gpt_neox-sequential": Layout(
        **{**_NEOX.__dict__, "pre_mlp": "post_attention_layernorm"},
    ),
    "cohere": Layout(pre_mlp=None),
    "stablelm-parallel": Layout(pre_mlp=None),
    "phi": Layout(o_proj="self_attn.dense", down="mlp.fc2", pre_mlp=None),
    "opt": _OPT,
    "opt-projected": _OPT,
    "gptj": Layout(
        blocks="transformer.h",
        o_proj="attn.out_proj",
        attn_out="attn",
        down="mlp.fc_out",
        pre_mlp=None,
        qkv="attn.{}_proj",
        attn="attn",
    ),
    "bloom": Layout(
        blocks="transformer.h",
        o_proj="self_attention.dense",
        attn_out="self_attention.dense",
        mlp_out="mlp.dense_4h_to_h",
        down="mlp.dense_4h_to_h",
        qkv="self_attention.query_key_value",
        rows="interleaved",
        attn="self_attention",
    ),
    "falcon": _FALCON,
    "falcon-new": Layout(**{**_FALCON.__dict__, "rows": "grouped"}),
    "falcon-sequential": Layout(
        **{
            **_FALCON.__dict__,
            "rows": "interleaved",
            "pre_mlp": "post_attention_layernorm",
        }
    ),
    **{name: _MOE for name in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")},
    "qwen3_next": Layout(down="", rows="gated"),
}
EVERY = [*NAMES, *VARIANTS]
PARALLEL = [name for name in EVERY if LAYOUTS[name].pre_mlp is None]
POST_NORM = ["gemma2", "gemma3", "olmo2", "glm4"]
# Probabilities come from the module's output, not from the attention interface: read only.
PATTERN_READ_ONLY = [n for n in EVERY if n.split("-")[0] in ("gptj", "bloom", "falcon")]
LEARNED_POSITIONS = ["gpt2", "opt", "opt-projected"]
EXPERTS = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "qwen3_next"]
# A block of each kind that has every part: attention with heads, and experts where there are any.
LAYER = {"qwen3_moe": 0}


def layer_of(name: str) -> int:
    """A block with attention heads, and with experts in a mixture of experts."""
    return LAYER.get(name, 1)


def block_of(name: str, model: Any, layer: int) -> Any:
    return model.get_submodule(LAYOUTS[name].blocks)[layer]


def part_of(name: str, model: Any, layer: int, part: str) -> Any:
    """A module of the table, such as `part_of("gpt2", model, 1, "o_proj")`."""
    path = getattr(LAYOUTS[name], part)
    return block_of(name, model, layer).get_submodule(path)


def kv_heads_of(name: str, model: Any) -> int:
    base = name.split("-")[0]
    if name == "falcon":
        return 1
    if name == "falcon-new":
        return 2
    return (
        4
        if base in ("gpt2", "gpt_neox", "opt", "gptj", "bloom", "falcon", "deepseek_v3")
        else model.config.num_key_value_heads
    )


def qkv_of(name: str, model: Any, layer: int, kind: str) -> nn.Module:
    path = LAYOUTS[name].qkv.format(kind)
    return block_of(name, model, layer).get_submodule(path)


def qkv_rows(name: str, model: Any, layer: int, kind: str, head: int) -> slice:
    """Which outputs of the projection are head `head` of the queries, keys or values."""
    heads, kv = 4, kv_heads_of(name, model)
    module: Any = qkv_of(name, model, layer, kind)
    width = module.nf if LAYOUTS[name].rows == "columns" else module.out_features
    index = "qkv".index(kind)
    match LAYOUTS[name].rows:
        case "separate":
            d = width // (heads if kind == "q" else kv)
            start = head * d
        case "gated":  # per head: query, then its gate
            d = width // (2 * heads) if kind == "q" else width // kv
            start = head * (2 * d if kind == "q" else d)
        case "columns" | "blocks":
            d = width // (heads + 2 * kv)
            start = (0, heads, heads + kv)[index] * d + head * d
        case "interleaved":
            d = width // (3 * heads)
            start = (3 * head + index) * d
        case "multi_query":
            d = width // (heads + 2)
            start = ((head, heads, heads + 1)[index]) * d
        case _:  # grouped: per key head, its queries, the key, the value
            d, group = width // (heads + 2 * kv), heads // kv
            size = group + 2
            start = (
                (head // group) * size + head % group if kind == "q" else head * size + group
            ) * d + (d if kind == "v" else 0)
    return slice(start, start + d)


def output_matrix(name: str, module: Any) -> Tensor:
    """A projection's weight as [in, out], a view to edit."""
    return module.weight if LAYOUTS[name].rows == "columns" else module.weight.T
