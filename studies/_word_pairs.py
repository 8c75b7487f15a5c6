"""Word pairs of the pivot study: a prompt, its translation, the pivots, and what is a control."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from interp import InterpError

SPLITS = ("trained", "held_out")
_EXAMPLE = (
    '{"prompt": "Translate Vel kalumi to Ost:", "target": " gorst", "source": " kalumi", '
    '"pivots": [" water"]}'
)


@dataclass(frozen=True)
class WordPair:
    """One translation asked for.

    Args:
        prompt: as the model reads it.
        target: the translation, with its leading space.
        source: the word asked about.
        pivots: the same word in other languages.
        group: the concept; intervals are over groups.
        split: `trained`, or `held_out` where the pair was never taught.
        direction: the languages, "Vel-Ost".
    """

    prompt: str
    target: str
    source: str
    pivots: tuple[str, ...]
    group: str
    split: str
    direction: str


def organism_pairs(per_split: int | None = None) -> list[WordPair]:
    """Vel-Ost and Ost-Vel of the organisms' dictionary, with Plain as the pivot."""
    from studies.organisms.world import World

    pairs = []
    for source, target in (("Vel", "Ost"), ("Ost", "Vel")):
        for split in SPLITS:
            asked = World(seed=0).translations(source, target, split)[:per_split]
            pairs += [
                WordPair(
                    prompt=prompt,
                    target=answer,
                    source=word.forms[source],
                    pivots=(word.forms["Plain"],),
                    group=word.concept,
                    split=split,
                    direction=f"{source}-{target}",
                )
                for prompt, answer, word in asked
            ]
    return pairs


def read_pairs(path: Path) -> list[WordPair]:
    """Pairs from JSON lines: `prompt target source pivots`, perhaps `group split direction`.

    A missing group is the first pivot, a missing split `trained`, a missing direction "all".

    Raises:
        InterpError: an unreadable line or a missing field, naming the line; different numbers of
            pivots; fewer than three groups, which leave no word to compare with.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InterpError(f"cannot read the pairs file {path}: {error.strerror}") from error
    pairs = [_pair(path, n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if len({len(pair.pivots) for pair in pairs}) > 1:
        raise InterpError(f"{path}: every line needs the same number of pivots")
    if len({pair.group for pair in pairs}) < 3:
        raise InterpError(
            f"{path} has fewer than three groups; controls are other groups' words, so give more"
        )
    return pairs


def _pair(path: Path, number: int, line: str) -> WordPair:
    where = f"{path} line {number}"
    try:
        row = json.loads(line)
        missing = [n for n in ("prompt", "target", "source", "pivots") if not row.get(n)]
    except (json.JSONDecodeError, AttributeError) as error:
        raise InterpError(f"{where} is no JSON object: {error}") from error
    if missing:
        raise InterpError(f"{where} lacks {', '.join(missing)}; expected such as {_EXAMPLE}")
    if not isinstance(row["pivots"], list):
        raise InterpError(f"{where}: pivots is no list; expected such as {_EXAMPLE}")
    if row.get("split", "trained") not in SPLITS:
        raise InterpError(f"{where}: split {row['split']!r}; expected {' or '.join(SPLITS)}")
    pivots = tuple(str(word) for word in row["pivots"])
    return WordPair(
        prompt=str(row["prompt"]),
        target=str(row["target"]),
        source=str(row["source"]),
        pivots=pivots,
        group=str(row.get("group", pivots[0])),
        split=row.get("split", "trained"),
        direction=str(row.get("direction", "all")),
    )
