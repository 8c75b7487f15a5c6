"""Canonical names: which matrices a state dict holds, whatever its architecture calls them.

Structural: a name is read from the handful of words that modeling files share, and fused tensors
are split by the head counts of the config. `tests/interp/weights/test_names.py` proves the splits
against the projections of every architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from interp._weights.fused import expert_parts, split_rows
from interp._weights.part import Part
from interp._weights.stored import Stored

_STACKS = ("layers", "h", "blocks", "block", "layer")
_ATTENTION = {"self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer"}
_MODULES = {
    "q": "q_proj query wq q_b_proj",
    "k": "k_proj key wk",
    "v": "v_proj value wv",
    "o": "o_proj out_proj",
    "gate": "gate_proj w1 w_gate",
    "up": "up_proj w3 c_fc fc_in fc1 dense_h_to_4h",
    "down": "down_proj w2 fc_out fc2 dense_4h_to_h",
    "qkv": "qkv_proj query_key_value c_attn Wqkv",
    "gate_up": "gate_up_proj",
    "qkvz": "in_proj_qkvz",
    "kv": "kv_b_proj",
    "embed": "embed_tokens wte word_embeddings embed_in",
    "head": "lm_head embed_out",
    "positions": "wpe embed_positions position_embeddings",
    "router": "router shared_expert_gate",
}
_BY_LEAF = {leaf: module for module, leaves in _MODULES.items() for leaf in leaves.split()}
_BUFFERS = ("inv_freq", "masked_bias", "original_inv_freq")


@dataclass(frozen=True)
class Name:
    """A state-dict key, understood."""

    layer: int | None
    module: str
    expert: int | None
    prefix: str  # what stands before the module in the canonical name
    leaf: str
    kind: str  # weight, bias, or the parameter's own word


def parts_of(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Part]:
    """The matrices of a checkpoint by canonical name, fused tensors split, tied ones once.

    Args:
        config: as a plain dict, for head counts and layouts.
        tensors: by state-dict key.
    """
    found: dict[str, Part] = {}
    for key, stored in tensors.items():
        if key.endswith(_BUFFERS) or (key.endswith("attn.bias") and len(stored.shape) > 2):
            continue  # masks and frequencies that old checkpoints saved
        for part in _parts(config, key, stored):
            # Two towers in one checkpoint may share a canonical name: the second keeps its own.
            name = part.tensor if part.tensor not in found else key
            found[name] = part
    tied = config.get("tie_word_embeddings") and "embed.weight" in found
    if tied:
        found.pop("head.weight", None)
    return found


def _parts(config: Mapping[str, Any], key: str, stored: Stored) -> Iterator[Part]:
    name = read_name(key)
    if name.expert is None and "experts" in key and len(stored.shape) > len(_plain(name)):
        yield from expert_parts(config, key, name, stored)
        return
    for module, blocks, heads, axis in split_rows(config, name, stored):
        yield make_part(config, key, name, stored, module, blocks, heads, axis)


def _plain(name: Name) -> str:
    """A word as long as the axes of one expert's tensor."""
    return "o" if name.kind == "bias" else "oi"


def make_part(
    config: Mapping[str, Any],
    key: str,
    name: Name,
    stored: Stored,
    module: str,
    blocks: tuple[tuple[int, int], ...],
    heads: int,
    axis: str,
) -> Part:
    """A part of an ordinary tensor, given its ranges on the output axis."""
    width = stored.shape[-1] if len(stored.shape) > 1 else 1
    transposed = is_transposed(config, name, stored)
    label = canonical(name, module)
    if transposed:
        (start, stop), columns = (0, stored.shape[0]), (blocks[0][0], blocks[-1][1], 1)
        rows: tuple[tuple[int, int], ...] = ((start, stop),)
    else:
        rows, columns = blocks, (0, width, 1)
    return Part(
        label, name.layer, module, name.expert, key, width, rows, columns, transposed, heads, axis
    )


def canonical(name: Name, module: str, expert: int | None = None) -> str:
    """`layers.3.experts.1.gate.weight`, `layers.3.norm.ln_1.weight`, `embed.weight`."""
    stack = f"layers.{name.layer}." if name.layer is not None else ""
    index = name.expert if expert is None else expert
    experts = f"experts.{index}." if index is not None else ""
    word = f"norm.{name.leaf}" if module == "norm" else module
    return f"{stack}{name.prefix}{experts}{word}.{name.kind}"


def is_transposed(config: Mapping[str, Any], name: Name, stored: Stored) -> bool:
    """Whether a matrix is stored [in, out]: GPT-2's Conv1D."""
    conv1d = config.get("model_type") in ("gpt2", "imagegpt", "openai-gpt", "decision_transformer")
    return bool(
        conv1d and len(stored.shape) == 2 and name.leaf in ("c_attn", "c_proj", "c_fc", "q_attn")
    )


def read_name(key: str) -> Name:
    """What a state-dict key names.

    >>> read_name("model.layers.3.mlp.experts.1.w2.weight").module
    'down'
    """
    words = key.split(".")
    if any(word.startswith(("vision", "visual", "audio")) for word in words):
        return Name(None, "other", None, f"{key.rsplit('.', 1)[0]}.", "other", words[-1])
    layer, at = None, -1
    for i in range(len(words) - 1):
        if words[i] in _STACKS and words[i + 1].isdigit():
            layer, at = int(words[i + 1]), i + 1
            break
    inner = words[at + 1 :]
    expert = None
    if "experts" in inner and (i := inner.index("experts")) + 1 < len(inner):
        expert = int(inner[i + 1]) if inner[i + 1].isdigit() else None
    leaf, kind = _leaf_and_kind(inner)
    prefix = "shared." if any(w.startswith("shared_expert") for w in inner[:-1]) else ""
    prefix = "linear." if "linear_attn" in inner else prefix
    return Name(layer, _module(leaf, inner), expert, prefix, leaf, kind)


def _leaf_and_kind(inner: list[str]) -> tuple[str, str]:
    last = inner[-1]
    if last in ("weight", "bias") and len(inner) > 1:
        return inner[-2], last
    for word in ("gate_up_proj", "down_proj"):  # experts fused into one parameter
        if last in (word, f"{word}_bias"):
            return word, "bias" if last.endswith("_bias") else "weight"
    return last, "weight"


def _module(leaf: str, inner: list[str]) -> str:
    in_attention = bool(_ATTENTION & set(inner))
    if leaf in ("c_proj", "dense", "wo"):
        return "o" if in_attention else "down"
    if leaf == "gate" and not in_attention:
        return "router"
    if leaf in _BY_LEAF:
        return _BY_LEAF[leaf]
    if re.search(r"norm|(^|_)ln", leaf):
        return "norm"
    return re.sub(r"_proj(_with_mqa)?$", "", leaf)
