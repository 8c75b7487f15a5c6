"""Objects in boxes: entity tracking after Kim and Schuster (2023, arXiv 2305.02363), in small."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from studies.organisms import lexicon


@dataclass(frozen=True)
class Move:
    """A move into a box named for the first time.

    A named move says which object goes ("The key moves to Box G."); an unnamed one only from where
    ("The contents of Box F move to Box G."), so following it takes two hops.
    """

    object: str
    source: str
    target: str
    named: bool

    def __str__(self) -> str:
        if self.named:
            return f" The {self.object} moves to Box {self.target}."
        return f" The contents of Box {self.source} move to Box {self.target}."


@dataclass(frozen=True)
class Boxes:
    """A scene and one query about it.

    >>> print(make(random.Random(0), boxes=3).prompt)  # doctest: +ELLIPSIS
    The ... is in Box ..., the ... is in Box ..., the ... is in Box .... Box ... contains the
    """

    placed: tuple[tuple[str, str], ...]  # (object, box) in the order told
    moves: tuple[Move, ...]
    box: str  # the box asked about
    answer: str  # " apple"

    @property
    def scene(self) -> str:
        told = ", ".join(f"the {thing} is in Box {box}" for thing, box in self.placed)
        return "T" + told[1:] + "." + "".join(map(str, self.moves))

    @property
    def prompt(self) -> str:
        return f"{self.scene} Box {self.box} contains the"

    @property
    def hops(self) -> int:
        """0: as told; 1: the object moved by name; 2: moved as "the contents of"."""
        for move in self.moves:
            if move.target == self.box:
                return 1 if move.named else 2
        return 0

    @property
    def contents(self) -> dict[str, str]:
        """Box to object, after all moves."""
        inside = {box: thing for thing, box in self.placed}
        for move in self.moves:
            inside[move.target] = inside.pop(move.source)
        return inside


def make(
    rng: random.Random,
    split: str = "train",
    boxes: int | None = None,
    moves: int = 0,
    hops: int = 0,
) -> Boxes:
    """A scene of 3-6 boxes and a query; with `hops` 1 or 2 the query is about a moved object."""
    if hops and not moves:
        raise ValueError(
            f"hops={hops} asks about a moved object, but moves=0; pass moves=1 or more"
        )
    while True:
        count = boxes or rng.randint(3, 6)
        objects = rng.sample(lexicon.OBJECTS, count)
        labels = rng.sample(lexicon.BOX_LABELS, count + moves)
        if split_of(objects, labels) == split:
            break
    placed = tuple(zip(objects, labels, strict=False))
    movers = rng.sample(placed, min(moves, len(placed) - 1))
    named = [hops == 1 if i == 0 and hops else rng.random() < 0.5 for i in range(len(movers))]
    told = [
        Move(thing, source, target, name)
        for (thing, source), target, name in zip(movers, labels[count:], named, strict=False)
    ]
    if hops:
        thing, box = told[0].object, told[0].target
    else:
        thing, box = rng.choice([pair for pair in placed if pair not in movers])
    rng.shuffle(told)
    return Boxes(placed, tuple(told), box, f" {thing}")


def split_of(objects: list[str], labels: list[str]) -> str:
    """ "test" for a fixed tenth of all scenes, else "train"."""
    return "test" if zlib.crc32(" ".join([*objects, *labels]).encode()) % 10 == 0 else "train"
