"""GPT-2s written by hand, in which we know what each part does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB, HEADS, D_HEAD, POSITIONS = 12, 4, 16, 10
D_MODEL = HEADS * D_HEAD
ANSWER = slice(32, 32 + VOCAB)  # where the head reads the answer


def copying(writers: tuple[tuple[int, int], ...] = ((1, 2),), noise: float = 0.0) -> Any:
    """Its prediction is its first token, which only the `writers` carry to later positions.

    Every head attends to position 0; a writer copies that token's one-hot into the dimensions that
    the unembedding reads, the others write nothing (or noise). No MLP. LayerNorms stay, so nothing
    is quite linear.

    Args:
        writers: (layer, head) of the heads that copy, each an equal share.
        noise: scale of random weights in all the other heads' outputs.
    """
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=D_MODEL, n_layer=2, n_head=HEADS, n_positions=POSITIONS, n_inner=8,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attn_pdrop=0, embd_pdrop=0,
        resid_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not ("ln_" in name and name.endswith("weight")):
                parameter.zero_()
        model.transformer.wte.weight[:, :VOCAB] = torch.eye(VOCAB)
        model.transformer.wpe.weight[:, VOCAB : VOCAB + POSITIONS] = torch.eye(POSITIONS)
        model.lm_head.weight[:, ANSWER] = torch.eye(VOCAB)
        for layer, block in enumerate(model.transformer.h):
            for head in range(HEADS):
                at = head * D_HEAD
                block.attn.c_attn.bias[at] = 100.0  # the query, whatever the token
                block.attn.c_attn.weight[VOCAB, D_MODEL + at] = 1.0  # the key: being first
                values = block.attn.c_attn.weight[:, 2 * D_MODEL + at : 2 * D_MODEL + at + D_HEAD]
                values[:VOCAB, :VOCAB] = torch.eye(VOCAB)
                outputs = block.attn.c_proj.weight[at : at + D_HEAD]
                outputs += noise * torch.randn(outputs.shape, generator=generator)
                if (layer, head) in writers:
                    outputs[:VOCAB, ANSWER] += torch.eye(VOCAB) / len(writers)
    return model


def relaying() -> Any:
    """Head (0, 1) moves the first token's identity to every later position; (1, 3) reads it there.

    Head (1, 3) attends to the position whose identity, written by (0, 1), is that of the first
    token of the prompt: all of them, so evenly; its query is fixed. Its value is what (0, 1) wrote
    at those positions, which it copies to the answer. So the path is (0, 1) -> v of (1, 3).
    """
    model = copying(writers=())
    with torch.no_grad():
        first, second = model.transformer.h
        relay = slice(44, 44 + VOCAB)
        first.attn.c_proj.weight[D_HEAD : D_HEAD + VOCAB, relay] = torch.eye(VOCAB)
        at = 2 * D_MODEL + 3 * D_HEAD
        second.attn.c_attn.weight[:, at : at + D_HEAD] = 0
        second.attn.c_attn.weight[relay, at : at + VOCAB] = torch.eye(VOCAB)
        second.attn.c_attn.bias[3 * D_HEAD] = 0  # attends evenly
        second.attn.c_proj.weight[3 * D_HEAD : 3 * D_HEAD + VOCAB, ANSWER] = torch.eye(VOCAB)
    return model


def linear(n_layers: int = 3, seed: int = 0) -> Any:
    """An affine model in float64: no norms, identity activations, attention evenly to the past."""
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=D_MODEL, n_layer=n_layers, n_head=HEADS, n_positions=POSITIONS,
        n_inner=24, activation_function="linear", tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * D_MODEL] = 0  # queries and keys
            block.attn.c_attn.bias[: 2 * D_MODEL] = 0
            block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    model.transformer.ln_f = torch.nn.Identity()
    return model


def through_block(model: Any, layer: int, delta: Tensor) -> Tensor:
    """How a change [pos d_model] of the stream below a block of `linear` comes out above it."""
    block = model.transformer.h[layer]
    n = len(delta)
    mean = torch.ones(n, n, dtype=delta.dtype).tril() / torch.arange(1, n + 1)[:, None]
    values = block.attn.c_attn.weight[:, 2 * D_MODEL :]
    delta = delta + mean @ delta @ values @ block.attn.c_proj.weight
    return delta + delta @ block.mlp.c_fc.weight @ block.mlp.c_proj.weight
