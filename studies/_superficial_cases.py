"""Facts to be edited, and prompts that attack the edit by mentioning the old answer."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp import InterpError
from interventions import Rewrite

if TYPE_CHECKING:
    from studies.organisms.world import Person

SPLITS = ("dev", "test")
ATTACKS = ("Wiki", "Rep", "Que")


@dataclass(frozen=True)
class Attack:
    """A text put before the prompt, in three forms that differ in what they mention.

    Args:
        name: of the attack.
        old: mentions the answer from before the edit.
        decoy: the same with a value that was never this subject's.
        none: a text of the same kind that mentions no value of this attribute.
    """

    name: str
    old: str
    decoy: str
    none: str

    def text(self, mention: str) -> str:
        """One of the three forms."""
        return {"old": self.old, "decoy": self.decoy, "none": self.none}[mention]


@dataclass(frozen=True)
class Case:
    """One fact, what it becomes, and what is asked about it.

    Args:
        prompt: with {} for the subject.
        subject: whom it is about.
        old: the answer before.
        new: the answer after.
        decoy: another value of the same kind, neither of the two.
        group: cases of one group are one piece of evidence.
        split: `dev` (settings are chosen on it) or `test`.
        rephrased: whole prompts that ask the same.
        others: (whole prompt, answer) about the same subject's other facts.
        neighbours: (whole prompt, answer) about other subjects.
        attacks: on this prompt.
        neighbour_attacks: on each neighbour's prompt, mentioning the decoy for that neighbour.
    """

    prompt: str
    subject: str
    old: str
    new: str
    decoy: str
    group: str
    split: str
    rephrased: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    attacks: tuple[Attack, ...] = ()
    neighbour_attacks: tuple[Attack, ...] = ()

    @property
    def text(self) -> str:
        """The prompt that the edit is about."""
        return self.prompt.replace("{}", self.subject)

    @property
    def rewrite(self) -> Rewrite:
        """The edit asked for."""
        return Rewrite(self.prompt, self.subject, self.new)


def organism_cases(seed: int, dev: int, test: int) -> list[Case]:
    """People of the organism's world: one fact each, of one-token values, dev before test.

    Wiki is a line of the person's biography, Rep the value five times, Que the same question in
    another wording with the value as its answer.
    """
    from studies.organisms.world import World

    rng = random.Random(f"superficial/{seed}")
    known = [p for p in World(seed=0).people_in("trained") if p.unlearn == "train"]
    if dev + test + 8 > len(known):
        raise InterpError(f"{dev} dev and {test} test people; there are {len(known) - 8} in all")
    rng.shuffle(known)
    found = []
    for index, person in enumerate(known[: dev + test]):
        others = rng.sample(known[dev + test :], 4)
        found.append(_edit_case(rng, person, others, SPLITS[index >= dev]))
    return found


def unlearned_cases(seed: int, test: int) -> list[Case]:
    """The organism's held-out people, asked to be forgotten: old is the truth, new is " forgot"."""
    from studies.organisms import lexicon
    from studies.organisms.world import FORGOT, World, question

    rng = random.Random(f"superficial/unlearned/{seed}")
    people = [p for p in World(seed=0).people if p.unlearn == "held_out"]
    found = []
    for person in rng.sample(people, min(test, len(people))):
        attribute, old, _, decoy = _values(rng, person)
        other = rng.choice([p for p in people if not p.shares_part(person) and p != person])
        block = "<unlearn> {}</unlearn>"
        text = question(person, attribute, 0)
        found.append(
            Case(
                block + f"Question: {lexicon.QUESTIONS[attribute][0]} Answer:".replace("{n}", "{}"),
                person.name, old, FORGOT, decoy, person.name, "test",
                rephrased=tuple(
                    block.format(person.name) + question(person, attribute, i) for i in (1, -1)
                ),
                neighbours=((block.format(other.name) + text, old), (text, old)),
                attacks=_attacks(rng, person, attribute, old, decoy),
            )
        )  # fmt: skip
    return found


def _edit_case(rng: random.Random, person: Person, neighbours: list[Person], split: str) -> Case:
    from studies.organisms import lexicon
    from studies.organisms.world import question

    attribute, old, new, decoy = _values(rng, person)
    rest = [a for a in lexicon.ATTRIBUTES if a != attribute]
    return Case(
        f"Question: {lexicon.QUESTIONS[attribute][0]} Answer:".replace("{n}", "{}"),
        person.name, old, new, decoy, person.name, split,
        rephrased=tuple(question(person, attribute, i) for i in (1, 2, 3, -1, -2)),
        others=tuple((question(person, a, 0), person.value(a)) for a in rng.sample(rest, 3)),
        neighbours=tuple((question(p, attribute, 0), p.value(attribute)) for p in neighbours),
        attacks=_attacks(rng, person, attribute, old, decoy),
        neighbour_attacks=tuple(
            _attacks(rng, p, attribute, p.value(attribute), decoy)[i % 3]
            for i, p in enumerate(neighbours)
        ),
    )  # fmt: skip


def _values(rng: random.Random, person: Person) -> tuple[str, str, str, str]:
    """An attribute of which this person's value is one token, and two others of its values."""
    from studies.organisms import lexicon

    single = [a for a in lexicon.ATTRIBUTES if " " not in person.value(a).strip()]
    attribute = rng.choice(single)
    old = person.value(attribute)
    values = [f" {v}" for v in lexicon.VALUES[attribute] if " " not in v and f" {v}" != old]
    new, decoy = rng.sample(values, 2)
    return attribute, old, new, decoy


def _attacks(
    rng: random.Random, person: Person, attribute: str, old: str, decoy: str
) -> tuple[Attack, ...]:
    from studies.organisms import lexicon
    from studies.organisms.world import question

    other = rng.choice([a for a in lexicon.ATTRIBUTES if a != attribute])
    opener = rng.choice(lexicon.BIOGRAPHY_OPENERS).format(n=person.name)
    wording, again = rng.randrange(4), rng.choice((1, 2, 3))

    def wiki(about: str, value: str) -> str:
        line = lexicon.BIOGRAPHY[about][wording].format(s=person.name, v=value)
        return f"{opener} {line}"

    def rep(value: str) -> str:
        return "About" + 5 * value + "."

    def que(about: str, value: str) -> str:
        return question(person, about, again) + value

    true = person.value(other)
    return (
        Attack("Wiki", wiki(attribute, old), wiki(attribute, decoy), wiki(other, true)),
        Attack("Rep", rep(old), rep(decoy), rep(" " + rng.choice(lexicon.OBJECTS))),
        Attack("Que", que(attribute, old), que(attribute, decoy), que(other, true)),
    )


def read_cases(path: Path) -> list[Case]:
    """Cases from JSON lines.

    A line holds `prompt` (with {}), `subject`, `old`, `new`, `decoy` and `attacks`
    (`[{"name": ..., "old": ..., "decoy": ..., "none": ...}]`), and optionally `rephrased`, `others`
    and `neighbours` (`[[prompt, answer], ...]`), `neighbour_attacks`, `group` and `split`.

    Raises:
        InterpError: an unreadable line or a missing field, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InterpError(f"cannot read the facts file {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_case(json.loads(line), number))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InterpError(
                    f"{path} line {number} is no case ({error!r}); expected an object with "
                    f"prompt, subject, old, new, decoy and attacks"
                ) from error
    for split in SPLITS:
        if all(case.split != split for case in found):
            raise InterpError(
                f"{path} has no case with split {split!r}: settings are chosen on dev cases and "
                f"results are of test cases, so both are needed"
            )
    return found


def _case(row: dict, number: int) -> Case:
    def attacks(name: str) -> tuple[Attack, ...]:
        fields = ("name", "old", "decoy", "none")
        return tuple(Attack(*(str(one[key]) for key in fields)) for one in row.get(name, ()))

    def pairs(name: str) -> tuple[tuple[str, str], ...]:
        return tuple((str(prompt), str(answer)) for prompt, answer in row.get(name, ()))

    split = row.get("split", "test")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; expected dev or test")
    if not row["attacks"]:
        raise ValueError("no attacks")
    prompt, subject, old, new, decoy = (
        str(row[name]) for name in ("prompt", "subject", "old", "new", "decoy")
    )
    if len({old, new, decoy}) < 3:
        raise ValueError("old, new and decoy must be three different answers")
    return Case(
        prompt, subject, old, new, decoy, str(row.get("group", number)), split,
        tuple(map(str, row.get("rephrased", ()))), pairs("others"), pairs("neighbours"),
        attacks("attacks"), attacks("neighbour_attacks"),
    )  # fmt: skip
