"""Pairs of prompts: which token of the one stands where a token of the other stands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp._batch import Batch
from interp._errors import InterpError

Align = Literal["ends"] | None


@dataclass(frozen=True)
class Pairs:
    """Token ids of both sides, and for each position of the one that is run its partner.

    Args:
        base: what is run with patches in it.
        donor: where the patches come from.
        partner: for each position of `base` the one of `donor`, or -1.
    """

    base: list[list[int]]
    donor: list[list[int]]
    partner: list[list[int]]

    def chunks(self, most: int) -> list[Int[Tensor, " prompt"]]:
        """Indices of pairs of equal lengths, at most `most` together: nothing is ever padded."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (base, donor) in enumerate(zip(self.base, self.donor, strict=True)):
            groups[len(base), len(donor)].append(index)
        return [part for group in groups.values() for part in torch.tensor(group).split(most)]


def make_pairs(clean: Batch, corrupted: Batch, align: Align, *, run_clean: bool) -> Pairs:
    """Pair prompts one to one.

    Args:
        clean: prompts.
        corrupted: prompts, as many.
        align: None refuses pairs of different length; `"ends"` pairs the tokens that both begin
            with and those that both end in.
        run_clean: whether patches go into the clean prompts.

    Raises:
        InterpError: not as many prompts, lengths that differ.
    """
    if align not in (None, "ends"):
        raise InterpError(f"align={align!r}: expected None, or 'ends'")
    if len(clean) != len(corrupted):
        raise InterpError(
            f"{len(clean)} clean and {len(corrupted)} corrupted prompts; give one of each for "
            f"every pair"
        )
    both = _ids(clean), _ids(corrupted)
    base, donor = both if run_clean else both[::-1]
    partner = []
    for index, (one, other) in enumerate(zip(base, donor, strict=True)):
        if len(one) == len(other):
            partner.append(list(range(len(one))))
            continue
        start, end = _common(one, other)
        if align is None:
            raise InterpError(_lengths_differ(index, both[0][index], both[1][index]))
        shift = len(other) - len(one)
        inside = [-1] * (len(one) - start - end)
        tail = [position + shift for position in range(len(one) - end, len(one))]
        partner.append([*range(start), *inside, *tail])
    return Pairs(base, donor, partner)


def repeated(pairs: Pairs, times: int) -> Pairs:
    """Each pair so many times, one after the other."""

    def many(rows: list[list[int]]) -> list[list[int]]:
        return [row for row in rows for _ in range(times)]

    return Pairs(many(pairs.base), many(pairs.donor), many(pairs.partner))


def _ids(batch: Batch) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def _common(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many tokens two prompts share at the start, and at the end."""
    shorter = min(len(one), len(other))
    start = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if one[-1 - i] != other[-1 - i]), rest)
    return start, end


def _lengths_differ(index: int, clean: list[int], corrupted: list[int]) -> str:
    start, end = _common(clean, corrupted)
    middles = [_span(start, len(ids) - end) for ids in (clean, corrupted)]
    return (
        f"pair {index}: the clean prompt has {len(clean)} tokens and the corrupted one "
        f"{len(corrupted)}; they share the first {start} and the last {end} and differ at "
        f"{middles[0]} of the clean, {middles[1]} of the corrupted; use prompts of one length, or "
        f"align='ends' to patch the shared tokens only"
    )


def _span(start: int, stop: int) -> str:
    if stop <= start:
        return "no position"
    return f"position {start}" if stop == start + 1 else f"positions {start} to {stop - 1}"
