"""Which positions a patch covers: one at a time, some together, all together."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp._errors import InterpError

Span = tuple[int, ...]
# One name for each span; in a mapping, positions of all prompts or a list for each prompt.
PatchPositions = str | int | Sequence[int] | Mapping[str, Any]


@dataclass(frozen=True)
class Spans:
    """Spans of positions, patched one after the other.

    Args:
        names: of each span.
        at: [span][prompt] -> positions, from 0; empty where a prompt has none.
    """

    names: list[str]
    at: list[list[Span]]


def find_spans(positions: PatchPositions, partner: Sequence[Sequence[int]]) -> Spans:
    """The spans that the positions mean for each prompt.

    Args:
        positions: see `interp.patch`.
        partner: for each prompt the position of its pair's other side, -1 where there is none.

    Raises:
        InterpError: a position outside a prompt, or without a partner; an unknown word.
    """
    paired = [tuple(i for i, other in enumerate(row) if other >= 0) for row in partner]
    if positions == "each":
        longest = max(map(len, partner))
        every: list[list[Span]] = [
            [(i,) if i < len(row) and row[i] >= 0 else () for row in partner]
            for i in range(longest)
        ]
        return Spans([str(i) for i in range(longest)], every)
    if positions == "together":
        return Spans(["together"], [paired])
    if positions == "last":
        return Spans(["last"], [_all_prompts(-1, partner)])
    if isinstance(positions, str):
        raise InterpError(
            f"positions={positions!r}: expected 'each', 'together', 'last', positions, or a "
            f"mapping from a name to positions that are patched together"
        )
    if isinstance(positions, Mapping):
        named = {str(name): _named(name, value, partner) for name, value in positions.items()}
    else:
        listed = [positions] if isinstance(positions, int) else list(positions)
        named = {str(_index(one)): _all_prompts(one, partner) for one in listed}
    if not named:
        raise InterpError("positions is empty; name at least one, or 'each', 'together', 'last'")
    return Spans(list(named), list(named.values()))


def _named(name: Any, value: Any, partner: Sequence[Sequence[int]]) -> list[Span]:
    if isinstance(value, int):
        return _all_prompts(value, partner)
    rows = list(value)
    if not any(isinstance(row, Sequence) for row in rows):
        return [_resolved(rows, index, row) for index, row in enumerate(partner)]
    if len(rows) != len(partner):
        raise InterpError(
            f"positions {name!r} are given for {len(rows)} prompts, and there are {len(partner)}"
        )
    return [_resolved(one, index, partner[index]) for index, one in enumerate(rows)]


def _all_prompts(position: Any, partner: Sequence[Sequence[int]]) -> list[Span]:
    return [_resolved([position], index, row) for index, row in enumerate(partner)]


def _resolved(positions: Any, index: int, partner: Sequence[int]) -> Span:
    listed = [positions] if isinstance(positions, int) else list(positions)
    found = []
    for one in listed:
        place = _index(one)
        place += len(partner) if place < 0 else 0
        if not 0 <= place < len(partner):
            raise InterpError(
                f"position {one} is outside prompt {index}, which has {len(partner)} tokens (0 to "
                f"{len(partner) - 1})"
            )
        if partner[place] < 0:
            raise InterpError(
                f"position {one} of prompt {index} has no partner in the other prompt of the pair, "
                f"which has another length; patch shared positions, or use prompts of one length"
            )
        found.append(place)
    return tuple(sorted(set(found)))


def _index(position: Any) -> int:
    try:
        return operator.index(position)
    except TypeError as error:
        raise InterpError(f"position {position!r}: expected a whole number") from error
