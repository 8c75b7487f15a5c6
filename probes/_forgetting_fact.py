"""A fact that a model may have forgotten, and what makes a set of them usable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp import InterpError


@dataclass(frozen=True)
class Fact:
    """A prompt that asks for one attribute of one entity, and the answer.

    Args:
        prompt: as the models read it; the answer follows it directly.
        answer: with its leading space, if it has one.
        entity: whom it is about. Intervals are over entities, and no entity is on both sides of a
            probe.
        attribute: what is asked. Probes and controls stay within an attribute.
    """

    prompt: str
    answer: str
    entity: str
    attribute: str = ""


def check_facts(facts: Sequence[object], train: Sequence[object]) -> None:
    """Refuse what cannot be judged.

    Raises:
        InterpError: no facts, something that is no Fact, an empty field.
    """
    if not facts:
        raise InterpError("no facts to judge; give at least two of each attribute")
    for name, given in (("facts", facts), ("train", train)):
        for index, fact in enumerate(given):
            if not isinstance(fact, Fact):
                raise InterpError(
                    f"{name}[{index}] is a {type(fact).__name__}; expected probes.Fact(prompt, "
                    f"answer, entity, attribute)"
                )
            for field in ("prompt", "answer", "entity"):
                if not getattr(fact, field):
                    why = ", whom the fact is about" if field == "entity" else ""
                    raise InterpError(f"{name}[{index}] has no {field}{why}: {fact}")
