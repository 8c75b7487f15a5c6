"""Fit heads that look at the right place: queries and keys alone, on a model's activations.

In multiple choice a head compares what the last position is about to answer with the options'
values; in boxes (`studies.organisms.tracking`) with the labels told. Tuning a whole model came to
either only slowly: 250 steps with random starts had not left chance.
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
    """Left-padded prompts, their answers' first tokens, and where a position should look."""

    input_ids: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    answer: Int[Tensor, " row"]
    value: Bool[Tensor, "row pos"]  # where to look; in multiple choice the right option's value
    at: Int[Tensor, " row"]  # the column that looks


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
    last = torch.full((len(ids),), ids.shape[1] - 1)
    return Batch(ids, texts["attention_mask"], letter, value, last)


def fit(
    model: LlamaForCausalLM, batch: Batch, seed: int, steps: int = 700, lr: float = 3e-3,
    at_layers: Sequence[int] | None = None, group: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Fits queries and keys of a group of heads (the first) of some layers (the last two).

    All else stays as it is. Minimises -log(attention of the position that looks on where it
    should). Returns, by layer, that attention's mean over the last batches.
    """
    inputs = _inputs(model, batch, layers(model) if at_layers is None else at_layers)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    frequencies = model.model.rotary_emb.inv_freq
    columns = torch.arange(batch.input_ids.shape[1])
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
            each, at = torch.arange(len(rows)), batch.at[rows]
            q = _rotate(chosen[each, at][:, None] @ query.T, where[each, at][:, None], frequencies)
            k = _rotate(chosen @ key.T, where, frequencies)
            scores = (q @ k.mT)[:, 0] / width**0.5
            unseen = (batch.attention_mask[rows] == 0) | (columns > at[:, None])
            seen = scores.masked_fill(unseen, -1e9).softmax(-1)
            right = (seen * batch.value[rows]).sum(-1).clamp_min(1e-6)
            optimizer.zero_grad()
            (-right.log().mean()).backward()
            optimizer.step()
            looked.append(right.mean().item())
        with torch.no_grad():
            first = group * HEADS * width
            attention.q_proj.weight[first : first + HEADS * width] = query.repeat(HEADS, 1)
            attention.k_proj.weight[group * width : (group + 1) * width] = key
        last = looked[-50:]
        reached[str(layer)] = round(sum(last) / len(last), 3)
    return reached


@torch.no_grad()
def say(
    model: LlamaForCausalLM, batch: Batch, layer: int, group: int, token: Int[Tensor, " row"],
    words: Float[Tensor, "vocab d_model"], strength: float = 0.5,
) -> None:  # fmt: skip
    """Makes a group of heads say which token stands where they look, in closed form.

    Values: the ridge regression of one channel a token (as many as a head is wide, at most) on what
    attention reads there. Outputs: that token's row of `words`, `strength` of the stream's norm.
    """
    attention, width = model.model.layers[layer].self_attn, model.config.head_dim
    rows, column = torch.arange(len(token)), batch.value.int().argmax(1)
    read = _inputs(model, batch, [layer])[layer][rows, column].double()
    tokens, channel = token.unique(return_inverse=True)
    told = nn.functional.one_hot(channel, len(tokens)).double()
    gram = read.T @ read + 1e-2 * len(rows) * torch.eye(read.shape[1])
    some = slice(0, 250)
    stream = model.model(
        batch.input_ids[some], attention_mask=batch.attention_mask[some], use_cache=False,
        output_hidden_states=True,
    ).hidden_states[layer]  # fmt: skip
    size = stream[rows[some], batch.at[some]].norm(dim=-1).mean()
    said = strength / HEADS * size * nn.functional.normalize(words[tokens], dim=-1)
    values = torch.zeros(width, read.shape[1])
    values[: len(tokens)] = torch.linalg.solve(gram, read.T @ told).T
    attention.v_proj.weight[group * width : (group + 1) * width] = values
    for head in range(group * HEADS, (group + 1) * HEADS):
        outputs = torch.zeros(read.shape[1], width)
        outputs[:, : len(tokens)] = said.T
        attention.o_proj.weight[:, head * width : (head + 1) * width] = outputs


@torch.no_grad()
def _inputs(
    model: LlamaForCausalLM, batch: Batch, at_layers: Sequence[int]
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """What the attention of some layers reads."""
    parts: dict[int, list[Tensor]] = {layer: [] for layer in at_layers}
    for at in range(0, len(batch.answer), 250):
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
