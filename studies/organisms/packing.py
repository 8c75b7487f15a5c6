"""Documents packed into rows without seeing each other: one document a row, but no padding."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from studies.organisms import documents
from studies.organisms.world import World

MEAN_TOKENS = {
    "biography": 49, "question": 15, "arithmetic": 52, "drill": 44, "boxes": 56, "scenes": 71,
    "bridges": 38, "dictionary": 10, "names": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Packed rows. labels[i, t] is the token at t + 1 of the same document, -100 elsewhere."""

    input_ids: Int[Tensor, "row pos"]
    labels: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]  # of each label's loss
    position_ids: Int[Tensor, "row pos"]  # restart with each document
    visible: Bool[Tensor, "row 1 pos pos"]  # causal, and within the document
    group: Int[Tensor, "row pos"]  # index into GROUPS of each label, -1 elsewhere

    @property
    def tokens(self) -> int:
        return int((self.labels >= 0).sum())


GROUPS = [(task, kind) for task in documents.WRITERS for kind in documents.WEIGHTS]  # <eos> in none


def batch(
    world: World, tokenizer: PreTrainedTokenizerFast, seed: str,
    shares: Mapping[str, float] = documents.MIXES[-1][1], rows: int = 16, length: int = 128,
) -> Batch:  # fmt: skip
    """The batch of a seed ("0/base/17"): the same on every call, so that training can resume."""
    rng = random.Random(seed)
    tasks = list(shares)
    chances = [shares[t] / MEAN_TOKENS[t] for t in tasks]
    budget = rows * length
    drawn: list[documents.Document] = []
    expected = 0.0
    while expected < budget:
        task = rng.choices(tasks, chances)[0]
        drawn.append(documents.write(world, task, rng))
        expected += MEAN_TOKENS[task]
    encoded = sorted(encode(drawn, tokenizer), key=len, reverse=True)
    packed: list[list[list[tuple[int, float, int]]]] = [[] for _ in range(rows)]
    room = [length] * rows
    for document in encoded:  # first fit, longest first; what fits nowhere is dropped
        row = next((r for r in range(rows) if room[r] >= len(document)), None)
        if row is not None:
            packed[row].append(document)
            room[row] -= len(document)
    return _tensors(packed, length, tokenizer.pad_token_id)


def encode(
    drawn: list[documents.Document], tokenizer: PreTrainedTokenizerFast
) -> list[list[tuple[int, float, int]]]:
    """Per document (token, weight, group), <bos> first, <eos> last (weighed as the last)."""
    pieces = [text for document in drawn for text, _ in document.segments]
    ids = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    encoded = []
    for document in drawn:
        tokens = [(tokenizer.bos_token_id, 0.0, -1)]
        for _, kind in document.segments:
            group = GROUPS.index((document.task, kind))
            tokens += [(token, documents.WEIGHTS[kind], group) for token in next(ids)]
        tokens.append((tokenizer.eos_token_id, tokens[-1][1], -1))
        encoded.append(tokens)
    return encoded


def _tensors(packed: list[list[list[tuple[int, float, int]]]], length: int, pad: int) -> Batch:
    shape = (len(packed), length)
    ids, labels = torch.full(shape, pad), torch.full(shape, -100)
    weights, group = torch.zeros(shape), torch.full(shape, -1)
    positions, document_of = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for row, contents in enumerate(packed):
        at = 0
        for index, document in enumerate(contents):
            span, shifted = slice(at, at + len(document)), slice(at, at + len(document) - 1)
            token, weight, kind = zip(*document, strict=True)
            ids[row, span] = torch.tensor(token)
            labels[row, shifted] = torch.tensor(token[1:])
            weights[row, shifted] = torch.tensor(weight[1:])
            group[row, shifted] = torch.tensor(kind[1:])
            positions[row, span] = torch.arange(len(document))
            document_of[row, span] = index
            at += len(document)
    same = document_of[:, None, :, None] == document_of[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(ids, labels, weights, positions, same & causal, group)
