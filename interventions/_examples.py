"""Training examples: a prompt and what is to follow it, as batches and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp import InterpError, Model
from interp._answers import Teacher, answer_tokens, teacher_forced
from interp._batch import Batch
from interp._forward import accepted

T = TypeVar("T")
Example = tuple[str, str]  # a prompt and its completion, with the space that it starts with


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: the prompt's, and the completion's, which alone are learned."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def encode(model: Model, examples: Sequence[Example], *, end: bool) -> list[Encoded]:
    """Examples in tokens.

    Args:
        model: whose tokenizer.
        examples: prompts and completions.
        end: append the tokenizer's EOS to each completion, where it has one.

    Raises:
        InterpError: no examples, a completion without tokens or one that merges with its prompt.
    """
    if not examples:
        raise InterpError("there are no examples; expected (prompt, completion) pairs")
    stop = model.tokenizer.eos_token_id if end and model.tokenizer is not None else None
    found = []
    for start in range(0, len(examples), 256):
        chosen = examples[start : start + 256]
        batch = model.batch([prompt for prompt, _ in chosen])
        answers = answer_tokens(model, batch, [[completion] for _, completion in chosen])
        for row, (tokens,) in enumerate(answers):
            prompt = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            found.append(Encoded(tuple(prompt), (*tokens, *(() if stop is None else (stop,)))))
    return found


def batches(examples: Sequence[T], rows: int, steps: int, seed: int) -> Iterator[list[T]]:
    """Batches for some steps: every example once an epoch, each epoch in an order of its own.

    Raises:
        InterpError: fewer examples than a batch has rows; at once, not with the first batch.
    """
    if len(examples) < rows:
        raise InterpError(
            f"there are {len(examples)} examples and a batch has {rows} rows; lower rows"
        )
    return _drawn(examples, rows, steps, torch.Generator().manual_seed(seed))


def completion_loss(model: Model, examples: Sequence[Encoded]) -> Float[Tensor, ""]:
    """Mean of -log p(token | what precedes it) over all completions' tokens, in nats."""
    batch, teacher = _teacher_forced(model, examples)
    inputs = accepted(model.module, batch.inputs)
    logits = model.module(**inputs, use_cache=False).logits[teacher.rows, teacher.columns]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, teacher.tokens.to(wide.device))


@torch.no_grad()
def mean_loss(model: Model, encoded: Sequence[Encoded], rows: int = 64) -> float:
    """`completion_loss` over many examples, every token alike."""
    total, count = 0.0, 0
    for start in range(0, len(encoded), rows):
        chosen = encoded[start : start + rows]
        tokens = sum(len(example.completion) for example in chosen)
        total += tokens * float(completion_loss(model, chosen))
        count += tokens
    return total / count


def _teacher_forced(model: Model, examples: Sequence[Encoded]) -> tuple[Batch, Teacher]:
    prompts = model.batch([list(example.prompt) for example in examples])
    return teacher_forced(model, prompts, [[list(example.completion)] for example in examples])


def _drawn(
    examples: Sequence[T], rows: int, steps: int, generator: torch.Generator
) -> Iterator[list[T]]:
    order: list[int] = []
    for _ in range(steps):
        if len(order) < rows:
            order += torch.randperm(len(examples), generator=generator).tolist()
        chosen, order = order[:rows], order[rows:]
        yield [examples[i] for i in chosen]
