"""Training examples: a prompt and what is to follow it, as batches and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp import InterpError, Model
from interp._answers import Teacher, answer_tokens, teacher_forced
from interp._batch import Batch
from interp._forward import accepted

T = TypeVar("T")
# A prompt and its completion, with the space that it starts with; or both by name, as TRL has it.
Example = tuple[str, str] | list[str] | Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: the prompt's, and the completion's, which alone are learned."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def encode(model: Model, examples: Any, *, end: bool) -> list[Encoded]:
    """Examples in tokens.

    Args:
        model: whose tokenizer.
        examples: what a user gave as a list of `Example`.
        end: append the tokenizer's EOS to each completion, where it has one.

    Raises:
        InterpError: no examples, a completion without tokens or one that merges with its prompt.
    """
    pairs = [_pair(row, example) for row, example in enumerate(_listed(examples))]
    stop = model.tokenizer.eos_token_id if end and model.tokenizer is not None else None
    found = []
    for start in range(0, len(pairs), 256):
        chosen = pairs[start : start + 256]
        batch = model.batch([prompt for prompt, _ in chosen])
        answers = answer_tokens(model, batch, [[completion] for _, completion in chosen])
        for row, (tokens,) in enumerate(answers):
            prompt = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            found.append(Encoded(tuple(prompt), (*tokens, *(() if stop is None else (stop,)))))
    return found


def batches(
    examples: Sequence[T], rows: int, steps: int, seed: int, *, called: str = "rows"
) -> Iterator[list[T]]:
    """Batches for some steps: every example once an epoch, each epoch in an order of its own.

    `called` is the caller's word for rows.

    Raises:
        InterpError: fewer examples than a batch has rows; at once, not with the first batch.
    """
    if len(examples) < rows:
        raise InterpError(
            f"there are {len(examples)} examples and a batch has {rows} rows; lower {called}"
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


@torch.no_grad()
def answered(
    model: Model, encoded: Sequence[Encoded], rows: int = 64
) -> tuple[list[bool], list[float]]:
    """Whether greedy decoding would write each completion, and its log-probability in nats.

    Greedy decoding writes it if and only if each token is the likeliest after those before.
    """
    right: list[bool] = []
    nats: list[float] = []
    for start in range(0, len(encoded), rows):
        batch, teacher = _teacher_forced(model, encoded[start : start + rows])
        logits = model.module(**accepted(model.module, batch.inputs), use_cache=False).logits
        logprobs = logits[teacher.rows, teacher.columns].float().log_softmax(-1).cpu()
        misses = (logprobs.argmax(-1) != teacher.tokens).float()
        right += (teacher.total(misses) == 0).tolist()
        nats += teacher.total(logprobs.gather(1, teacher.tokens[:, None])[:, 0]).tolist()
    return right, nats


def _listed(examples: Any) -> list[Any]:
    if isinstance(examples, str | Mapping) or not hasattr(examples, "__iter__"):
        raise InterpError(
            f"expected a list of (prompt, completion) pairs; got {type(examples).__name__}"
        )
    found = list(examples)
    if not found:
        raise InterpError("there are no examples; expected (prompt, completion) pairs")
    return found


def _pair(row: int, example: Any) -> tuple[str, str]:
    """An example as a pair of strings."""
    if isinstance(example, Mapping):
        pair: list[Any] = [example.get("prompt"), example.get("completion")]
    else:
        pair = list(example) if isinstance(example, tuple | list) else []
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        shown = repr(example)
        raise InterpError(
            f"example {row} is {shown if len(shown) < 80 else shown[:77] + '...'}; expected a "
            f"(prompt, completion) pair of texts, or a mapping with these two names"
        )
    return pair[0], pair[1]


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
