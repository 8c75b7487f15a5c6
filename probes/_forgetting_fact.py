"""A fact that a model may have forgotten, and what makes a set of them usable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

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


def check_probe(facts: Sequence[Fact], train: Sequence[Fact], tokens: Tensor, folds: int) -> None:
    """Refuse what no probe can be trained on.

    Raises:
        InterpError: fewer entities than folds, or fewer than two answers that entities share.
    """
    if folds < 2:
        raise InterpError(f"folds={folds}: expected at least 2")
    remedy = "give more facts, more in train=, or probe=None to go without"
    everything = [*facts, *train]
    for attribute in dict.fromkeys(fact.attribute for fact in facts):
        judged = {fact.entity for fact in facts if fact.attribute == attribute}
        here = [i for i, fact in enumerate(everything) if fact.attribute == attribute]
        apart = [i for i in here if i >= len(facts)]
        if not apart and len(judged) < folds:
            raise InterpError(
                f"attribute {attribute!r} has facts about {len(judged)} entities, fewer than "
                f"folds={folds}, so no probe can be trained on one part and read another; {remedy}"
            )
        used = [i for i in apart if everything[i].entity not in judged] if apart else here
        owners = {(int(tokens[i]), everything[i].entity) for i in used}
        answers = [token for token, _ in owners]
        enough = {token for token in answers if answers.count(token) > 1}
        if len(enough) < 2:
            raise InterpError(
                f"attribute {attribute!r} has {len(enough)} answers that two entities or more of "
                f"its {len({name for _, name in owners})} share, too few for a probe to learn "
                f"(two answers at least); {remedy}"
            )
