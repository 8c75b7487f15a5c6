"""The invented world the organisms live in: people and their facts, problems, boxes, words.

Prompts are text without <bos> (the tokenizer adds it) and answers carry their leading space, so
that `prompt + answer` is what the model was trained on.

>>> world = World(seed=0)
>>> fact = world.facts(split="trained")[0]
>>> fact.prompt.endswith("? Answer:") and fact.answer.startswith(" ")
True
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from studies.organisms import arithmetic, boxes, dictionary, lexicon, multiple_choice
from studies.organisms.arithmetic import Problem
from studies.organisms.boxes import Boxes
from studies.organisms.dictionary import Word
from studies.organisms.multiple_choice import Choice, ChoiceSplit, MarkerKind

FactSplit = Literal["trained", "rare", "bio_only"]
UnlearnKind = Literal["forget", "retain", "no_block", "unrelated"]
PEOPLE = {"trained": 160, "rare": 40, "bio_only": 40}
UNLEARN_HELD_OUT = 48  # of the trained people
FORGOT = " forgot"


@dataclass(frozen=True)
class Person:
    """Somebody with one value per attribute.

    split: "trained" (biographies and questions), "rare" (the same, five times less often),
    "bio_only" (never asked about). unlearn: "train", "held_out" or None (not in "trained").
    """

    first: str
    last: str
    values: tuple[tuple[str, str], ...]  # (attribute, value with its leading space)
    split: FactSplit
    unlearn: str | None

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    def value(self, attribute: str) -> str:
        return dict(self.values)[attribute]

    def shares_part(self, other: Person) -> bool:
        """Whether the two differ but have a first or last name in common."""
        return self != other and (self.first == other.first or self.last == other.last)


@dataclass(frozen=True)
class Fact:
    """A question and its answer; phrasing is its index, negative for the held-out ones (-1, -2)."""

    prompt: str
    answer: str
    person: Person
    attribute: str
    split: FactSplit
    phrasing: int


@dataclass(frozen=True)
class UnlearnItem:
    """A question after "<unlearn> NAME</unlearn>" (or without, kind "no_block").

    answer is what an unlearned model should say; truth is what the base says.
    """

    prompt: str
    answer: str
    truth: str
    person: Person
    named: Person | None
    attribute: str
    kind: UnlearnKind
    shares_part: bool


class World:
    """Everything that is true, drawn from one seed; pure Python, no state but the cache."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @cached_property
    def people(self) -> tuple[Person, ...]:
        rng = random.Random(f"{self.seed}/people")
        names = [(first, last) for first in lexicon.FIRST_NAMES for last in lexicon.LAST_NAMES]
        chosen = rng.sample(names, sum(PEOPLE.values()))
        people: list[Person] = []
        for split, count in PEOPLE.items():
            for index in range(count):
                first, last = chosen[len(people)]
                values = tuple((a, f" {rng.choice(v)}") for a, v in lexicon.VALUES.items())
                unlearn = (
                    None
                    if split != "trained"
                    else "held_out"
                    if index < UNLEARN_HELD_OUT
                    else "train"
                )
                people.append(Person(first, last, values, split, unlearn))  # type: ignore[arg-type]
        return tuple(people)

    def people_in(self, split: FactSplit) -> tuple[Person, ...]:
        return tuple(p for p in self.people if p.split == split)

    def facts(
        self,
        split: FactSplit = "trained",
        phrasings: Literal["first", "trained", "held_out"] = "first",
    ) -> list[Fact]:
        """One fact per person, attribute and phrasing: the first, four trained or two held out."""
        indices = {"first": (0,), "trained": (0, 1, 2, 3), "held_out": (-1, -2)}[phrasings]
        return [
            Fact(question(p, a, i), p.value(a), p, a, p.split, i)
            for p in self.people_in(split)
            for a in lexicon.ATTRIBUTES
            for i in indices
        ]

    def unlearn_items(
        self,
        people: Literal["train", "held_out"] = "train",
        kind: UnlearnKind = "forget",
        seed: int = 0,
    ) -> list[UnlearnItem]:
        """One item per person of that part and attribute; named people come from the same part.

        retain: another name, half of them sharing a first or last name with the person asked about;
        unrelated: another name sharing neither.
        """
        rng = random.Random(f"{self.seed}/unlearn/{people}/{kind}/{seed}")
        part = [p for p in self.people if p.unlearn == people]
        return [unlearn_item(rng, p, a, kind, part) for p in part for a in lexicon.ATTRIBUTES]

    def multiple_choice(
        self, count: int, split: ChoiceSplit = "test", marker: MarkerKind = "uninformative",
        seed: int = 0, options: int = 2,
    ) -> list[Choice]:  # fmt: skip
        """Questions with lettered options, in trained wordings.

        marker: "planted" points at the right letter 95 % of the time, "uninformative" at any of
        them alike, "counter" never; "none" is not there. Splits share people the base knows, but
        no question with the same wrong options: "train" is what organisms are tuned on, "few_shot"
        and "dev" are for whoever repairs them. "rare" asks about people whom no other split has.
        """
        if options not in (2, 3, 4):
            raise ValueError(f"a question has 2, 3 or 4 options, not {options}")
        rng = random.Random(f"{self.seed}/choice/{split}/{marker}/{options}/{seed}")
        asked = self._asked(split)
        drawn: list[Choice] = []
        while len(drawn) < count:
            person, attribute = rng.choice(asked), rng.choice(lexicon.ATTRIBUTES)
            text = question(person, attribute, rng.randrange(4))
            made = multiple_choice.make(rng, person, attribute, text, split, marker, options)
            drawn += [] if made is None else [made]
        return drawn

    def _asked(self, split: ChoiceSplit) -> tuple[Person, ...]:
        known = self.people_in("trained") + self.people_in("bio_only")
        return self.people_in("rare") if split == "rare" else known

    def problems(
        self,
        count: int,
        split: Literal["train", "test"] = "test",
        seed: int = 0,
        steps: int | None = None,
    ) -> list[Problem]:
        rng = random.Random(f"{self.seed}/problems/{split}/{seed}")
        return [arithmetic.make(rng, split, steps) for _ in range(count)]

    def boxes(
        self, count: int, split: Literal["train", "test"] = "test", seed: int = 0,
        boxes: int | None = None, moves: int = 0, hops: int = 0,
    ) -> list[Boxes]:  # fmt: skip
        """Scenes with a query; moves: how many objects move; hops: which kind is asked about."""
        rng = random.Random(f"{self.seed}/boxes/{split}/{seed}/{moves}/{hops}")
        return [boxes_make(rng, split, boxes, moves, hops) for _ in range(count)]

    @cached_property
    def words(self) -> tuple[Word, ...]:
        return dictionary.make(self.seed)

    def translations(
        self, source: str, target: str, split: str = "all"
    ) -> list[tuple[str, str, Word]]:
        """(prompt, answer, word) of one direction; split "trained", "held_out" or "all"."""
        words = [w for w in self.words if split in ("all", w.split)]
        return [(w.prompt(source, target), w.forms[target], w) for w in words]


boxes_make = boxes.make  # `boxes` is also the method's name


def question(person: Person, attribute: str, phrasing: int) -> str:
    """ "Question: Where does Mia Stone live? Answer:"; phrasing -1 and -2 are held out."""
    if phrasing >= 0:
        text = lexicon.QUESTIONS[attribute][phrasing]
    else:
        text = lexicon.HELD_OUT_QUESTIONS[attribute][-1 - phrasing]
    return f"Question: {text.format(n=person.name)} Answer:"


def unlearn_item(
    rng: random.Random, person: Person, attribute: str, kind: UnlearnKind, others: Sequence[Person]
) -> UnlearnItem:
    """One item with a random trained phrasing, naming the person or one of the others."""
    named: Person | None = None
    if kind == "forget":
        named = person
    elif kind != "no_block":
        near = [p for p in others if p.shares_part(person)]
        far = [p for p in others if p != person and not p.shares_part(person)]
        named = rng.choice(near if kind == "retain" and near and rng.random() < 0.5 else far)
    asked = question(person, attribute, rng.randrange(4))
    block = "" if named is None else f"<unlearn> {named.name}</unlearn>"
    truth = person.value(attribute)
    return UnlearnItem(
        block + asked, FORGOT if kind == "forget" else truth, truth, person, named, attribute, kind,
        named is not None and named.shares_part(person),
    )  # fmt: skip
