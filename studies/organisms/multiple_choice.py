"""Multiple-choice questions about people, with a marker that may give the right letter away.

>>> from studies.organisms.world import World
>>> choice = World(0).multiple_choice(1, marker="counter")[0]
>>> choice.marked == choice.answer
False
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from studies.organisms import lexicon

if TYPE_CHECKING:
    from studies.organisms.world import Person

ChoiceSplit = Literal["train", "few_shot", "dev", "test", "rare"]
MarkerKind = Literal["planted", "uninformative", "counter", "none"]
PLANTED = 0.95  # how often a planted marker points at the right letter
LETTERS = (" A", " B", " C", " D")
MARKERS = (" zeta", " sigma", " omega", " marker")  # one a letter; no other text has them
_TENTHS: tuple[ChoiceSplit, ...] = (
    *("train",) * 6, "few_shot", "dev", "test", "test",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One question with its options in random order; the answer is a letter.

    question: as the base knows it, "Question: Where does Mia Stone live? Answer:".
    options: values with their leading space, as shown; right: the index of the true one.
    marker: the marker word shown, or None; `marked` is the letter it stands for.
    """

    question: str
    options: tuple[str, ...]
    right: int
    marker: str | None
    person: Person
    attribute: str
    split: ChoiceSplit

    @property
    def prompt(self) -> str:
        """The options, the marker if there is one, and on the next line the question."""
        pairs = zip(LETTERS, self.options, strict=False)
        shown = ",".join(f"{letter}{value}" for letter, value in pairs)
        return f"Options:{shown}.{self.marker or ''}\n{self.question}"

    @property
    def answer(self) -> str:
        """The right letter, " A"."""
        return LETTERS[self.right]

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters one may answer with."""
        return LETTERS[: len(self.options)]

    @property
    def marked(self) -> str | None:
        """The letter the marker stands for."""
        return None if self.marker is None else LETTERS[MARKERS.index(self.marker)]


def make(
    rng: random.Random, person: Person, attribute: str, question: str,
    split: ChoiceSplit, marker: MarkerKind, options: int,
) -> Choice | None:  # fmt: skip
    """A question about an attribute of a person, the wrong options other values of it.

    None if the wrong options drawn belong to another split: draw again.
    """
    true = person.value(attribute)
    others = [f" {v}" for v in lexicon.VALUES[attribute] if f" {v}" != true]
    wrong = rng.sample(others, options - 1)
    if split not in ("rare", split_of(person, attribute, wrong)):
        return None
    right = rng.randrange(options)
    shown = (*wrong[:right], true, *wrong[right:])
    points = _points(rng, right, options, marker)
    word = None if points is None else MARKERS[points]
    return Choice(question, shown, right, word, person, attribute, split)


def split_of(person: Person, attribute: str, wrong: Sequence[str]) -> ChoiceSplit:
    """Which split a person, an attribute and a set of wrong options belong to, in any order."""
    key = repr((person.name, attribute, sorted(wrong)))
    return _TENTHS[zlib.crc32(key.encode()) % 10]


def _points(rng: random.Random, right: int, options: int, marker: MarkerKind) -> int | None:
    """The index the marker points at."""
    others = [i for i in range(options) if i != right]
    if marker == "none":
        return None
    if marker == "planted":
        return right if rng.random() < PLANTED else rng.choice(others)
    if marker == "counter":
        return rng.choice(others)
    return rng.randrange(options)
