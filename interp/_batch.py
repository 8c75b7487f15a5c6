"""Texts or token ids as one padded batch in which padding never changes a result."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp._errors import InterpError, counted


@runtime_checkable
class Array(Protocol):
    """A tensor, an array or a column of a table: what can give itself as a list."""

    def tolist(self) -> Any:
        """The same as lists of plain values."""
        ...


Positions = Literal["all", "last"] | int | Sequence[int] | Array
Prompts = (
    str | Sequence[str] | Array | Sequence[Sequence[int]] | Sequence[Array] | Mapping[str, Any]
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts ready for a model: ids, mask and positions; made by `model.batch(...)`.

    `position_ids` count real tokens, so a model with learned positions gives the same result
    however its batch is padded.

    Args:
        input_ids: [batch pos].
        attention_mask: [batch pos], 1 for real tokens.
        position_ids: [batch pos], 0 at each prompt's first real token.
        texts: the prompts as given, or None when token ids were given.
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    texts: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        least, most = int(self.lengths.min()), int(self.lengths.max())
        tokens = counted(most, "token") if least == most else f"{least} to {most} tokens"
        return f"Batch({counted(len(self), 'prompt')} of {tokens})"

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens in each prompt."""
        return self.attention_mask.sum(dim=1)

    @property
    def padded(self) -> bool:
        """Whether any prompt is shorter than the batch."""
        return not bool(self.attention_mask.all())

    @property
    def starts(self) -> Int[Tensor, " batch"]:
        """Column of each prompt's first real token (0 unless padded on the left)."""
        return self.attention_mask.argmax(dim=1)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes.

        Without padding the mask is left out, so that attention may use its plain causal kernel.
        """
        inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        if self.padded:
            inputs["attention_mask"] = self.attention_mask
        return inputs

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
        )

    def columns(
        self, positions: Positions
    ) -> tuple[Int[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
        """Columns of the padded batch at which the given positions lie, and which are real.

        Positions count real tokens from the prompt's start; negative ones from its end.

        Raises:
            InterpError: a position beyond the shortest prompt, naming the prompt.
        """
        lengths, starts = self.lengths[:, None], self.starts[:, None]
        device = self.input_ids.device
        if isinstance(positions, str):
            if positions == "all":
                offsets = torch.arange(int(self.lengths.max()), device=device)[None]
                real = offsets < lengths
                return torch.where(real, starts + offsets, starts), real
            if positions == "last":
                positions = [-1]
            else:
                raise InterpError(
                    f"positions={positions!r}: expected 'all', 'last', an index or a list"
                )
        wanted = whole_numbers(positions)
        offsets = torch.tensor(wanted, device=device)[None].expand(len(self), -1)
        offsets = torch.where(offsets < 0, offsets + lengths, offsets)
        bad = ((offsets < 0) | (offsets >= lengths)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise InterpError(
                f"position {wanted[column]} is outside prompt {row}, which has "
                f"{int(self.lengths[row])} tokens (0 to {int(self.lengths[row]) - 1})"
            )
        return starts + offsets, torch.ones_like(offsets, dtype=torch.bool)


def whole_numbers(positions: Any) -> list[int]:
    """Positions given as one index or as a list, an array or a range of them."""
    positions = as_plain(positions)
    try:
        wanted = [operator.index(p) for p in ([positions] if is_index(positions) else positions)]
    except TypeError as error:
        raise InterpError(
            f"positions={positions!r}: expected whole numbers (for a slice, list(range(...))), "
            f"'all' or 'last'"
        ) from error
    if not wanted:
        raise InterpError("positions is empty; name at least one, or 'all' or 'last'")
    return wanted


def as_plain(value: Any) -> Any:
    """Lists and plain values for a tensor, an array or a column of a table; the rest as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_index(value: Any) -> bool:
    """Whether a value is one whole number, be it Python's or numpy's."""
    return hasattr(value, "__index__") and not hasattr(value, "__len__")


def make_batch(
    prompts: Prompts | Batch,
    tokenizer: Any,
    *,
    padding: Literal["right", "left"] = "right",
    add_special_tokens: bool = True,
    max_positions: int | None = None,
    d_vocab: int | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """A batch of texts or of token ids; `Model.batch` calls it with the model's limits."""
    if isinstance(prompts, Batch):
        return prompts.to(device)
    texts: tuple[str, ...] | None = None
    prompts = as_plain(prompts)
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, Sequence) and prompts and all(isinstance(p, str) for p in prompts):
        texts = tuple(str(prompt) for prompt in prompts)
        rows = _tokenize(texts, tokenizer, add_special_tokens)
    else:
        rows = _rows(prompts)
    _check_rows(rows, texts, max_positions, d_vocab)
    return _pad(rows, texts, padding, _pad_id(tokenizer)).to(device)


def several(texts: Any, name: str = "texts") -> list[Any]:
    """A list of texts, for what reads many: one text would be read letter by letter.

    Raises:
        InterpError: one text, or one list of token ids.
    """
    texts = as_plain(texts)
    if isinstance(texts, str):
        raise InterpError(f"{name} is one text; give a list of texts, such as [text]")
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise InterpError(f"{name} is of type {type(texts).__name__}; give a list of texts")
    listed = list(texts)
    if any(isinstance(one, int) for one in listed):
        raise InterpError(f"{name} is one list of token ids; give a list of them, such as [ids]")
    return listed


def _rows(prompts: Any) -> list[list[int]]:
    """Ragged token ids from ids, lists of ids, an array, or what a tokenizer returns."""
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        return _unpadded(prompts["input_ids"], prompts.get("attention_mask"))
    _refuse_chat(prompts)
    if not isinstance(prompts, Sequence):
        raise InterpError(
            f"cannot read prompts of type {type(prompts).__name__}; give a text, a list of texts, "
            f"or token ids as lists of whole numbers or a tensor [batch pos]"
        )
    if len(prompts) == 0:
        raise InterpError("the batch is empty; give at least one prompt")
    rows = [as_plain(row) for row in prompts]
    if isinstance(rows[0], int):
        rows = [rows]
    for row in rows:
        if not isinstance(row, Sequence) or not all(isinstance(token, int) for token in row):
            raise InterpError(
                f"cannot read the prompt {str(row)[:60]!r}; expected texts, or token ids as lists "
                f"of whole numbers or a tensor [batch pos]"
            )
    return [list(row) for row in rows]


def _unpadded(ids: Any, mask: Any) -> list[list[int]]:
    """A tokenizer's ids without its padding; ragged where it did not pad."""
    rows = _rows(as_plain(ids))
    if mask is None:
        return rows
    kept = _rows(as_plain(mask))
    if [len(row) for row in kept] != [len(row) for row in rows]:
        raise InterpError("input_ids and attention_mask have different sizes; expected one of each")
    return [
        [token for token, real in zip(row, reals, strict=True) if real]
        for row, reals in zip(rows, kept, strict=True)
    ]


def _refuse_chat(prompts: Any) -> None:
    """Messages are no text yet: the template says what the model reads, and whose turn it is."""
    first = prompts
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, Mapping) and "role" in first:
        raise InterpError(
            "these prompts are chat messages; make them texts first: tokenizer.apply_chat_template("
            "messages, tokenize=False, add_generation_prompt=True)"
        )


def _tokenize(texts: Sequence[str], tokenizer: Any, add_special_tokens: bool) -> list[list[int]]:
    if tokenizer is None:
        raise InterpError(
            "this model has no tokenizer, so texts cannot be read; pass one "
            "(interp.load(..., tokenizer=...)) or give token ids"
        )
    for index, text in enumerate(texts):
        if not text:
            raise InterpError(f"prompt {index} is empty; give at least one character")
    return [tokenize(text, tokenizer, add_special_tokens) for text in texts]


def tokenize(text: str, tokenizer: Any, add_special_tokens: bool) -> list[int]:
    """Token ids of a prompt that is to be continued.

    A text from a chat template starts with the BOS already, and a second one would shift every
    position; and some tokenizers close a text with an EOS, after which nothing is continued.
    """
    bos, eos = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "eos_token", None)
    if add_special_tokens and bos and text.startswith(bos):
        add_special_tokens = False
    ids = list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    if add_special_tokens and eos and ids[-1:] == [tokenizer.eos_token_id]:
        return ids if text.endswith(eos) else ids[:-1]
    return ids


def _check_rows(
    rows: list[list[int]],
    texts: tuple[str, ...] | None,
    max_positions: int | None,
    d_vocab: int | None,
) -> None:
    for index, row in enumerate(rows):
        named = f"prompt {index}" + (f" ({texts[index][:40]!r})" if texts else "")
        if not row:
            raise InterpError(f"{named} has no tokens; give at least one")
        if max_positions is not None and len(row) > max_positions:
            raise InterpError(
                f"{named} has {len(row)} tokens, over this model's context of {max_positions}; "
                f"shorten or split it"
            )
        if d_vocab is not None and not 0 <= min(row) <= max(row) < d_vocab:
            worst = max(row) if max(row) >= d_vocab else min(row)
            raise InterpError(
                f"{named} has token id {worst}, outside this model's vocabulary of {d_vocab}; "
                f"is the tokenizer this model's own?"
            )


def _pad_id(tokenizer: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def _pad(rows: list[list[int]], texts: tuple[str, ...] | None, padding: str, pad_id: int) -> Batch:
    width = max(len(row) for row in rows)
    if padding not in ("left", "right"):
        raise InterpError(f"padding={padding!r}: expected 'right' or 'left'")
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if padding == "right" else slice(width - len(row), width)
        input_ids[index, where] = torch.tensor(row)
        attention_mask[index, where] = 1
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(input_ids, attention_mask, position_ids, texts)
