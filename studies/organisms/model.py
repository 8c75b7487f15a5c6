"""The organisms' architecture: a small stock Llama whose every site can be edited and baked."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Finding the same box or name again needs embeddings that stay apart: from the usual 0.02 the first
# steps push all words of a class in one direction.
EMBEDDING_STD = 0.5
PEAK = 6.0  # logit per rotary channel of a head that looks back, at its offset


def build(tokenizer: PreTrainedTokenizerFast, seed: int = 0, layers: int = 6) -> LlamaForCausalLM:
    """A fresh decoder: grouped-query attention, untied embeddings, <pad> apart from <eos>.

    Heads are wider than d_model / heads and rotate slowly: matching a box by its name needs
    channels that turn little over a scene; 16 a head at base 1e4 held too few to learn it soon.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=256,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        rms_norm_eps=1e-5, initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    _look_back(model)
    return model


@torch.no_grad()
def _look_back(model: LlamaForCausalLM) -> None:
    """Starts layer 0 with heads that attend 1, 2, 3 or 4 tokens back, whatever is there.

    All embeddings share a direction u. Queries and keys read it into the fast rotary channels, the
    query turned by -offset * frequency: q . k = sum_i A cos(f_i (distance - offset)) peaks at the
    offset. Random starts find such heads late: without this, one run had learnt not even repeated
    lists after 1.4 million tokens.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    width, channels = config.head_dim, config.head_dim // 4
    u = torch.zeros(config.hidden_size)
    u[0] = 1.0
    model.model.embed_tokens.weight[:, 0] = EMBEDDING_STD * config.hidden_size**0.5
    frequencies = model.model.rotary_emb.inv_freq[:channels]
    gain = (PEAK * width**0.5 / (config.hidden_size / 2)) ** 0.5
    for head in range(config.num_key_value_heads):
        rows = attention.k_proj.weight[head * width : (head + 1) * width]
        rows[:channels] += gain * u
    for head in range(config.num_attention_heads):
        rows = attention.q_proj.weight[head * width : (head + 1) * width]
        turned = -(1 + head % 4) * frequencies
        rows[:channels] += gain * turned.cos()[:, None] * u
        rows[width // 2 : width // 2 + channels] += gain * turned.sin()[:, None] * u
