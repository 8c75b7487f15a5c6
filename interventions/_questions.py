"""Questions with one right answer of one token, and which of them a model answers rightly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp import InterpError, Model
from interp._answers import answer_tokens
from interp._batch import Batch
from interp._forward import run
from interp._model import as_model
from interp._reading import reading

_ROWS = 64  # questions a forward


@dataclass(frozen=True)
class Question:
    """A prompt, its right answer, and what one may choose from.

    Args:
        prompt: the text before the answer.
        answer: the right one, with the space it starts with.
        options: the answers allowed, the right one among them; empty to allow every token.
        group: what questions of one kind share (a person, a problem), for intervals.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    group: object = None


@dataclass(frozen=True)
class Asked:
    """Questions as a batch, with the tokens of their answers.

    Args:
        batch: the prompts.
        right: the first token of each right answer.
        allowed: the tokens one may choose from; None for all.
    """

    batch: Batch
    right: Int[Tensor, " question"]
    allowed: Bool[Tensor, "question vocab"] | None

    def answered(self, logits: Float[Tensor, "question vocab"]) -> Int[Tensor, " question"]:
        """The token chosen for each question."""
        if self.allowed is None:
            return logits.argmax(dim=1)
        return logits.masked_fill(~self.allowed.to(logits.device), -torch.inf).argmax(dim=1)

    def correct(self, logits: Float[Tensor, "question vocab"]) -> Bool[Tensor, " question"]:
        """Which questions are answered rightly."""
        return self.answered(logits).cpu() == self.right


def check_questions(questions: Sequence[Question], what: str, *, classes: int = 1) -> None:
    """Refuse sets from which nothing can be learned or chosen.

    Raises:
        InterpError: no questions, fewer different answers than `classes`, an answer that is not
            among its options.
    """
    if not questions:
        raise InterpError(f"the {what} set is empty; expected questions with their right answers")
    for number, question in enumerate(questions):
        if question.options and question.answer not in question.options:
            raise InterpError(
                f"{what} question {number}: the answer {question.answer!r} is not among its "
                f"options {list(question.options)}"
            )
    answers = {question.answer for question in questions}
    if len(answers) < classes:
        raise InterpError(
            f"all {len(questions)} questions of the {what} set have the answer "
            f"{questions[0].answer!r}, so a model that always says it would be perfect; expected "
            f"at least {classes} different answers"
        )


def ask(model: Model, questions: Sequence[Question]) -> Iterator[Asked]:
    """Questions in batches, in order.

    Raises:
        InterpError: two options of a question that start with the same token.
    """
    for start in range(0, len(questions), _ROWS):
        chosen = questions[start : start + _ROWS]
        batch = model.batch([question.prompt for question in chosen])
        rows = [[q.answer, *q.options] for q in chosen]
        first = [[tokens[0] for tokens in row] for row in answer_tokens(model, batch, rows)]  # type: ignore[arg-type]
        for question, tokens in zip(chosen, first, strict=True):
            if len(set(tokens[1:])) < len(tokens[1:]):
                raise InterpError(
                    f"two of the options {list(question.options)} start with the same token, so "
                    f"the next token cannot tell them apart; use letters, or other words"
                )
        allowed = None
        if any(question.options for question in chosen):
            allowed = torch.zeros(len(chosen), model.anatomy.d_vocab, dtype=torch.bool)
            for row, tokens in enumerate(first):
                allowed[row, tokens[1:] or slice(None)] = True
        yield Asked(batch, torch.tensor([tokens[0] for tokens in first]), allowed)


def answered_rightly(
    model: Model | nn.Module, questions: Sequence[Question]
) -> Bool[Tensor, " question"]:
    """Which questions the model answers rightly: its likeliest allowed token begins the answer.

    Examples:
        >>> asked = [iv.Question("Options: A Rome, B Oslo. Answer:", " A", (" A", " B"))]
        >>> accuracy = iv.answered_rightly(model, asked).float().mean()
    """
    handle = as_model(model)
    check_questions(questions, "given")
    found = []
    for asked in ask(handle, questions):
        with reading(handle):
            logits = run(handle.module, asked.batch.inputs).logits
            columns = (asked.batch.starts + asked.batch.lengths - 1).to(logits.device)
            last = logits[torch.arange(len(logits), device=logits.device), columns].float()
        found.append(asked.correct(last))
    return torch.cat(found)


def last_logits(model: Model, stream: Tensor, batch: Batch) -> Float[Tensor, "question vocab"]:
    """Logits at each prompt's last token, from the stream after the last block."""
    columns = (batch.starts + batch.lengths - 1).to(stream.device)
    last = stream[torch.arange(len(stream), device=stream.device), columns]
    return model.anatomy.unembed(last).float()
