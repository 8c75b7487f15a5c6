"""Old tasks on which forgetting is measured: questions with one right answer, in named tasks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from interp import InterpError

if TYPE_CHECKING:
    from studies.organisms.world import World

_EXAMPLE = '{"task": "capitals", "prompt": "The capital of France is", "answer": " Paris"}'


@dataclass(frozen=True)
class Item:
    """One question of an old task.

    Args:
        task: its name.
        prompt: as the model reads it.
        answer: the one right continuation, with its leading space.
        group: intervals are over groups (people, words).
        chance: probability that a guess is right.
        ends: whether the answer counts only if the text ends after it.
    """

    task: str
    prompt: str
    answer: str
    group: str
    chance: float = 0.0
    ends: bool = False


def organism_items(count: int, seed: int) -> list[Item]:
    """What the organisms knew beside arithmetic: facts, words and boxes, `count` of each task."""
    from studies.organisms.world import World

    world, rng = World(seed=0), random.Random(f"who-forgets/{seed}")
    tasks = [_facts(world, split, how) for split in _SPLITS for how in ("trained", "held_out")]
    tasks.append(_words(world))
    items = [item for task in tasks for item in rng.sample(task, min(count, len(task)))]
    return items + _boxes(world, count, seed, moves=0) + _boxes(world, count, seed, moves=2)


def read_items(path: Path) -> list[Item]:
    """Items from JSON lines: `task prompt answer`, and optionally `group chance`.

    Raises:
        InterpError: an unreadable file or line, or a missing field, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"cannot read the tasks file {path}: {error}") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            task, prompt, answer = (str(row[name]) for name in ("task", "prompt", "answer"))
            group, chance = str(row.get("group", number)), float(row.get("chance", 0.0))
        except (json.JSONDecodeError, TypeError, KeyError, ValueError) as error:
            raise InterpError(
                f"{path} line {number} is no question ({error!r}); expected an object such as "
                f"{_EXAMPLE}"
            ) from error
        if not (task and prompt and answer) or not 0 <= chance < 1:
            raise InterpError(
                f"{path} line {number}: task, prompt and answer must not be empty, and chance "
                f"({chance:g}) must be at least 0 and below 1"
            )
        items.append(Item(task, prompt, answer, group, chance))
    if not items:
        raise InterpError(f"{path} holds no questions; expected lines such as {_EXAMPLE}")
    return items


def of_tasks(items: Sequence[Item], tasks: Sequence[str]) -> list[Item]:
    """The items of some tasks."""
    return [item for item in items if item.task in tasks]


_SPLITS = ("trained", "rare", "bio_only")


def _facts(world: World, split: str, phrasings: str) -> list[Item]:
    """Questions about people; a person is one group in whatever wording."""
    task = f"facts: {split.replace('_', ' ')}"
    task += ", new wording" if phrasings == "held_out" else ""
    return [
        Item(task, fact.prompt, fact.answer, fact.person.name, ends=True)
        for fact in world.facts(split, phrasings)  # type: ignore[arg-type]
    ]


def _words(world: World) -> list[Item]:
    """Every direction of translation that was taught."""
    from studies.organisms import lexicon

    return [
        Item("words", prompt, answer, word.concept, ends=True)
        for source in lexicon.LANGUAGES
        for target in lexicon.LANGUAGES
        if source != target
        for prompt, answer, word in world.translations(source, target)
        if word.taught(source, target)
    ]


def _boxes(world: World, count: int, seed: int, moves: int) -> list[Item]:
    """Where an object is, after moves of others; a guess names some object of the scene."""
    task = f"boxes: {moves} moves" if moves else "boxes"
    scenes = world.boxes(count, seed=seed + 1, moves=moves)
    chance = sum(1 / len(scene.placed) for scene in scenes) / max(1, len(scenes))
    items = [Item(task, s.prompt, s.answer, f"{task} {i}") for i, s in enumerate(scenes)]
    return [replace(item, chance=chance) for item in items]
