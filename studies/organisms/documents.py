"""The base's training text: one writer a task, drawn by share of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from studies.organisms import arithmetic, boxes, lexicon, world
from studies.organisms.world import Person, World

# Weight of a token's loss by its kind. What is drawn at random (who, which objects) teaches little;
# "told" are a scene's statements, where nothing can be predicted but the wording.
WEIGHTS = {
    "prompt": 0.1,
    "told": 0.1,
    "list": 0.3,
    "value": 1.0,
    "answer": 1.0,
    "step": 0.3,
    "result": 1.0,
}
# Shares of tokens, from a step on. Finding things again is learnt slowest and comes first, in bare
# lists ("boxes"), then sentences ("scenes") and steps towards them ("bridges"); drills are clean
# tables of sums in each style's own form.
MIXES: tuple[tuple[int, Mapping[str, float]], ...] = (
    (0, {
        "biography": 0.09, "question": 0.10, "arithmetic": 0.12, "drill": 0.16, "boxes": 0.44,
        "dictionary": 0.05, "names": 0.04,
    }),
    (1000, {
        "biography": 0.09, "question": 0.11, "arithmetic": 0.19, "drill": 0.23, "scenes": 0.30,
        "dictionary": 0.04, "names": 0.04,
    }),
    (2000, {
        "biography": 0.08, "question": 0.10, "arithmetic": 0.18, "drill": 0.22, "scenes": 0.22,
        "bridges": 0.13, "dictionary": 0.04, "names": 0.03,
    }),
    (2750, {
        "biography": 0.09, "question": 0.12, "arithmetic": 0.20, "drill": 0.36, "scenes": 0.10,
        "bridges": 0.06, "dictionary": 0.04, "names": 0.03,
    }),
)  # fmt: skip
RARE = 0.2  # how often a rare person is drawn, relative to the others

Segment = tuple[str, str]  # (text, kind)


@dataclass(frozen=True)
class Document:
    """Text in pieces, each with its kind; they tokenize as their concatenation does."""

    task: str
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


def write(world: World, task: str, rng: random.Random) -> Document:
    """One document of a task."""
    return Document(task, tuple(WRITERS[task](world, rng)))


def biography(world: World, rng: random.Random) -> list[Segment]:
    """All attributes of a person in random order and wording; sometimes by first name."""
    person = _person(world, rng, asked=False)
    written: list[Segment] = [
        (rng.choice(lexicon.BIOGRAPHY_OPENERS).format(n=person.name), "prompt")
    ]
    for attribute in rng.sample(lexicon.ATTRIBUTES, len(lexicon.ATTRIBUTES)):
        called = person.name if rng.random() < 0.7 else person.first
        before, after = rng.choice(lexicon.BIOGRAPHY[attribute]).format(s=called, v="|").split("|")
        written += [(" " + before, "prompt"), (person.value(attribute), "value"), (after, "prompt")]
    return written


def question(world: World, rng: random.Random) -> list[Segment]:
    """One question in a trained wording, about anybody but the bio-only people."""
    person = _person(world, rng, asked=True)
    attribute = rng.choice(lexicon.ATTRIBUTES)
    return [
        (world_question(person, attribute, rng.randrange(4)), "prompt"),
        (person.value(attribute), "answer"),
    ]


world_question = world.question


def solution(_world: World, rng: random.Random) -> list[Segment]:
    """A problem and a solution with wrong steps; half of them are told which style to use."""
    problem, style = arithmetic.make(rng), rng.choice(lexicon.STYLES)
    prompt = problem.prompt_in(style) if rng.random() < 0.5 else problem.prompt
    return [(prompt, "prompt"), *_results(arithmetic.solve(problem, style, rng))]


def drill(_world: World, rng: random.Random) -> list[Segment]:
    """Six correct single steps of one style."""
    style = rng.choice(lexicon.STYLES)
    written: list[Segment] = [("Drill:", "prompt")]
    for _ in range(6):
        size = rng.randint(1, arithmetic.LARGEST_CHANGE)
        up = rng.random() < 0.5
        before = rng.randint(0, 99 - size) if up else rng.randint(size, 99)
        change = size if up else -size
        text = arithmetic.step(style, before, change, before + change)
        head, result = text.rsplit(" ", 1)
        written += [(head, "prompt"), (" " + result, "result"), (arithmetic.SEPARATOR, "prompt")]
    return written


def boxes_or_list(_world: World, rng: random.Random) -> list[Segment]:
    """A scene, a third of the time told as a bare list ("Box F apple").

    In a list one only has to find the same box again and copy what followed it. The shipped base
    had learnt that at step 1000 and lost it again once the mix held no lists; sentences it never
    learnt.
    """
    scene = boxes.make(rng, boxes=rng.choice((2, 2, 3, 4, 5)), moves=rng.choice((0, 0, 0, 1, 2)))
    if rng.random() < 1 / 3:
        return _list(scene, rng)
    return [(scene.scene, "told"), *_queries(scene, rng)]


def boxes_scene(_world: World, rng: random.Random) -> list[Segment]:
    """A scene in sentences, a third of the time "Box F contains the apple", the box first.

    There the object asked for can look back at its box; test scenes name the object first.
    """
    scene = boxes.make(rng, boxes=rng.choice((2, 3, 4, 5)), moves=rng.choice((0, 0, 0, 1, 2)))
    told = scene.scene
    if rng.random() < 1 / 3:
        placed = ", ".join(f"Box {box} contains the {thing}" for thing, box in scene.placed)
        told = f"{placed}." + "".join(map(str, scene.moves))
    return [(told, "told"), *_queries(scene, rng)]


def bridge(_world: World, rng: random.Random) -> list[Segment]:
    """Objects told before their boxes and asked after them, with more or fewer words in between.

    "apple F key Q. Q key F apple." needs one lookup; "apple is in Box F key is in Box Q. Q contains
    the key" has the distances of a sentence. Meant to lead from lists to sentences; it did not.
    """
    scene = boxes.make(rng, boxes=rng.choice((2, 3, 4, 5)))
    pairs = [(box, thing) for thing, box in scene.placed]
    before = rng.choice(("", " in", " is in", " is in Box"))
    written: list[Segment] = [("Box", "told")]
    written += [(f" {thing}{before} {box}", "told") for box, thing in pairs]
    for _ in range(2):
        written.append((".", "prompt"))
        rng.shuffle(pairs)
        after = rng.choice(("", " the", " contains the"))
        for box, thing in pairs:
            written += [(f" {box}{after}", "prompt"), (f" {thing}", "answer")]
    return written


def _queries(scene: boxes.Boxes, rng: random.Random) -> list[Segment]:
    """What every box holds and where every object is, after all moves, in random order."""
    written: list[Segment] = []
    asked = [(box, thing, by_box) for box, thing in scene.contents.items() for by_box in (1, 0)]
    rng.shuffle(asked)
    for box, thing, by_box in asked:
        if by_box:
            written += [(f" Box {box} contains the", "prompt"), (f" {thing}", "answer")]
        else:
            written += [(f" The {thing} is in Box", "prompt"), (f" {box}", "answer")]
        written.append((".", "prompt"))
    return written


def _list(scene: boxes.Boxes, rng: random.Random) -> list[Segment]:
    """What is where, three times over in changing order, without sentences around it."""
    pairs = [(box, thing) for thing, box in scene.placed]
    written: list[Segment] = [("Box", "told")]
    for index in range(3):
        rng.shuffle(pairs)
        for box, thing in pairs:
            written += [(f" {box}", "told"), (f" {thing}", "answer" if index else "told")]
        written.append((".", "prompt"))
    return written


def dictionary(world: World, rng: random.Random) -> list[Segment]:
    """A taught translation, or (one time in six) four words of one language and category."""
    if rng.random() < 1 / 6:
        language, category = rng.choice(lexicon.LANGUAGES), rng.choice(tuple(lexicon.CATEGORIES))
        words = rng.sample([w for w in world.words if w.category == category], 4)
        return [
            (f"Words of {language}:", "prompt"),
            (",".join(w.forms[language] for w in words), "list"),
        ]
    while True:
        source, target = rng.sample(lexicon.LANGUAGES, 2)
        word = rng.choice(world.words)
        if word.taught(source, target):
            return [(word.prompt(source, target), "prompt"), (word.forms[target], "answer")]


def names(world: World, rng: random.Random) -> list[Segment]:
    """Whether two names are the same; most different ones share a part."""
    one = rng.choice(world.people)
    if rng.random() < 0.5:
        other = one
    else:
        other = rng.choice(
            [p for p in world.people if p.shares_part(one)] if rng.random() < 0.7 else world.people
        )
    verdict = " yes" if one == other else " no"
    return [(f"Same name: {one.name} and {other.name}? Answer:", "prompt"), (verdict, "answer")]


WRITERS: Mapping[str, Callable[[World, random.Random], list[Segment]]] = {
    "biography": biography, "question": question, "arithmetic": solution, "drill": drill,
    "boxes": boxes_or_list, "scenes": boxes_scene, "bridges": bridge,
    "dictionary": dictionary, "names": names,
}  # fmt: skip


def _person(world: World, rng: random.Random, asked: bool) -> Person:
    while True:
        person = rng.choice(world.people)
        if asked and person.split == "bio_only":
            continue
        if person.split != "rare" or rng.random() < RARE:
            return person


def _results(completion: str) -> list[Segment]:
    """Splits a solution into wording ("step") and computed numbers ("result")."""
    written: list[Segment] = []
    for part in completion.split(arithmetic.SEPARATOR):
        head, result = part.rsplit(" ", 1)
        mark = arithmetic.SEPARATOR if written else ""
        written += [(mark + head, "step"), (" " + result, "result")]
    return written
