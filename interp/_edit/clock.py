"""Which token of its prompt each column of a running forward is.

Edits limited to positions must mean the same tokens in one forward over the prompt, in cached
generation one token at a time, under any padding and under beams. The mask and the cache of the
decoder's own call tell: a column's place is the number of real tokens before it, and the prompt is
what the first forward with an empty cache held.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp._errors import InterpError, nearest

Positions = Literal["all", "prompt", "last", "generated"] | tuple[int, ...]
_NAMES = ("all", "prompt", "last", "generated")
PromptLength = int | Sequence[int] | Tensor | None


def check_positions(positions: Any) -> Positions:
    """Positions in their normal form: a name, or a tuple of token indices.

    Raises:
        InterpError: an unknown name, no index at all, something else.
    """
    if isinstance(positions, str):
        if positions not in _NAMES:
            raise InterpError(f"positions={positions!r}; {nearest(positions, _NAMES)}, or indices")
        return positions  # type: ignore[return-value]
    if isinstance(positions, int):
        return (positions,)
    try:
        indices = tuple(int(p) for p in positions)
    except (TypeError, ValueError):
        indices = ()
    if not indices:
        raise InterpError(
            f"positions={positions!r}: expected 'all', 'prompt', 'last', 'generated' or token "
            f"indices such as (0, -1)"
        )
    return indices


class Clock:
    """The place of every column of the forward that is running, for edits limited to positions.

    Args:
        decoder: the module whose call carries the mask and the cache.
        prompt_len: tokens in each prompt, where no cache tells: a number, or one for each row.
    """

    def __init__(self, decoder: nn.Module, prompt_len: PromptLength = None) -> None:
        self._decoder = weakref.ref(decoder)  # an edit left on a model must not keep it alive
        self._parameters = inspect.signature(type(decoder).forward).parameters
        self._given = None if prompt_len is None else torch.as_tensor(prompt_len)
        self._prompt: Tensor | None = None  # lengths seen by the first forward of a generation
        self._real: Tensor | None = None  # [row column], the token's place in its sequence
        self._present: Tensor | None = None  # [row column], False on padding
        self._lengths: Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow every forward of the decoder while this is open."""
        decoder = self._decoder()
        assert decoder is not None
        start = decoder.register_forward_pre_hook(self._start, with_kwargs=True, prepend=True)
        stop = decoder.register_forward_hook(self._stop, always_call=True)
        del decoder
        try:
            yield
        finally:
            start.remove()
            stop.remove()

    def mask(self, positions: Positions, like: Tensor) -> Tensor:
        """Which tokens of a tensor [row column ...] the positions mean: [row column]."""
        real, present = self._now(like)
        if positions == "all":
            return present.to(like.device)
        if isinstance(positions, str):
            lengths = self._prompt_lengths()
            chosen = {
                "prompt": real < lengths,
                "last": real == lengths - 1,
                "generated": real >= lengths,
            }[positions]
        else:
            chosen = torch.zeros_like(present)
            for position in positions:
                place = position if position >= 0 else self._from_end(position)
                chosen |= real == place
        return (chosen & present).to(like.device)

    def places(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(place of each token in its sequence, which are real): both [row column]."""
        real, present = self._now(like)
        return real.to(like.device), present.to(like.device)

    def _now(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._real is None or self._present is None or self._real.shape != like.shape[:2]:
            raise InterpError(
                "an edit limited to positions needs the whole model's forward to know which token "
                "is which, and blocks were called on their own (as replay does); use "
                "positions='all', or run the model itself"
            )
        return self._real, self._present

    def _from_end(self, position: int) -> Tensor:
        lengths = self._prompt_lengths()
        if int(lengths.min()) + position < 0:
            row = int(lengths.argmin())
            raise InterpError(
                f"position {position}: prompt {row} has only {int(lengths.min())} tokens"
            )
        return lengths + position

    def _prompt_lengths(self) -> Tensor:
        if self._lengths is None:
            raise InterpError(
                "which tokens are the prompt cannot be told without a cache: pass prompt_len= to "
                "applied(...), such as prompt_len=batch.lengths, or let the model use its cache"
            )
        return self._lengths

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._parameters, (module, *args), strict=False)) | kwargs
        inputs = given.get("input_ids")
        inputs = given["inputs_embeds"] if inputs is None else inputs
        rows, columns = inputs.shape[:2]
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        past = 0 if cache is None else int(cache.get_seq_length())
        if mask is None:
            mask = torch.ones(rows, past + columns, dtype=torch.long, device=inputs.device)
        if not isinstance(mask, Tensor) or mask.shape != (rows, past + columns):
            self._real = None  # an edit that asks will say so
            return
        self._real = (mask.cumsum(dim=1) - 1)[:, -columns:]
        self._present = mask[:, -columns:].bool()
        self._lengths = self._find_lengths(given, mask, past)

    def _find_lengths(self, given: dict[str, Any], mask: Tensor, past: int) -> Tensor | None:
        rows = len(mask)
        if self._given is not None:
            return _per_row(self._given.to(mask.device), rows)
        if past == 0:
            use_cache = given.get("use_cache")
            if use_cache is None:
                use_cache = getattr(given["self"].config, "use_cache", True)
            caching = use_cache or given.get("past_key_values") is not None
            self._prompt = mask.sum(dim=1) if caching else None
        if self._prompt is None:
            return None
        return _per_row(self._prompt, rows)

    def _stop(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._real = self._present = self._lengths = None


def _per_row(lengths: Tensor, rows: int) -> Tensor:
    """One length a row: [row 1]; beams and samples of one prompt stand next to each other."""
    lengths = lengths.reshape(-1)
    if rows % len(lengths):
        raise InterpError(
            f"prompt_len is for {len(lengths)} prompts, but the forward has {rows} rows"
        )
    return lengths.repeat_interleave(rows // len(lengths))[:, None]
