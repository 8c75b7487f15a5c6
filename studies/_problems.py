"""Problems with a checkable answer, and texts on which a model should stay as it was."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interp import InterpError

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
# What the organisms were taught beside arithmetic.
_OTHER_TASKS = ("biography", "question", "boxes", "dictionary")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        prompt: as the model reads it.
        solution: a right solution, with its leading space: the loss is measured on it.
        group: intervals are over groups.
        solved: whether a completion solves it.
    """

    prompt: str
    solution: str
    group: str
    solved: Callable[[str], bool]


def organism_problems(count: int, seed: int) -> list[Problem]:
    """Word problems of the organisms' test split, each with a right solution in a random style."""
    from studies.organisms import arithmetic, lexicon
    from studies.organisms.world import World

    rng = random.Random(f"solutions/{seed}")
    return [
        Problem(
            problem.prompt,
            arithmetic.solve(problem, rng.choice(lexicon.STYLES)),
            str(number),
            partial(arithmetic.verify, problem),
        )
        for number, problem in enumerate(World(seed=0).problems(count, "test", seed=seed))
    ]


def organism_texts(count: int, seed: int) -> list[str]:
    """Documents of the organisms' other tasks."""
    from studies.organisms.documents import write
    from studies.organisms.world import World

    world, rng = World(seed=0), random.Random(f"texts/{seed}")
    return [write(world, _OTHER_TASKS[i % len(_OTHER_TASKS)], rng).text for i in range(count)]


def read_problems(path: Path, count: int) -> list[Problem]:
    """The first problems of a file of JSON lines: `prompt answer`, and perhaps `solution group`.

    A completion solves a problem whose answer is a number if its last number is that number, and
    one whose answer is text if it holds the text.

    Raises:
        InterpError: an unreadable line or a missing field, naming the line; no problem at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InterpError(f"cannot read the problems file {path}: {error.strerror}") from error
    found: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(found) == count:
            continue
        try:
            row = json.loads(line)
            prompt, answer = str(row["prompt"]), str(row["answer"])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise InterpError(
                f"{path} line {number} is no problem ({error!r}); expected an object such as "
                f'{{"prompt": "2 + 2 =", "answer": "4"}}'
            ) from error
        solution = str(row.get("solution") or f" {answer.strip()}")
        group = str(row.get("group", number))
        found.append(Problem(prompt, solution, group, partial(says, answer)))
    if not found:
        raise InterpError(f"{path} holds no problems; expected JSON lines with prompt and answer")
    return found


def says(answer: str, completion: str) -> bool:
    """Whether a completion gives an answer.

    >>> says("72", "48 / 2 = 24, so 48 + 24 = 72.")
    True
    >>> says("72", "72 - 1 = 71")
    False
    """
    wanted = answer.strip()
    if not _NUMBER.fullmatch(wanted):
        return wanted.casefold() in completion.casefold()
    numbers = _NUMBER.findall(completion)
    return bool(numbers) and _value(numbers[-1]) == _value(wanted)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
