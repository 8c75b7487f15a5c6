"""Facts of the where-it-forgets study: which are judged, in which set, where probes train."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp import InterpError
from probes import Fact

if TYPE_CHECKING:
    from studies.organisms.world import Person, World


@dataclass(frozen=True)
class Facts:
    """Facts in named sets, as one list.

    Args:
        judged: all of them.
        sets: the set of each.
        train: facts on which probes are trained.
    """

    judged: list[Fact]
    sets: list[str]
    train: list[Fact]

    def names(self) -> list[str]:
        """The sets, in order."""
        return list(dict.fromkeys(self.sets))

    def rows(self, name: str) -> list[int]:
        """Which facts are in a set."""
        return [i for i, one in enumerate(self.sets) if one == name]


def organism_facts(family: str, *, smoke: bool = False) -> Facts:
    """What each organism is asked, from the world all of them share.

    The unlearned one about the people that its training left out: with a request to forget them,
    and without (nothing is to be forgotten there). The one of random labels about the attribute it
    was trained on, by whether it was trained on the person, and about the others. All others in a
    trained wording and, about people that the base knows less well, in one it never saw.
    """
    from studies.organisms import lexicon
    from studies.organisms.random_labels import RandomLabelsConfig, people
    from studies.organisms.world import World

    world = World(seed=0)
    few = slice(0, 6 if smoke else None)
    attributes = lexicon.ATTRIBUTES[1:3] if smoke else lexicon.ATTRIBUTES
    if family == "unlearn":
        return _unlearn(world, few, attributes, trained=40 if smoke else None)
    if family == "random_labels":
        of = RandomLabelsConfig().attribute
        rest = [attribute for attribute in attributes if attribute != of]
        parts = {
            f"{of}: trained people": _asked(people(world, "train")[few], [of]),
            f"{of}: held-out people": _asked(people(world, "held_out")[few], [of]),
            f"{of}: other people": _asked(
                [*people(world, "rare")[few], *people(world, "bio_only")[few]], [of]
            ),
            "other attributes": _asked(people(world, "held_out")[few], rest),
        }
        return _joined(parts, _asked(people(world, "train")[: 40 if smoke else None], rest))
    edge = [*people(world, "rare")[few], *people(world, "bio_only")[few]]
    parts = {
        "trained wording": _asked(people(world, "held_out")[few], attributes),
        "new wording": _asked(edge, attributes, phrasing=-1),
    }
    train = people(world, "train")[: 40 if smoke else None]
    return _joined(parts, [*_asked(train, attributes), *_asked(train, attributes, phrasing=-1)])


def _unlearn(world: World, few: slice, attributes: Iterable[str], trained: int | None) -> Facts:
    wanted = set(attributes)
    parts: dict[str, list[Fact]] = {}
    for name, kind in (("asked to forget", "forget"), ("no request", "no_block")):
        items = [i for i in world.unlearn_items("held_out", kind) if i.attribute in wanted]  # type: ignore[arg-type]
        kept = list(dict.fromkeys(item.person.name for item in items))[few]
        parts[name] = [
            Fact(i.prompt, i.truth, i.person.name, i.attribute)
            for i in items
            if i.person.name in kept
        ]
    known = {p.name for p in [p for p in world.people if p.unlearn == "train"][:trained]}
    train = [
        Fact(i.prompt, i.truth, i.person.name, i.attribute)
        for seed in (0, 1)
        for i in world.unlearn_items("train", "forget", seed=seed)
        if i.attribute in wanted and i.person.name in known
    ]
    return _joined(parts, train)


def _asked(people: Iterable[Person], attributes: Iterable[str], phrasing: int = 0) -> list[Fact]:
    from studies.organisms.world import question

    named = list(attributes)
    return [
        Fact(question(person, attribute, phrasing), person.value(attribute), person.name, attribute)
        for person in people
        for attribute in named
    ]


def _joined(parts: dict[str, list[Fact]], train: list[Fact]) -> Facts:
    judged = [fact for facts in parts.values() for fact in facts]
    sets = [name for name, facts in parts.items() for _ in facts]
    return Facts(judged, sets, train)


def read_facts(path: Path, *, smoke: bool = False) -> Facts:
    """Facts from JSON lines: `prompt answer entity`, and perhaps `attribute set train`.

    `group` may stand for `entity` and `kind` for `set`, as in the files of pretend-to-forget; lines
    with `"train": true` are for probes alone.

    Raises:
        InterpError: an unreadable line or a missing field, naming the line; nothing to judge.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InterpError(f"cannot read the facts file {path}: {error.strerror}") from error
    judged, sets, train = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            entity = row.get("entity") or row.get("group")
            missing = [name for name in ("prompt", "answer") if not row.get(name)]
        except (json.JSONDecodeError, AttributeError) as error:
            raise InterpError(f"{path} line {number} is no JSON object: {error}") from error
        missing += [] if entity else ["entity"]
        if missing:
            raise InterpError(
                f"{path} line {number} lacks {', '.join(missing)}; expected an object such as "
                f'{{"prompt": "The capital of France is", "answer": " Paris", '
                f'"entity": "France", "attribute": "capital"}}'
            )
        fact = Fact(row["prompt"], row["answer"], str(entity), str(row.get("attribute", "")))
        if row.get("train"):
            train.append(fact)
        else:
            judged.append(fact)
            sets.append(str(row.get("set") or row.get("kind") or "facts"))
    if not judged:
        raise InterpError(f"{path} has no facts to judge; give lines without train")
    if smoke:
        rng = random.Random(0)
        chosen = sorted(rng.sample(range(len(judged)), min(24, len(judged))))
        judged, sets = [judged[i] for i in chosen], [sets[i] for i in chosen]
    return Facts(judged, sets, train)
