"""Where a text stands among the tokens of a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from interp._batch import Batch
from interp._capture import Prompts
from interp._errors import InterpError
from interp._model import Model, as_model


def token_positions(
    model: Model | nn.Module, prompts: Prompts, text: str | Sequence[str]
) -> list[list[int]]:
    """Positions of the tokens that a text is made of, for each prompt.

    Wherever it occurs: as a word of its own, or, if it never does, inside others. A token that
    holds only part of the text belongs to it.

    Args:
        model: a handle with a tokenizer.
        prompts: texts, or a batch made of texts.
        text: one for all prompts, or one for each.

    Returns:
        For each prompt the positions in real tokens, ascending; the last is `[-1]` of each list.

    Raises:
        InterpError: a prompt that does not hold the text, prompts given as token ids.

    Examples:
        >>> interp.token_positions(model, "Question: Where does Ann live?", "Ann")[0][-1] > 0
        True
    """
    handle = as_model(model)
    batch = handle.batch(prompts)
    if handle.tokenizer is None or batch.texts is None:
        raise InterpError(
            "a text can be found only in prompts given as texts to a model with a tokenizer; give "
            "its positions instead"
        )
    wanted = [text] * len(batch) if isinstance(text, str) else list(text)
    if len(wanted) != len(batch):
        raise InterpError(f"{len(wanted)} texts to find in {len(batch)} prompts; give one for each")
    return [_find(handle, batch, index, one) for index, one in enumerate(wanted)]


def _find(model: Model, batch: Batch, index: int, text: str) -> list[int]:
    assert batch.texts is not None
    prompt = batch.texts[index]
    places = _places(prompt, text)
    if not places:
        raise InterpError(
            f"{text!r} does not occur in prompt {index} ({prompt[:60]!r}); spell it as it stands "
            f"there, spaces and capitals included"
        )
    return [
        position
        for position, (start, end) in enumerate(_spans(model, batch, index, prompt))
        if any(start < stop and begin < end for begin, stop in places)
    ]


def _places(prompt: str, text: str) -> list[tuple[int, int]]:
    """Characters at which the text stands: whole words if any."""
    stripped = text.strip()
    if not stripped:
        return []
    word = re.compile(rf"(?<!\w){re.escape(stripped)}(?!\w)")
    anywhere = re.compile(re.escape(stripped))
    for pattern in (word, anywhere):
        places = [match.span() for match in pattern.finditer(prompt)]
        if places:
            return places
    return []


def _spans(model: Model, batch: Batch, index: int, prompt: str) -> list[tuple[int, int]]:
    """The characters of the prompt that each token holds; none for special tokens."""
    ids = batch.input_ids[index][batch.attention_mask[index].bool()].tolist()
    tokenizer = model.tokenizer
    if getattr(tokenizer, "is_fast", False):
        for special in (True, False):
            found = tokenizer(prompt, add_special_tokens=special, return_offsets_mapping=True)
            if found["input_ids"][: len(ids)] == ids:
                return [(start, stop) for start, stop in found["offset_mapping"][: len(ids)]]
    lengths = [
        len(tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in range(len(ids) + 1)
    ]
    return list(pairwise(lengths))
