"""How fused tensors divide: query-key-value layouts, gate and up, experts, latent attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from interp._weights.config import first, head_counts
from interp._weights.part import Part
from interp._weights.stored import Stored

if TYPE_CHECKING:
    from interp._weights.names import Name

Blocks = tuple[tuple[int, int], ...]
Piece = tuple[str, Blocks, int, str]  # module, ranges on the output axis, heads, head axis
_INTERLEAVED = ("gpt_neox", "bloom", "gpt_neox_japanese")


def split_rows(config: Mapping[str, Any], name: Name, stored: Stored) -> Iterator[Piece]:
    """The pieces of one tensor as ranges on its output axis."""
    from interp._weights.names import is_transposed

    out = stored.shape[-1] if is_transposed(config, name, stored) else 0
    out = out or (stored.shape[0] if stored.shape else 1)
    if len(stored.shape) > 2:
        out = _rows(stored)
    whole: Blocks = ((0, out),)
    n_heads, n_kv = _heads(config, name)
    if name.module == "qkv":
        yield from _qkv(config, n_heads, n_kv, out)
    elif name.module == "qkvz":
        yield from _qkvz(config, out)
    elif name.module == "kv":
        yield from _latent_kv(config, n_heads)
    elif name.module == "gate_up":
        yield "gate", ((0, out // 2),), 0, "out"
        yield "up", ((out // 2, out),), 0, "out"
    elif name.module == "q" and _gated(config, n_heads, out):
        d = out // (2 * n_heads)
        yield "q", _strided(n_heads, 2 * d, 0, d), n_heads, "out"
        yield "q_gate", _strided(n_heads, 2 * d, d, d), n_heads, "out"
    elif name.module in ("q", "k", "v"):
        heads = n_heads if name.module == "q" else n_kv
        yield name.module, whole, _divides(heads, out), "out"
    elif name.module == "o" and name.kind == "weight":
        inner = stored.shape[0] if is_transposed(config, name, stored) else stored.shape[-1]
        yield "o", whole, _divides(n_heads, inner), "in"
    else:
        yield name.module, whole, 0, "out"


def expert_parts(config: Mapping[str, Any], key: str, name: Name, stored: Stored) -> Iterator[Part]:
    """The matrices of experts stored in one tensor: [expert out in], or [expert in out]."""
    from interp._weights.names import canonical

    kind = config.get("model_type", "")
    interleaved, transposed = kind == "gpt_oss", kind in ("gpt_oss", "llama4", "llama4_text")
    width, bias = stored.shape[-1], name.kind == "bias"
    rows = _rows(stored) // stored.shape[0]
    transposed = transposed or bias  # a bias is one stored row over the outputs
    out = width if transposed else rows
    for expert in range(stored.shape[0]):
        start = expert * rows
        for module, (a, b, step) in _expert_pieces(name.module, out, interleaved):
            blocks = ((start, start + rows),) if transposed else ((start + a, start + b),)
            columns = (a, b, step) if transposed else (0, width, 1)
            label = canonical(name, module, expert)
            yield Part(label, name.layer, module, expert, key, width, blocks, columns, transposed)


def _expert_pieces(
    module: str, out: int, interleaved: bool
) -> list[tuple[str, tuple[int, int, int]]]:
    if module != "gate_up":
        return [(module, (0, out, 1))]
    if interleaved:
        return [("gate", (0, out, 2)), ("up", (1, out, 2))]
    return [("gate", (0, out // 2, 1)), ("up", (out // 2, out, 1))]


def _qkv(config: Mapping[str, Any], n_heads: int, n_kv: int, out: int) -> Iterator[Piece]:
    kind = config.get("model_type", "")
    if not n_heads or out % (n_heads + 2 * n_kv):
        yield "qkv", ((0, out),), 0, "out"
        return
    d = out // (n_heads + 2 * n_kv)
    if kind == "falcon" and config.get("new_decoder_architecture"):  # per key head: its queries
        group = n_heads // n_kv
        sizes = (group * d, d, d)
    elif kind in _INTERLEAVED or (kind == "falcon" and not config.get("multi_query")):
        sizes = (d, d, d)
    else:  # all queries, all keys, all values
        starts = (0, n_heads * d, (n_heads + n_kv) * d, out)
        for i, module in enumerate("qkv"):
            heads = n_heads if i == 0 else n_kv
            yield module, ((starts[i], starts[i + 1]),), _divides(heads, out), "out"
        return
    period, start = sum(sizes), 0
    for module, size in zip("qkv", sizes, strict=True):
        heads = n_heads if module == "q" else n_kv
        yield module, _strided(n_kv, period, start, size), heads, "out"
        start += size


def _qkvz(config: Mapping[str, Any], out: int) -> Iterator[Piece]:
    """Linear attention of Qwen3-Next: per key head its query, key, values and output gates."""
    keys, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    d_key = int(config["linear_key_head_dim"])
    d_values = int(config["linear_value_head_dim"]) * values // keys
    start, period = 0, out // keys
    for module, size in (("q", d_key), ("k", d_key), ("v", d_values), ("z", d_values)):
        heads = keys if module in "qk" else values
        yield module, _strided(keys, period, start, size), heads, "out"
        start += size


def _latent_kv(config: Mapping[str, Any], n_heads: int) -> Iterator[Piece]:
    """Multi-head latent attention: per head its keys without position, then its values."""
    d_key, d_value = int(config["qk_nope_head_dim"]), int(config["v_head_dim"])
    yield "k", _strided(n_heads, d_key + d_value, 0, d_key), n_heads, "out"
    yield "v", _strided(n_heads, d_key + d_value, d_key, d_value), n_heads, "out"


def _heads(config: Mapping[str, Any], name: Name) -> tuple[int, int]:
    if name.prefix == "linear.":
        heads = int(config.get("linear_num_value_heads", 0))
        return heads, heads
    return head_counts(config)


def _gated(config: Mapping[str, Any], n_heads: int, out: int) -> bool:
    """Whether each query is followed by a gate of equal width (Qwen3-Next)."""
    d_head = first(config, "head_dim", default=0)
    return bool(
        n_heads and d_head and out == 2 * n_heads * d_head and not config.get("kv_lora_rank")
    )


def _strided(count: int, period: int, start: int, size: int) -> Blocks:
    return tuple((i * period + start, i * period + start + size) for i in range(count))


def _divides(heads: int, width: int) -> int:
    return heads if heads > 1 and width % heads == 0 else 0


def _rows(stored: Stored) -> int:
    rows = 1
    for size in stored.shape[:-1]:
        rows *= size
    return rows
