"""Rollouts: what models wrote for the same problems, the input of both reasoning-path probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from interp import InterpError


@dataclass(frozen=True)
class Rollout:
    """One sampled output.

    Args:
        problem: which problem it is for; outputs are compared within a problem.
        model: who wrote it (a label such as "base" or "rl").
        text: the output without the prompt.
        correct: whether a verifier accepts it, or None where nobody has asked yet.
        prompt: what it continues; needed only to read hidden states.
    """

    problem: str
    model: str
    text: str
    correct: bool | None = None
    prompt: str = ""


Traces = Iterable[Rollout | Mapping[str, Any]]


def as_rollouts(traces: Traces) -> list[Rollout]:
    """Rollouts, or mappings with their fields (further fields are left out).

    Raises:
        InterpError: none at all, or one without problem, model or text, by its number.
    """
    names = [f.name for f in fields(Rollout)]
    rollouts: list[Rollout] = []
    for number, trace in enumerate(traces):
        if isinstance(trace, Rollout):
            rollouts.append(trace)
            continue
        if not isinstance(trace, Mapping):
            raise InterpError(
                f"trace {number} is of type {type(trace).__name__}; expected a probes.Rollout or "
                f"a mapping with problem, model and text"
            )
        missing = [name for name in names[:3] if trace.get(name) is None]
        if missing:
            raise InterpError(
                f"trace {number} lacks {', '.join(missing)}; expected a mapping such as "
                f'{{"problem": "7", "model": "base", "text": "2 + 2 = 4; answer 4"}}'
            )
        given = {name: trace[name] for name in names if trace.get(name) is not None}
        given |= {name: str(given[name]) for name in ("problem", "model")}
        if not isinstance(given["text"], str):
            raise InterpError(f"the text of trace {number} is a {type(given['text']).__name__}")
        rollouts.append(Rollout(**given))
    if not rollouts:
        raise InterpError("no traces; give at least one rollout")
    return rollouts


def labels(values: Iterable[str]) -> tuple[list[str], list[int]]:
    """Distinct values in the order of their first appearance, and the index of each."""
    index: dict[str, int] = {}
    numbers = [index.setdefault(value, len(index)) for value in values]
    return list(index), numbers
