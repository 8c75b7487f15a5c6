"""The models that are measured: random weights, built from a config, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

ARCHITECTURES = ("llama", "gpt2")


@dataclass(frozen=True)
class Parts:
    """Where the plain-hook contestants of one architecture hook."""

    blocks: str
    o_proj: str
    down: str
    norm: str
    head: str = "lm_head"


PARTS = {
    "llama": Parts("model.layers", "self_attn.o_proj", "mlp.down_proj", "model.norm"),
    "gpt2": Parts("transformer.h", "attn.c_proj", "mlp.c_proj", "transformer.ln_f"),
}


def build(architecture: str, *, tiny: bool = False) -> PreTrainedModel:
    """A llama of 8 layers x 256 or a gpt2 of 12 x 256, in float32, with SDPA attention."""
    torch.manual_seed(0)
    config: PretrainedConfig
    if architecture == "llama":
        config = LlamaConfig(
            vocab_size=1000 if tiny else 32000,
            hidden_size=64 if tiny else 256,
            num_hidden_layers=2 if tiny else 8,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=172 if tiny else 688,
            max_position_embeddings=2048,
        )
        model: PreTrainedModel = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=1000 if tiny else 50257,
            n_embd=64 if tiny else 256,
            n_layer=2 if tiny else 12,
            n_head=8,
            n_positions=2048,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(config)
    model.set_attn_implementation("sdpa")
    return model.eval()


def random_ids(model: PreTrainedModel, batch: int, tokens: int) -> Tensor:
    """Token ids [batch pos], the same every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator)


def describe(model: PreTrainedModel) -> str:
    """The sizes in one line."""
    config = model.config
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return (
        f"{config.model_type}: {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{config.num_attention_heads} heads, d_mlp {inner}, vocabulary {config.vocab_size}, "
        f"float32, random weights"
    )
