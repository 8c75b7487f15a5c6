"""Four decoders written from their papers, in float64, giving every site's tensor.

GPT-2 (Radford et al. 2019), GPT-NeoX (Black et al. 2022, arXiv 2204.06745), Llama (Touvron et al.
2023, arXiv 2302.13971, with the grouped keys of arXiv 2305.13245) and Gemma 2 (arXiv 2408.00118).
They read a checkpoint's tensors and config only: no modeling file, no hook, no attention kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass
class Seen:
    """Every site's tensor by name, and the logits."""

    sites: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def reference(name: str, model: Any, ids: Tensor) -> Seen:
    """All sites of `model`'s checkpoint on unpadded ids [batch pos]."""
    weights = {key: value.double() for key, value in model.state_dict().items()}
    with torch.no_grad():
        return _DECODERS[name](weights, model.config, ids)


def layer_norm(x: Tensor, w: Weights, at: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * w[f"{at}.weight"] + w[f"{at}.bias"]


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


def rotated(x: Tensor, theta: float, n_rotated: int) -> Tensor:
    """Rotary embedding on the first coordinates of each head; x is [batch pos head d_head]."""
    pos = torch.arange(x.shape[1], dtype=torch.float64)
    rates = theta ** (-torch.arange(0, n_rotated, 2, dtype=torch.float64) / n_rotated)
    angle = (pos[:, None] * rates)[None, :, None]  # [1 pos 1 n_rotated/2]
    first, second = x[..., : n_rotated // 2], x[..., n_rotated // 2 : n_rotated]
    turned = (
        first * angle.cos() - second * angle.sin(),
        second * angle.cos() + first * angle.sin(),
        x[..., n_rotated:],
    )
    return torch.cat(turned, dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(pattern [batch head query key], z [batch pos head d_head]) of causal attention."""
    groups = q.shape[2] // k.shape[2]
    # Query head h reads key head h // groups.
    k, v = (t[:, :, [h // groups for h in range(q.shape[2])]] for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return pattern, torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1)


def per_head(z: Tensor, matrix: Tensor) -> Tensor:
    """z [batch pos head d_head] times its rows of the [head*d_head, d_model] output matrix."""
    d_head = z.shape[-1]
    parts = [z[:, :, h] @ matrix[h * d_head : (h + 1) * d_head] for h in range(z.shape[2])]
    return torch.stack(parts, dim=2)


def _gpt2(w: Weights, config: Any, ids: Tensor) -> Seen:
    seen, eps, heads = Seen(), config.layer_norm_epsilon, config.n_head
    at = seen.sites
    at["embed"] = w["transformer.wte.weight"][ids]
    x = at["embed"] + w["transformer.wpe.weight"][: ids.shape[1]]

    def linear(x: Tensor, name: str) -> Tensor:  # Conv1D: [in, out]
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    for i in range(config.n_layer):
        here = f"transformer.h.{i}"
        at[f"resid_pre.{i}"] = x
        fused = linear(layer_norm(x, w, f"{here}.ln_1", eps), f"{here}.attn.c_attn")
        q, k, v = (split(part, heads) for part in fused.chunk(3, dim=-1))
        pattern, z = attend(q, k, v, scale=q.shape[-1] ** -0.5)
        attn = linear(z.flatten(-2), f"{here}.attn.c_proj")
        mid = x + attn
        neurons = gelu_tanh(linear(layer_norm(mid, w, f"{here}.ln_2", eps), f"{here}.mlp.c_fc"))
        mlp = linear(neurons, f"{here}.mlp.c_proj")
        x = mid + mlp
        heads_out = per_head(z, w[f"{here}.attn.c_proj.weight"])
        _note(at, i, q, k, v, pattern, z, heads_out, attn, neurons, mlp, x, mid=mid)
    seen.logits = layer_norm(x, w, "transformer.ln_f", eps) @ w["transformer.wte.weight"].T
    return seen


def _gpt_neox(w: Weights, config: Any, ids: Tensor) -> Seen:
    seen, eps, heads = Seen(), config.layer_norm_eps, config.num_attention_heads
    at = seen.sites
    d_head = config.hidden_size // heads
    n_rotated = int(d_head * config.rope_parameters["partial_rotary_factor"])
    theta = config.rope_parameters["rope_theta"]
    x = at["embed"] = w["gpt_neox.embed_in.weight"][ids]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for i in range(config.num_hidden_layers):
        here = f"gpt_neox.layers.{i}"
        at[f"resid_pre.{i}"] = x
        fused = linear(
            layer_norm(x, w, f"{here}.input_layernorm", eps), f"{here}.attention.query_key_value"
        )
        # Row block h of the fused matrix is head h's query, key, value.
        q, k, v = split(fused, heads).split(d_head, dim=-1)
        turned_q, turned_k = rotated(q, theta, n_rotated), rotated(k, theta, n_rotated)
        pattern, z = attend(turned_q, turned_k, v, scale=d_head**-0.5)
        attn = linear(z.flatten(-2), f"{here}.attention.dense")
        mid = x + attn
        source = x if config.use_parallel_residual else mid
        normed = layer_norm(source, w, f"{here}.post_attention_layernorm", eps)
        neurons = gelu(linear(normed, f"{here}.mlp.dense_h_to_4h"))
        mlp = linear(neurons, f"{here}.mlp.dense_4h_to_h")
        x = x + attn + mlp
        heads_out = per_head(z, w[f"{here}.attention.dense.weight"].T)
        between = None if config.use_parallel_residual else mid
        _note(at, i, q, k, v, pattern, z, heads_out, attn, neurons, mlp, x, mid=between)
    normed = layer_norm(x, w, "gpt_neox.final_layer_norm", eps)
    seen.logits = normed @ w["lm_head.weight"].T
    return seen


def _llama_like(w: Weights, config: Any, ids: Tensor, *, gemma: bool) -> Seen:
    """Llama; with `gemma` Gemma 2: (1 + w) norms, norms after both parts, soft caps, windows."""
    seen, eps = Seen(), config.rms_norm_eps
    at, theta = seen.sites, config.rope_parameters["rope_theta"]
    heads, kv_heads, d_head = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    embed_scale = math.sqrt(config.hidden_size) if gemma else 1.0
    x = at["embed"] = w["model.embed_tokens.weight"][ids] * embed_scale

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, w[f"{name}.weight"] + (1 if gemma else 0), eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T

    for i in range(config.num_hidden_layers):
        here = f"model.layers.{i}"
        at[f"resid_pre.{i}"] = x
        normed = norm(x, f"{here}.input_layernorm")
        q = split(linear(normed, f"{here}.self_attn.q_proj"), heads)
        k = split(linear(normed, f"{here}.self_attn.k_proj"), kv_heads)
        v = split(linear(normed, f"{here}.self_attn.v_proj"), kv_heads)
        sliding = gemma and i % 2 == 0
        pattern, z = attend(
            rotated(q, theta, d_head),
            rotated(k, theta, d_head),
            v,
            scale=(config.query_pre_attn_scalar if gemma else d_head) ** -0.5,
            softcap=config.attn_logit_softcapping if gemma else None,
            window=config.sliding_window if sliding else None,
        )
        attn = linear(z.flatten(-2), f"{here}.self_attn.o_proj")
        attn = norm(attn, f"{here}.post_attention_layernorm") if gemma else attn
        mid = x + attn
        before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        normed = norm(mid, f"{here}.{before}")
        gate = linear(normed, f"{here}.mlp.gate_proj")
        gate = gelu_tanh(gate) if gemma else gate * torch.sigmoid(gate)
        neurons = gate * linear(normed, f"{here}.mlp.up_proj")
        mlp = linear(neurons, f"{here}.mlp.down_proj")
        mlp = norm(mlp, f"{here}.post_feedforward_layernorm") if gemma else mlp
        x = mid + mlp
        heads_out = per_head(z, w[f"{here}.self_attn.o_proj.weight"].T)
        _note(at, i, q, k, v, pattern, z, heads_out, attn, neurons, mlp, x, mid=mid)
    logits = linear(norm(x, "model.norm"), "lm_head")
    cap = config.final_logit_softcapping if gemma else None
    seen.logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return seen


def _note(at: dict[str, Tensor], i: int, *parts: Tensor, mid: Tensor | None) -> None:
    names = "q k v pattern z head_out attn_out mlp_post mlp_out resid_post".split()
    at.update({f"{name}.{i}": part for name, part in zip(names, parts, strict=True)})
    if mid is not None:
        at[f"resid_mid.{i}"] = mid


_DECODERS: dict[str, Callable[[Weights, Any, Tensor], Seen]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_neox-sequential": _gpt_neox,
    "llama": lambda w, config, ids: _llama_like(w, config, ids, gemma=False),
    "gemma2": lambda w, config, ids: _llama_like(w, config, ids, gemma=True),
}
NAMES = list(_DECODERS)
