"""Tiny random models of every architecture we support, built from their configs: no download.

`build("llama")` is deterministic, in float32 and eval mode. Weights are scaled up from the usual
initialisation so that every component visibly moves the logits: a site that is read from the wrong
place then fails its oracle instead of hiding in noise.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GQA = {"num_key_value_heads": 2}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# What each architecture needs beyond the common sizes. head_dim differs from hidden/heads where
# the architecture allows it, because real checkpoints do that and it breaks naive head splits.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 48},
    "llama": _GQA,
    "qwen2": _GQA,
    "qwen3": {**_GQA, "head_dim": 12},
    "mistral": {**_GQA, "head_dim": 12, "sliding_window": None},
    "gemma2": {**_GQA, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 8},
    "gemma3": {**_GQA, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 8},
    "phi3": _GQA,
    "gpt_neox": {},
    "olmo2": _GQA,
    "cohere": {**_GQA, "logit_scale": 0.25},
    "granite": {
        **_GQA,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "glm4": {**_GQA, "head_dim": 8, "partial_rotary_factor": 0.5},
    "phi": {**_GQA, "partial_rotary_factor": 0.5},
    "starcoder2": {**_GQA, "sliding_window": None},
    "stablelm": {**_GQA, "partial_rotary_factor": 0.5},
    "smollm3": {**_GQA, "use_sliding_window": False},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "bloom": {},
    "falcon": {"alibi": False, "multi_query": True, "parallel_attn": True},
    "mixtral": {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_GQA, **_MOE, "head_dim": 12, "mlp_only_layers": [1]},
    "olmoe": {**_GQA, **_MOE},
    "gpt_oss": {
        **_GQA,
        "head_dim": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 10,
        "num_key_value_heads": 4,
    },
    "qwen3_next": {
        **_GQA,
        **_MOE,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "shared_expert_intermediate_size": 24,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": [
            "linear_attention",
            "full_attention",
            "linear_attention",
            "full_attention",
        ],
    },
}
NAMES = list(CONFIGS)
# Forms of the above that keep their parts elsewhere: sequential NeoX and Falcon, Falcon's other
# two query-key-value layouts, OPT with its narrow embedding, StableLM in parallel.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-sequential": ("falcon", {"parallel_attn": False, "multi_query": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 20}),
}
_MODEL_TYPE = {"gemma3": "gemma3_text"}


def build(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A tiny random model: `build("llama")`, `build("falcon-new")`, `build("gpt2", n_layer=2)`."""
    base, extra = VARIANTS.get(name, (name, {}))
    kwargs = {**_COMMON, **CONFIGS[base], **extra, **overrides}
    config = AutoConfig.for_model(_MODEL_TYPE.get(base, base), **kwargs)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for param_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms, biases, sinks: away from their trivial 0 and 1
                parameter.add_(0.3 * noise)
            else:
                scale = 1.0 if "embed" in param_name or "wte" in param_name else 0.25
                parameter.copy_(scale * noise)
    return model.to(dtype).eval()
