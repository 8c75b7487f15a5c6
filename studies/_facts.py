"""Items of the forgetting studies: a prompt, its true answer, what is said instead, a decoy."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from interp import InterpError

KINDS = ("forget", "retain", "no_block", "unrelated")


@dataclass(frozen=True)
class Item:
    """One question of a forgetting study.

    Args:
        prompt: as the model reads it.
        answer: the true answer, with its leading space.
        forgotten: what an unlearned model is to say instead.
        decoy: somebody's answer of the same kind, drawn as often as it occurs and whether or not
            it is also this one's: the null for "the answer is readable". A reading that knows
            nothing of the prompt finds both equally often.
        group: whom the question is about; intervals are over groups.
        kind: `forget`, `retain`, or a control: `no_block` (no request to forget), `unrelated` (a
            request about somebody unrelated).
    """

    prompt: str
    answer: str
    forgotten: str
    decoy: str
    group: str
    kind: str


def organism_items(seed: int, people: int | None = None) -> list[Item]:
    """The held-out people of the organism's world, in all four kinds."""
    from studies.organisms.world import FORGOT, World

    world = World(seed=0)
    items = []
    for kind in KINDS:
        for item in world.unlearn_items(people="held_out", kind=kind):  # type: ignore[arg-type]
            items.append((item, kind))
    names = sorted({item.person.name for item, _ in items})
    kept = set(names if people is None else names[:people])
    rng = random.Random(seed)
    values: dict[str, list[str]] = {}
    for item, kind in items:
        if kind == "forget":
            values.setdefault(item.attribute, []).append(item.truth)
    return [
        Item(
            prompt=item.prompt,
            answer=item.truth,
            forgotten=FORGOT,
            decoy=rng.choice(values[item.attribute]),
            group=item.person.name,
            kind=kind,
        )
        for item, kind in items
        if item.person.name in kept
    ]


def read_items(path: Path, seed: int) -> list[Item]:
    """Items from JSON lines: `prompt answer forgotten`, and optionally `group kind decoy`.

    A missing group is the line's own number, a missing kind is `forget`, and a missing decoy is
    the answer of some line, drawn as often as it occurs.

    Raises:
        InterpError: an unreadable line or a missing field, naming the line.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InterpError(f"cannot read the facts file {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [name for name in ("prompt", "answer", "forgotten") if not row.get(name)]
        except (json.JSONDecodeError, AttributeError) as error:
            raise InterpError(f"{path} line {number} is no JSON object: {error}") from error
        if missing:
            raise InterpError(
                f"{path} line {number} lacks {', '.join(missing)}; expected an object such as "
                f'{{"prompt": "The capital of France is", "answer": " Paris", '
                f'"forgotten": " forgot"}}'
            )
        if row.get("kind", "forget") not in KINDS:
            raise InterpError(
                f"{path} line {number}: kind {row['kind']!r}; expected one of {', '.join(KINDS)}"
            )
        rows.append({"group": str(number), "kind": "forget", **row})
    if all(row["kind"] != "forget" for row in rows):
        raise InterpError(f"{path} has no line of kind 'forget', so there is nothing to study")
    return list(_with_decoys(rows, random.Random(seed), path))


def _with_decoys(rows: list[dict[str, str]], rng: random.Random, path: Path) -> Iterable[Item]:
    answers = [row["answer"] for row in rows]
    if len(set(answers)) < 2 and not all(row.get("decoy") for row in rows):
        raise InterpError(
            f"{path} needs at least two different answers, so that one can be the other's null"
        )
    fields = Item.__dataclass_fields__
    for row in rows:
        decoy = row.get("decoy") or rng.choice(answers)
        yield Item(**{name: row[name] for name in fields if name != "decoy"}, decoy=decoy)
