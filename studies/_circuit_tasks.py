"""What the same-circuit study asks: scenes with a query, their counterparts, and what should move.

One template and one length for all prompts, so that heads can be held at their mean by position and
a position means the same in every prompt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import interventions as iv
from interp import InterpError, Model
from studies.organisms.boxes import Boxes
from studies.organisms.world import World

FIRST, PER_BOX = 6, 7  # tokens before the first label told; from one label told to the next
DESIDERATA = ("object", "label", "position")


@dataclass(frozen=True)
class Pairs:
    """Prompts, each with one in which everything was drawn anew.

    Args:
        prompts: with the answer that they tell.
        corrupted: of the same length and template, telling something else.
        answers: of the prompts.
        told: where in each prompt the answer can be looked up (a token's index), or None.
    """

    prompts: list[str]
    corrupted: list[str]
    answers: list[str]
    told: list[int] | None = None

    @property
    def places(self) -> list[int]:
        """Every position at which some answer can be looked up."""
        return sorted(set(self.told or []))


@dataclass(frozen=True)
class Task:
    """Prompts to find a circuit on, others to report on, and the swaps that say what it carries.

    asked: the position of the label asked about, negative from the end, or None.
    """

    find: Pairs
    test: Pairs
    swaps: dict[str, iv.Desideratum] = field(default_factory=dict)
    asked: int | None = None


def of_scenes(n_find: int, n_test: int, n_swaps: int, boxes: int, seed: int) -> Task:
    """The organisms' task: test scenes of so many boxes, nothing moved."""
    world = World(0)
    count = 2 * (n_find + n_test)
    drawn = world.boxes(count, "test", 1000 + seed, boxes=boxes)
    clean, other = drawn[: count // 2], drawn[count // 2 :]
    rng = random.Random(seed)
    scenes = world.boxes(n_swaps, "train", 2000 + seed, boxes=boxes)
    swaps = {name: _swap(name, scenes, rng) for name in DESIDERATA} if n_swaps else {}
    return Task(
        _pairs(clean[:n_find], other[:n_find]), _pairs(clean[n_find:], other[n_find:]), swaps, -3
    )


def _pairs(clean: Sequence[Boxes], other: Sequence[Boxes]) -> Pairs:
    return Pairs(
        [s.prompt for s in clean],
        [s.prompt for s in other],
        [s.answer for s in clean],
        [FIRST + PER_BOX * asked_about(s) for s in clean],
    )


def asked_about(scene: Boxes) -> int:
    """Which statement tells the box asked about: 0 for the first."""
    return [box for _, box in scene.placed].index(scene.box)


def _swap(name: str, scenes: Sequence[Boxes], rng: random.Random) -> iv.Desideratum:
    """Base and source prompts, and what the base should answer if only one thing is taken over.

    object: the source tells other objects in the same boxes and asks the same; the source's object
    is wanted. label: other objects, and another box is asked about; what the base tells of that box
    is wanted. position: other objects and labels, and another statement is asked about; what the
    base tells in that statement is wanted.
    """
    world_objects = sorted({thing for scene in scenes for thing, _ in scene.placed})
    labels = sorted({box for scene in scenes for _, box in scene.placed})
    sources, targets = [], []
    for scene in scenes:
        own = [thing for thing, _ in scene.placed]
        boxes = [box for _, box in scene.placed]
        things = rng.sample([o for o in world_objects if o not in own], len(own))
        at = asked_about(scene)
        if name != "object":
            at = rng.choice([i for i in range(len(own)) if i != at])
        told_in = boxes
        if name == "position":
            told_in = rng.sample([box for box in labels if box not in boxes], len(boxes))
        placed = tuple(zip(things, told_in, strict=True))
        sources.append(Boxes(placed, (), told_in[at], f" {things[at]}").prompt)
        targets.append(f" {(things if name == 'object' else own)[at]}")
    return iv.Desideratum([s.prompt for s in scenes], sources, targets)


def from_file(file: Path, model: Model) -> Task:
    """Prompts of one's own, one JSON object a line: `prompt corrupted answer`, perhaps `told`.

    `told` is the text whose last token is where the answer can be looked up, such as the label.
    The first third is used to find the circuit, the rest to report on.

    Raises:
        InterpError: a line that is no such object, too few of them, prompts of several lengths.
    """
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                item = json.loads(line)
                rows.append((item["prompt"], item["corrupted"], item["answer"], item.get("told")))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise InterpError(
                    f"{file}, line {number}: expected an object with prompt, corrupted and answer "
                    f"({error!r})"
                ) from error
    if len(rows) < 9:
        raise InterpError(f"{file} holds {len(rows)} pairs; a circuit needs at least 9")
    lengths = {len(ids) for row in rows for ids in _token_rows(model, row[:2])}
    if len(lengths) > 1:
        raise InterpError(
            f"{file}: prompts have {min(lengths)} to {max(lengths)} tokens; heads are held at "
            f"their mean by position, so write them with one template and one length"
        )
    told = _told(model, rows)
    cut = len(rows) // 3
    parts = [
        Pairs(
            [r[0] for r in rows[part]], [r[1] for r in rows[part]], [r[2] for r in rows[part]],
            None if told is None else told[part],
        )
        for part in (slice(0, cut), slice(cut, None))
    ]  # fmt: skip
    return Task(parts[0], parts[1])


def _token_rows(model: Model, texts: Sequence[str]) -> list[list[int]]:
    batch = model.batch(list(texts))
    rows = zip(batch.input_ids, batch.attention_mask, strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def _told(model: Model, rows: Sequence[tuple]) -> list[int] | None:
    """The first place of each `told`, its last token; None unless every line has one."""
    from interp import token_positions

    if any(row[3] is None for row in rows):
        return None
    found = token_positions(model, [row[0] for row in rows], [str(row[3]) for row in rows])
    # A text told and asked about stands there twice, told first.
    return [_first_run(at)[-1] for at in found]


def _first_run(positions: list[int]) -> list[int]:
    run = positions[:1]
    while len(run) < len(positions) and positions[len(run)] == run[-1] + 1:
        run.append(positions[len(run)])
    return run
