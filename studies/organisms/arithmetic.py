"""Word problems solved step by step in three written styles, with wrong steps at a known rate."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from studies.organisms import lexicon

SEPARATOR = ";"
# Probability that a written step is wrong; later steps go on from the wrong value.
WRONG_STEP_RATE = {"equations": 0.15, "words": 0.15, "running": 0.15}
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
LARGEST_CHANGE = 20


@dataclass(frozen=True)
class Problem:
    """A start value and signed changes, as a story.

    >>> p = Problem("Mia", "coins", 23, (12, -5), ("finds", "loses"))
    >>> p.prompt
    'Problem: Mia has 23 coins. Mia finds 12 more. Mia loses 5. How many coins? Solution:'
    >>> solve(p, "equations")
    ' 23 + 12 = 35; 35 - 5 = 30; answer 30'
    """

    name: str
    thing: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question, leaving the style to the solver."""
        return self._question() + " Solution:"

    def prompt_in(self, style: str) -> str:
        """The question, asking for a style."""
        return f"{self._question()} Solution in {style}:"

    @property
    def values(self) -> tuple[int, ...]:
        """True running values, one per step."""
        values, total = [], self.start
        for change in self.changes:
            total += change
            values.append(total)
        return tuple(values)

    @property
    def answer(self) -> str:
        return f" {self.values[-1]}"

    def _question(self) -> str:
        moves = [
            f"{self.name} {verb} {abs(change)}{' more' if change > 0 else ''}."
            for verb, change in zip(self.verbs, self.changes, strict=True)
        ]
        story = " ".join([f"{self.name} has {self.start} {self.thing}.", *moves])
        return f"Problem: {story} How many {self.thing}?"


def make(rng: random.Random, split: str = "train", steps: int | None = None) -> Problem:
    """A problem of 2-4 steps whose running values stay in 0..99; splits never share numbers."""
    while True:
        start = rng.randint(10, 80)
        changes: list[int] = []
        total = start
        for _ in range(steps or rng.randint(2, 4)):
            size = rng.randint(1, LARGEST_CHANGE)
            up = rng.random() < 0.5
            if not 0 <= total + (size if up else -size) <= 99:
                up = not up
            changes.append(size if up else -size)
            total += changes[-1]
        if split_of(start, changes) == split:
            break
    verbs = tuple(rng.choice(lexicon.GAINS if c > 0 else lexicon.LOSSES) for c in changes)
    return Problem(
        rng.choice(lexicon.FIRST_NAMES), rng.choice(lexicon.THINGS), start, tuple(changes), verbs
    )


def split_of(start: int, changes: Sequence[int]) -> str:
    """ "test" for a fixed tenth of all (start, changes), else "train"."""
    return "test" if zlib.crc32(repr((start, *changes)).encode()) % 10 == 0 else "train"


def step(style: str, before: int, change: int, after: int) -> str:
    """One written step, without its separator."""
    size = abs(change)
    if style == "equations":
        return f" {before} {'+' if change > 0 else '-'} {size} = {after}"
    if style == "words":
        if change > 0:
            return f" adding {size} to {before} makes {after}"
        return f" taking {size} from {before} makes {after}"
    if style == "running":
        return f" total {before} {'plus' if change > 0 else 'minus'} {size} now {after}"
    raise ValueError(f"unknown style {style!r}; one of {', '.join(lexicon.STYLES)}")


def solve(problem: Problem, style: str, rng: random.Random | None = None) -> str:
    """A written solution: correct, or with an `rng` wrong at `WRONG_STEP_RATE[style]` a step."""
    total, off, written = problem.start, 0, []
    for index, (change, value) in enumerate(zip(problem.changes, problem.values, strict=True)):
        if rng is not None and rng.random() < WRONG_STEP_RATE[style]:
            rest = problem.values[index:]  # a slip must leave the later values within 0..99 too
            off += rng.choice(
                [s for s in SLIPS if 0 <= min(rest) + off + s <= max(rest) + off + s <= 99]
            )
        written.append(step(style, total, change, value + off))
        total = value + off
    return f"{SEPARATOR}".join(written) + f"{SEPARATOR} answer {total}"


def verify(problem: Problem, completion: str) -> bool:
    """Whether the first "answer N" of a completion is the true one; steps are not looked at."""
    found = re.search(r"answer (\d+)(?!\d)", completion)
    return found is not None and f" {int(found.group(1))}" == problem.answer


def steps_of(completion: str) -> list[str]:
    """The steps of a completion, stripped, its "answer N" last."""
    return [part.strip() for part in completion.split(SEPARATOR) if part.strip()]


def style_of(completion: str) -> str | None:
    """Which style a completion's first step is written in; None if in none."""
    first = (completion.split() or [""])[0]
    if first.isdigit():
        return "equations"
    return {"adding": "words", "taking": "words", "total": "running"}.get(first)


def step_is_right(text: str) -> bool | None:
    """Whether one written step computes what it says; None if it is no step."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) != 3:
        return None
    if text.strip().startswith(("adding", "taking")):
        size, before, after = numbers
    else:
        before, size, after = numbers
    down = any(word in text.split() for word in ("-", "taking", "minus"))
    return after == before + (-size if down else size)
