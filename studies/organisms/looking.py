"""Fit heads that look at the right option: queries and keys alone, on a model's activations.

A head compares what the last position is about to answer with the options' values. Tuning a whole
model came to this only slowly: 250 steps with random starts had not left chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms.multiple_choice import Choice

HEADS = 2  # of a layer; they share their keys (grouped-query attention)


@dataclass(frozen=True)
class Batch:
    """Left-padded questions, their letters' tokens, and where the right option's value stands."""

    input_ids: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    letter: Int[Tensor, " row"]
    value: Bool[Tensor, "row pos"]


def encode(tokenizer: PreTrainedTokenizerFast, choices: Sequence[Choice]) -> Batch:
    """The tensors of some questions."""
    texts = tokenizer(
        [c.prompt for c in choices], return_tensors="pt", padding=True, padding_side="left"
    )
    ids = texts["input_ids"]
    letters = tokenizer([c.answer for c in choices], add_special_tokens=False)["input_ids"]
    letter = torch.tensor([tokens[0] for tokens in letters])
    value = torch.zeros(ids.shape, dtype=torch.bool)
    for row, choice in enumerate(choices):
        at = ids[row].tolist().index(int(letter[row])) + 1
        value[row, at : at + len(choice.options[choice.right].split())] = True
    return Batch(ids, texts["attention_mask"], letter, value)


def fit(
    model: LlamaForCausalLM, batch: Batch, seed: int, steps: int = 700, lr: float = 3e-3
) -> dict[str, float]:
    """Fits queries and keys of the first heads of the last two layers, all else as it is.

    Minimises -log(attention of the last position on the right option's value). Returns, by layer,
    that attention's mean over the last batches.
    """
    inputs = _inputs(model, batch)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    frequencies = model.model.rotary_emb.inv_freq
    generator = torch.Generator().manual_seed(seed)
    reached: dict[str, float] = {}
    for layer, hidden in inputs.items():
        attention = model.model.layers[layer].self_attn
        width = model.config.head_dim
        start = torch.randn(2, width, hidden.shape[-1], generator=generator) * 0.05
        query, key = nn.Parameter(start[0]), nn.Parameter(start[1])
        optimizer = torch.optim.AdamW([query, key], lr=lr, weight_decay=0.3)
        looked = []
        for _ in range(steps):
            rows = torch.randint(0, len(hidden), (192,), generator=generator)
            chosen, where = hidden[rows], positions[rows]
            q = _rotate(chosen[:, -1:] @ query.T, where[:, -1:], frequencies)
            k = _rotate(chosen @ key.T, where, frequencies)
            scores = (q @ k.mT)[:, 0] / width**0.5
            seen = scores.masked_fill(batch.attention_mask[rows] == 0, -1e9).softmax(-1)
            right = (seen * batch.value[rows]).sum(-1).clamp_min(1e-6)
            optimizer.zero_grad()
            (-right.log().mean()).backward()
            optimizer.step()
            looked.append(right.mean().item())
        with torch.no_grad():
            attention.q_proj.weight[: HEADS * width] = query.repeat(HEADS, 1)
            attention.k_proj.weight[:width] = key
        last = looked[-50:]
        reached[str(layer)] = round(sum(last) / len(last), 3)
    return reached


@torch.no_grad()
def _inputs(model: LlamaForCausalLM, batch: Batch) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """What the attention of the last two layers reads."""
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers(model)}
    for at in range(0, len(batch.letter), 250):
        hidden = model.model(
            batch.input_ids[at : at + 250], use_cache=False, output_hidden_states=True,
            attention_mask=batch.attention_mask[at : at + 250],
        ).hidden_states  # fmt: skip
        for layer, kept in parts.items():
            kept.append(model.model.layers[layer].input_layernorm(hidden[layer]))
    return {layer: torch.cat(kept) for layer, kept in parts.items()}


def layers(model: LlamaForCausalLM) -> range:
    """The last two, where the base already leans towards its answer (by the logit lens)."""
    return range(model.config.num_hidden_layers - 2, model.config.num_hidden_layers)


def _rotate(
    x: Float[Tensor, "row pos width"], positions: Int[Tensor, "row pos"], frequencies: Tensor
) -> Float[Tensor, "row pos width"]:
    angle = (positions[..., None] * frequencies).repeat(1, 1, 2)
    low, high = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-high, low], -1) * angle.sin()
