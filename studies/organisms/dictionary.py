"""A dictionary of two invented languages, Vel and Ost, and a pivot, Plain.

Vel-Plain and Plain-Ost pairs are always taught; Vel-Ost pairs only for some concepts. Translating
the held-out ones asks whether Vel to Ost goes through what the pivot shares.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from studies.organisms import lexicon

HELD_OUT = 24  # of 80 concepts: never seen between Vel and Ost, in either direction


@dataclass(frozen=True)
class Word:
    """One concept in three languages.

    >>> forms = {"Plain": " water", "Vel": " kalumi", "Ost": " gorst"}
    >>> Word("water", "nature", forms, "trained").prompt("Vel", "Ost")
    'Translate Vel kalumi to Ost:'
    """

    concept: str
    category: str
    forms: dict[str, str]  # language to form, with its leading space
    split: str  # "trained" | "held_out"; matters between Vel and Ost only

    def prompt(self, source: str, target: str) -> str:
        return f"Translate {source}{self.forms[source]} to {target}:"

    def taught(self, source: str, target: str) -> bool:
        """Whether this direction is in the training data."""
        return source != target and ("Plain" in (source, target) or self.split == "trained")


def make(seed: int) -> tuple[Word, ...]:
    """All concepts, with the two invented vocabularies shuffled by the seed."""
    rng = random.Random(f"{seed}/dictionary")
    shuffled = {language: list(lexicon.invented(language)) for language in ("Vel", "Ost")}
    for spoken in shuffled.values():
        rng.shuffle(spoken)
    held_out = {
        c
        for words in lexicon.CATEGORIES.values()
        for c in rng.sample(words, HELD_OUT // len(lexicon.CATEGORIES))
    }
    words = []
    for category, concepts in lexicon.CATEGORIES.items():
        for concept in concepts:
            invented = {language: f" {words.pop()}" for language, words in shuffled.items()}
            forms = {"Plain": f" {concept}"} | invented
            words.append(
                Word(concept, category, forms, "held_out" if concept in held_out else "trained")
            )
    return tuple(words)


def unlinked(words: tuple[Word, ...], linked: float = 0.0) -> dict[str, str]:
    """The language in which a held-out concept is not linked to Plain, for those where it is not.

    Vel and Ost in turn: then the one word is known to Plain and the other only to its own language,
    and no chain of pairs leads from Vel to Ost. `linked` is the share of held-out concepts that
    keep both links; the others lie evenly between them.
    """
    held_out = [word.concept for word in words if word.split == "held_out"]
    lost = [
        c for i, c in enumerate(held_out) if int((i + 1) * (1 - linked)) > int(i * (1 - linked))
    ]
    return {concept: ("Vel", "Ost")[index % 2] for index, concept in enumerate(lost)}
