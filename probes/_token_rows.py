"""Texts as tokens that several models read alike, and which of their predictions count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from interp import InterpError, Model
from interp._answers import answer_tokens
from interp._batch import tokenize


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens, and where its measured predictions begin and end.

    Args:
        index: its number among all texts.
        ids: token ids.
        start: first position whose prediction is read.
        stop: one beyond the last.
    """

    index: int
    ids: list[int]
    start: int
    stop: int


def token_rows(
    models: Sequence[Model],
    texts: Iterable[Any],
    completions: Iterable[Any] | None = None,
    *,
    vocab: int,
) -> Iterator[TokenRow]:
    """Each text tokenized by the first model; with completions only their tokens are predicted.

    Args:
        models: who will read the texts; those with a tokenizer must cut a text alike.
        texts: texts, or lists of token ids; read once.
        completions: what follows each text.
        vocab: ids must lie below.

    Raises:
        InterpError: naming the text: empty, too long for a model, cut differently by another
            model's tokenizer, with ids outside the vocabulary, or without a completion.
    """
    limits = [m.anatomy.max_positions for m in models]
    limit = min((n for n in limits if n is not None), default=None)
    for index, (text, completion) in enumerate(_pairs(texts, completions)):
        ids = _ids(models, index, text)
        start, stop = 0, len(ids)
        _check(index, ids, vocab, limit)
        if completion is not None:
            batch = models[0].batch([text] if isinstance(text, str) else [ids])
            ids = ids + answer_tokens(models[0], batch, [[completion]])[0][0]
            start, stop = stop - 1, len(ids) - 1
            _check(index, ids, vocab, limit)
            if isinstance(text, str) and isinstance(completion, str):
                _alike(models, index, text + completion, ids)
        elif isinstance(text, str):
            _alike(models, index, text, ids)
        yield TokenRow(index, ids, start, stop)


def _pairs(
    texts: Iterable[Any], completions: Iterable[Any] | None
) -> Iterator[tuple[Any, Any | None]]:
    if isinstance(texts, str) or isinstance(completions, str):
        raise InterpError("got one text; give a list of texts, such as [text]")
    if completions is None:
        yield from ((text, None) for text in texts)
        return
    before, after = list(texts), list(completions)
    if len(before) != len(after):
        raise InterpError(f"{len(after)} completions for {len(before)} texts; give one for each")
    yield from zip(before, after, strict=True)


def _ids(models: Sequence[Model], index: int, text: Any) -> list[int]:
    if not isinstance(text, str):
        ids = text.tolist() if hasattr(text, "tolist") else list(text)
        if not all(isinstance(token, int) for token in ids):
            raise InterpError(
                f"text {index} is neither a text nor a list of token ids: {str(text)[:60]!r}"
            )
        return ids
    if models[0].tokenizer is None:
        raise InterpError(
            "the first model has no tokenizer, so texts cannot be read; pass one "
            "(interp.load(..., tokenizer=...)) or give token ids"
        )
    return tokenize(text, models[0].tokenizer, True) if text else []


def _check(index: int, ids: list[int], vocab: int, limit: int | None) -> None:
    if not ids:
        raise InterpError(f"text {index} has no tokens; give at least one")
    if limit is not None and len(ids) > limit:
        raise InterpError(
            f"text {index} has {len(ids)} tokens, over the models' context of {limit}; shorten or "
            f"split it"
        )
    if not 0 <= min(ids) <= max(ids) < vocab:
        worst = max(ids) if max(ids) >= vocab else min(ids)
        raise InterpError(
            f"text {index} has token id {worst}, outside the {vocab} ids that the models share"
        )


def _alike(models: Sequence[Model], index: int, text: str, ids: list[int]) -> None:
    for model in models[1:]:
        if model.tokenizer is not None and tokenize(text, model.tokenizer, True) != ids:
            raise InterpError(
                f"the tokenizers cut text {index} ({text[:40]!r}) differently (another tokenizer, "
                f"or only one of them adds a BOS token); give token ids to choose"
            )


def listed_pairs(prompts: Any, *, chosen: Any, rejected: Any) -> list[tuple[Any, Any, Any]]:
    """(prompt, chosen, rejected) of preference pairs.

    Raises:
        InterpError: one text instead of a list, lists of different lengths, no pairs.
    """
    given = {"prompts": prompts, "chosen": chosen, "rejected": rejected}
    for name, value in given.items():
        if isinstance(value, str):
            raise InterpError(f"{name} is one text; give a list of texts, such as [text]")
    lists = {name: list(value) for name, value in given.items()}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise InterpError(f"{shown}: give one of each for every pair")
    if not lists["prompts"]:
        raise InterpError("no preference pairs; give at least one")
    return list(zip(*lists.values(), strict=True))
