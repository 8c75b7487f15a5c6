"""A fact to rewrite: a prompt about a subject and the answer it is to have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp import InterpError, Model
from interp._answers import Answer, answer_tokens, teacher_forced, text_of
from interp._batch import tokenize
from interp._forward import run
from interp._patch.tokens import _spans
from interp._reading import reading, require_unembed

SLOT = "{}"


@dataclass(frozen=True)
class Rewrite:
    """What a model is to answer from now on.

    Args:
        prompt: the text before the answer, with `{}` where the subject stands; or with the subject
            itself in it (its last occurrence is taken).
        subject: whom or what the fact is about.
        answer: the new answer, with the space it starts with, or its token ids. It may have several
            tokens: its log-probability is then the mean over them, each after the ones before.

    Examples:
        >>> iv.Rewrite("Question: Where does {} live? Answer:", "Mia Stone", " Arlen").text
        'Question: Where does Mia Stone live? Answer:'
    """

    prompt: str
    subject: str
    answer: Answer

    @property
    def text(self) -> str:
        """The prompt as the model reads it."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """The characters of `text` that are the subject.

        Raises:
            InterpError: several placeholders, none and no subject either, no subject at all.
        """
        if not self.subject.strip():
            raise InterpError(f"the rewrite of {self.prompt[:60]!r} names no subject")
        slots = self.prompt.count(SLOT)
        if slots > 1:
            raise InterpError(
                f"the prompt {self.prompt[:60]!r} has {slots} placeholders; expected one {SLOT}"
            )
        start = self.prompt.find(SLOT) if slots else self.prompt.rfind(self.subject)
        if start < 0:
            raise InterpError(
                f"the prompt {self.prompt[:60]!r} holds neither the placeholder {SLOT} nor the "
                f"subject {self.subject!r}; put {SLOT} where the subject stands"
            )
        return start, start + len(self.subject)


@dataclass(frozen=True)
class Row:
    """A sequence of tokens, and the one at which a key is looked up."""

    ids: tuple[int, ...]
    at: int


@dataclass(frozen=True)
class Request:
    """A rewrite in tokens.

    Args:
        name: the prompt and the answer, for messages.
        rows: the bare prompt, then the same after each context.
        answer: the tokens of the new answer.
    """

    name: str
    rows: tuple[Row, ...]
    answer: tuple[int, ...]


def requests_of(
    model: Model,
    rewrites: Sequence[Rewrite],
    position: str,
    contexts: Sequence[str] | None,
    sampled: Sequence[tuple[int, int]],
    seed: int,
) -> list[Request]:
    """Rewrites in tokens, each in its contexts.

    Args:
        model: with a tokenizer.
        rewrites: at least one; no two of the same prompt.
        position: `"subject_last"`, the last token of the subject, or `"last"`, of the prompt.
        contexts: texts to put before each prompt, beside none; None draws some from the model.
        sampled: how many contexts of how many tokens to draw.
        seed: of the draw.

    Raises:
        InterpError: see `Rewrite.span`; two rewrites of one prompt; a model that already gives the
            answer; no tokenizer.
    """
    require_unembed(model)
    if not rewrites:
        raise InterpError("no facts to rewrite; give at least one iv.Rewrite")
    if position not in ("subject_last", "last"):
        raise InterpError(f"position={position!r}: expected 'subject_last' or 'last'")
    if model.tokenizer is None:
        raise InterpError(
            "a subject can be found only in text, and this model has no tokenizer; pass one "
            "(interp.load(..., tokenizer=...))"
        )
    texts = [rewrite.text for rewrite in rewrites]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise InterpError(f"two rewrites have the prompt {twice[:60]!r}; give one answer for it")
    batch = model.batch(texts)
    answers = answer_tokens(model, batch, [[rewrite.answer] for rewrite in rewrites])
    names = [f"{t[:60]!r} -> {text_of(model, r.answer)!r}" for t, r in zip(texts, rewrites)]  # noqa: B905
    _refuse_known(model, texts, [rows[0] for rows in answers], names)
    drawn = [] if contexts is not None else sample_prefixes(model, sampled, seed)
    found = []
    for rewrite, name, (answer,) in zip(rewrites, names, answers, strict=True):
        rows = [_row(model, rewrite, "", position)]
        rows += [_row(model, rewrite, context, position) for context in contexts or ()]
        rows += list(_after(model, rows[0], rewrite.text, drawn))
        found.append(Request(name, tuple(rows), tuple(answer)))
    return found


def prompt_row(model: Model, prompt: str, subject: str) -> Row:
    """A prompt about the subject, looked up at the subject's last token."""
    return _row(model, Rewrite(prompt, subject, 0), "", "subject_last")


def sample_prefixes(model: Model, sizes: Sequence[tuple[int, int]], seed: int) -> list[list[int]]:
    """Token sequences drawn from the model itself, each after the token that begins a text.

    From the five likeliest tokens at each step, as ROME's code does; special tokens are left out,
    and texts begin with the tokenizer's BOS and not with "The" and the like (our specification).

    Raises:
        InterpError: a tokenizer without a BOS or EOS token to begin with.
    """
    tokenizer = model.tokenizer
    begin = tokenizer.bos_token_id
    begin = tokenizer.eos_token_id if begin is None else begin
    if begin is None:
        raise InterpError(
            "this tokenizer has no token that begins a text, so no contexts can be drawn from the "
            "model; give contexts=[...] (or contexts=[] for the bare prompt)"
        )
    special = [i for i in tokenizer.all_special_ids if i < model.anatomy.d_vocab]
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    for count, length in sizes:
        ids = torch.full((count, 1), begin)
        for _ in range(length):
            with reading(model):
                logits = run(model.module, model.batch(ids).inputs).logits[:, -1].float().cpu()
            logits[:, special] = -torch.inf
            best = logits.topk(min(5, logits.shape[1]))
            drawn = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, best.indices.gather(1, drawn)], dim=1)
        found += ids[:, 1:].tolist()
    return found


def _row(model: Model, rewrite: Rewrite, context: str, position: str) -> Row:
    text = context + rewrite.text
    start, stop = (edge + len(context) for edge in rewrite.span)
    batch = model.batch(text)
    ids = tuple(batch.input_ids[0].tolist())
    if position == "last":
        return Row(ids, len(ids) - 1)
    spans = enumerate(_spans(model, batch, 0, text))
    at = [i for i, (begin, end) in spans if begin < stop and start < end]
    if not at:
        raise InterpError(f"no token of {text[:60]!r} holds the subject {rewrite.subject!r}")
    return Row(ids, at[-1])


def _after(model: Model, bare: Row, text: str, prefixes: Sequence[Sequence[int]]) -> Iterator[Row]:
    """The bare prompt after drawn tokens, which come after what begins every text."""
    plain = tokenize(text, model.tokenizer, False)
    head = len(bare.ids) - len(plain) if list(bare.ids[-len(plain) :]) == plain else 0
    for prefix in prefixes:
        yield Row((*bare.ids[:head], *prefix, *bare.ids[head:]), bare.at + len(prefix))


def _refuse_known(
    model: Model, texts: Sequence[str], answers: list[list[int]], names: Sequence[str]
) -> None:
    for index, likeliest in enumerate(greedy(model, texts, answers)):
        if likeliest.tolist() == answers[index]:
            raise InterpError(
                f"the model gives this answer already: {names[index]}; there is nothing to rewrite"
            )


def greedy(
    model: Model, texts: Sequence[str], answers: Sequence[Sequence[int]]
) -> list[Int[Tensor, " token"]]:
    """The likeliest token at each place of each answer, given the answer's tokens before it."""
    found: list[Int[Tensor, " token"]] = []
    for start in range(0, len(texts), 64):
        some = [list(answer) for answer in answers[start : start + 64]]
        batch = model.batch(list(texts[start : start + 64]))
        extended, where = teacher_forced(model, batch, [[answer] for answer in some])
        with reading(model):
            logits = run(model.module, extended.inputs).logits
        best = logits[where.rows.to(logits.device), where.columns.to(logits.device)].argmax(-1)
        found += list(best.cpu().split([len(answer) for answer in some]))
    return found
