"""Tasks of the head-edits study: questions in parts, and a model with planted heads."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import interp
import interventions as iv
from interp import InterpError, Model
from interventions._examples import answered, encode

_EXAMPLE = '{"prompt": "Question: Where does Mia live? Answer:", "answer": " Arlen"}'
TERSE = "Given {name}, {attribute}:"


@dataclass(frozen=True)
class Question:
    """A prompt, its one right answer, and whom it is about: intervals are over groups."""

    prompt: str
    answer: str
    group: str

    @property
    def example(self) -> tuple[str, str]:
        """As a training example."""
        return self.prompt, self.answer


@dataclass(frozen=True)
class Parts:
    """Questions to learn from, to choose by and to report on; no group is in two parts."""

    pool: list[Question]
    dev: list[Question]
    test: list[Question]

    def drawn(self, count: int, seed: int) -> list[Question]:
        """Training questions of one size and seed; a larger size holds the smaller ones'."""
        if count > len(self.pool):
            raise InterpError(
                f"{count} training questions asked for and there are {len(self.pool)}; lower sizes"
            )
        return random.Random(f"head-edits/{seed}").sample(self.pool, len(self.pool))[:count]


def organism_parts(kind: str, dev: int, test: int) -> Parts:
    """Facts about people in a trained wording ("facts") or in a form never taught ("terse")."""
    from studies.organisms import lexicon
    from studies.organisms.world import World, question

    rng = random.Random(f"head-edits/{kind}")
    asked = []
    for person in World(seed=0).people_in("trained"):
        for attribute in lexicon.ATTRIBUTES:
            prompt = (
                question(person, attribute, rng.randrange(4))
                if kind == "facts"
                else TERSE.format(name=person.name, attribute=attribute)
            )
            asked.append(Question(prompt, person.value(attribute), person.name))
    return parted(asked, dev, test)


def read_parts(path: Path, dev: int, test: int) -> Parts:
    """Questions from JSON lines: `prompt answer`, and perhaps `group`.

    Raises:
        InterpError: an unreadable file or line, naming the line; too few questions.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"cannot read the questions file {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            group = str(row.get("group", number))
            found.append(Question(str(row["prompt"]), str(row["answer"]), group))
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise InterpError(
                f"{path} line {number} is no question ({error!r}); expected an object such as "
                f"{_EXAMPLE}"
            ) from error
    return parted(found, dev, test)


def parted(questions: Sequence[Question], dev: int, test: int) -> Parts:
    """By groups in a fixed random order: first dev, then test, the rest to learn from.

    Raises:
        InterpError: nothing would be left to learn from.
    """
    groups = sorted({question.group for question in questions})
    random.Random("head-edits/parts").shuffle(groups)
    place = {group: at for at, group in enumerate(groups)}
    parts: list[list[Question]] = [[], [], []]
    at = 0
    for question in sorted(questions, key=lambda q: place[q.group]):
        started = bool(parts[at]) and parts[at][-1].group == question.group
        if not started and at < 2 and len(parts[at]) >= (dev, test)[at]:
            at += 1
        parts[at].append(question)
    if not parts[2]:
        raise InterpError(
            f"{len(questions)} questions of {len(groups)} groups leave nothing to learn from after "
            f"{dev} for dev and {test} for test; give more, or lower dev or test"
        )
    return Parts(parts[2], parts[0], parts[1])


def planted(
    model: Model, questions: Sequence[Question], count: int
) -> tuple[Model, list[dict[str, float | int | bool]]]:
    """A model of which some heads are turned around, z -> -z, baked into plain weights.

    Turned are the heads whose turning alone costs these questions most, so that only an edit of
    those heads, z -> -z again, is the whole repair.

    Returns:
        The damaged model, and a row a head: `layer head harm planted`, harm in nats an answer.
    """
    encoded = encode(model, [question.example for question in questions], end=True)
    before = _mean(answered(model, encoded)[1])
    rows: list[dict[str, float | int | bool]] = []
    for layer, block in enumerate(model.anatomy.blocks):
        for head in range(block.n_heads):
            with iv.scale_heads({(layer, head): -1.0}).applied(model):
                harm = before - _mean(answered(model, encoded)[1])
            rows.append({"layer": layer, "head": head, "harm": harm, "planted": False})
    chosen = sorted(rows, key=lambda row: -row["harm"])[:count]
    for row in chosen:
        row["planted"] = True
    turned = iv.scale_heads({(int(r["layer"]), int(r["head"])): -1.0 for r in chosen})
    module = interp.bake(model, turned)
    return Model(module, model.tokenizer, f"{model.name}, {count} heads turned"), rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
