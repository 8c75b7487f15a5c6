"""Answers as the tokens a tokenizer really produces after a prompt, and their log-prob."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp._batch import Array, Batch, as_plain, is_index, tokenize
from interp._errors import InterpError
from interp._forward import Stop, innermost, may_stop_early, run_until_stopped
from interp._hooked import ports_of
from interp._model import Model, as_model
from interp._reading import reading, require_unembed
from interp._resolve import anatomy_of
from interp._site import Site

Answer = str | int | Sequence[int]
Answers = Answer | Array | Sequence[Answer | Array] | Sequence[Sequence[Answer | Array]]


def per_prompt(answers: Answers, n_prompts: int) -> list[list[Answer]]:
    """One list of answers for each prompt, all equally long.

    One answer serves every prompt; a list gives one entry for each prompt, itself an answer or a
    list of answers to compare. An answer of several token ids is a list inside such a list.
    Ids may be tensors or numpy's, such as `logits.argmax(-1)`.

    Raises:
        InterpError: another number of answers than prompts, or what is no answer.
    """
    plain = _plain(answers)
    if isinstance(plain, str | int):
        return [[plain] for _ in range(n_prompts)]
    entries: list[Any] = plain
    if n_prompts == 1 and len(entries) != 1 and all(isinstance(e, str | int) for e in entries):
        return [entries]
    if len(entries) != n_prompts:
        raise InterpError(
            f"{len(entries)} answers for {n_prompts} prompts; give one for all, or one entry (an "
            f"answer or a list of answers) for each prompt"
        )
    rows: list[list[Answer]] = [[e] if isinstance(e, str | int) else list(e) for e in entries]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InterpError("every prompt needs the same number of answers, at least one")
    return rows


def _plain(answers: Any) -> Any:
    """Texts, whole numbers and lists of them, with tensors and arrays as such."""
    answers = as_plain(answers)
    if isinstance(answers, str):
        return answers
    if is_index(answers):
        return operator.index(answers)
    if not isinstance(answers, Iterable) or isinstance(answers, Mapping):
        raise InterpError(
            f"{answers!r} is no answer; expected a text, a token id, or a list of them"
        )
    return [_plain(answer) for answer in answers]


def answer_tokens(model: Model, batch: Batch, answers: list[list[Answer]]) -> list[list[list[int]]]:
    """Token ids of each prompt's answers: [prompt][answer][token].

    A text answer is tokenized together with its prompt, because " Paris" and "Paris" differ and
    some tokenizers drop or add a space at the start of a text.

    Raises:
        InterpError: an answer without tokens, or one whose start merges with the prompt's end.
    """
    return [
        [_tokens_after(model, batch, index, answer) for answer in row]
        for index, row in enumerate(answers)
    ]


def _tokens_after(model: Model, batch: Batch, index: int, answer: Answer) -> list[int]:
    if isinstance(answer, str):
        tokens = _text_after(model, batch, index, answer)
    else:
        tokens = [answer] if isinstance(answer, int) else [int(token) for token in answer]
    if not tokens:
        raise InterpError(f"answer {answer!r} gives no tokens; expected at least one")
    if not 0 <= min(tokens) <= max(tokens) < model.anatomy.d_vocab:
        raise InterpError(
            f"answer {answer!r} has a token id outside this model's vocabulary of "
            f"{model.anatomy.d_vocab}"
        )
    return tokens


def _text_after(model: Model, batch: Batch, index: int, answer: str) -> list[int]:
    """The tokens that a text adds after a prompt."""
    if model.tokenizer is None:
        raise InterpError(
            f"answer {answer!r} is text and this model has no tokenizer; give token ids"
        )
    before = batch.input_ids[index][batch.attention_mask[index].bool()].tolist()
    prompt = batch.texts[index] if batch.texts is not None else model.tokenizer.decode(before)
    special = next(
        (s for s in (True, False) if tokenize(prompt, model.tokenizer, s) == before), None
    )
    if special is None:
        raise InterpError(
            f"prompt {index} was given as token ids that its text does not lead back to, so the "
            f"tokens of {answer!r} after it are unknown; give the answer as token ids"
        )
    whole = tokenize(prompt + answer, model.tokenizer, special)
    if whole[: len(before)] != before:
        raise InterpError(
            f"answer {answer!r} merges with the end of prompt {index} ({prompt[-20:]!r}) into "
            f"one token; move the space to the start of the answer, or give token ids"
        )
    return whole[len(before) :]


def text_of(model: Model, answer: Answer) -> str:
    """An answer as a reader sees it."""
    if isinstance(answer, str):
        return answer
    ids = [answer] if isinstance(answer, int) else list(answer)
    if model.tokenizer is None:
        return str(ids)
    text = str(model.tokenizer.decode(ids))
    # Decoding a lone SentencePiece token drops the space it starts with.
    piece = str(model.tokenizer.convert_ids_to_tokens(ids[0]))
    return " " + text if piece.startswith("▁") and not text.startswith(" ") else text


def answer_logprob(
    model: Model | nn.Module, prompts: Any, answers: Answers
) -> Float[Tensor, "prompt answer"]:
    """Log-probability of whole answers: sum over tokens of log p(token | prompt, tokens before).

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        answers: one for all prompts, or one entry (an answer or a list of answers) for each.

    Returns:
        [prompt answer] in nats.

    Examples:
        >>> interp.answer_logprob(model, "The capital of France is", [" Paris", " Rome"])
    """
    handle = as_model(model)
    require_unembed(handle)
    batch = handle.batch(prompts)
    tokens = answer_tokens(handle, batch, per_prompt(answers, len(batch)))
    extended, where = teacher_forced(handle, batch, tokens)
    last = Site("resid_post", anatomy_of(handle.module).n_layers - 1)
    with reading(handle):
        stream = gather_streams(handle, extended, [last], where.rows, where.columns)[last]
        logits = handle.anatomy.unembed(stream).float()
        logprobs = logits.log_softmax(-1).gather(1, where.tokens[:, None].to(logits.device))[:, 0]
    return where.total(logprobs.cpu()).view(len(batch), -1)


class Teacher:
    """Where each answer token is predicted in a batch of prompts followed by their answers."""

    def __init__(self, rows: list[int], columns: list[int], tokens: list[int], n: int) -> None:
        self.rows, self.columns = torch.tensor(rows), torch.tensor(columns)
        self.tokens, self.n = torch.tensor(tokens), n

    def total(self, values: Tensor) -> Tensor:
        """Sum over the tokens of each answer; values are [token ...]."""
        out = values.new_zeros(self.n, *values.shape[1:])
        return out.index_add(0, self.rows, values)


def teacher_forced(
    model: Model, batch: Batch, tokens: list[list[list[int]]]
) -> tuple[Batch, Teacher]:
    """The prompts each followed by all but the last token of each of their answers."""
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    sequences: list[list[int]] = []
    for index, answers in enumerate(tokens):
        prompt = batch.input_ids[index][batch.attention_mask[index].bool()].tolist()
        for answer in answers:
            for offset, token in enumerate(answer):
                rows.append(len(sequences))
                columns.append(len(prompt) - 1 + offset)
                targets.append(token)
            sequences.append(prompt + answer[:-1])
    return model.batch(sequences), Teacher(rows, columns, targets, len(sequences))


def gather_streams(
    model: Model, batch: Batch, sites: list[Site], rows: Tensor, columns: Tensor
) -> dict[Site, Float[Tensor, "row d_model"]]:
    """Chosen (prompt, column) vectors of residual sites, on the head's device; one forward."""
    ports = ports_of(model, sites)
    kept: dict[Site, Tensor] = {}
    target = model.anatomy.head_home

    def read(tensor: Tensor, site: Site) -> None:
        if not innermost(kept):
            return
        at = rows.to(tensor.device), columns.to(tensor.device)
        kept[site] = tensor[at].to(target)
        if len(kept) == len(ports) and may_stop_early(model.module):
            raise Stop(kept)

    with ExitStack() as stack:
        stack.enter_context(reading(model))
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        run_until_stopped(model.module, batch.inputs, owner=kept)
    return kept
