"""Which matrices of two checkpoints belong together; refused early when they do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from interp._errors import InterpError, nearest
from interp._weights.checkpoint import Checkpoint
from interp._weights.pair import Side
from interp._weights.part import Part


def plan(base: Checkpoint, tuned: Checkpoint, select: str | None = None) -> list[str]:
    """Canonical names to compare, in the base's order; reads no weights.

    Args:
        base: the start.
        tuned: what became of it.
        select: regular expression that a canonical name must contain.

    Raises:
        InterpError: another architecture or vocabulary, shapes that differ, tensors that only one
            side has, a selection that selects nothing.
    """
    names = _selected(base.parts, select)
    others = set(_selected(tuned.parts, select))
    missing = [name for name in names if _find(tuned, name) is None]
    extra = [name for name in sorted(others - set(names)) if _find(base, name) is None]
    _refuse_missing(base, tuned, missing, extra)
    for name in names:
        _refuse_shape(base, tuned, name)
    if any(base.parts[name].vocabulary for name in names):
        _refuse_tokenizer(base, tuned)
    return names + [name for name in sorted(others - set(names)) if name not in missing]


def sides(base: Checkpoint, tuned: Checkpoint, name: str) -> tuple[Side, Side]:
    """One matrix in both, cut to the rows that both have where the vocabulary grew."""
    first, second = _part(base, name), _part(tuned, name)
    if first.vocabulary and first.n_rows != second.n_rows:
        rows = min(first.n_rows, second.n_rows)
        first, second = first.first_rows(rows), second.first_rows(rows)
    return Side(base, first), Side(tuned, second)


def vocabulary_change(base: Checkpoint, tuned: Checkpoint, name: str) -> int:
    """Rows that an embedding or head gained; negative when it lost some."""
    first, second = _part(base, name), _part(tuned, name)
    return second.n_rows - first.n_rows if first.vocabulary else 0


def _part(checkpoint: Checkpoint, name: str) -> Part:
    part = _find(checkpoint, name)
    if part is None:
        raise InterpError(f"{checkpoint.source} has no tensor {name}")
    return part


def _find(checkpoint: Checkpoint, name: str) -> Part | None:
    """A part by name; a tied head is the embedding."""
    if name == "head.weight" and checkpoint.tied:
        return checkpoint.parts["embed.weight"]
    return checkpoint.parts.get(name)


def _selected(parts: Mapping[str, Part], select: str | None) -> list[str]:
    if select is None:
        return list(parts)
    try:
        pattern = re.compile(select)
    except re.error as error:
        raise InterpError(f"select={select!r} is no regular expression: {error}") from error
    names = [name for name in parts if pattern.search(name)]
    if not names:
        raise InterpError(f"select={select!r} matches no tensor; {nearest(select, parts)}")
    return names


def _refuse_missing(
    base: Checkpoint, tuned: Checkpoint, missing: list[str], extra: list[str]
) -> None:
    if not missing and not extra:
        return
    kinds = [c.config.get("model_type") for c in (base, tuned)]
    if kinds[0] != kinds[1]:
        raise InterpError(
            f"{base.source} is of type {kinds[0]!r} and {tuned.source} of type {kinds[1]!r}, and "
            f"their tensors differ ({(missing + extra)[0]}): give two checkpoints of one "
            f"architecture"
        )
    lacking, having, names = (tuned, base, missing) if missing else (base, tuned, extra)
    raise InterpError(
        f"{lacking.source} lacks {len(names)} tensors that {having.source} has, such as "
        f"{names[0]} ({nearest(names[0], lacking.parts)}); fetch the checkpoint anew, or leave "
        f"them out with select={_leaving_out(names)!r}"
    )


def _leaving_out(names: Iterable[str]) -> str:
    modules = sorted({re.sub(r"^layers\.\d+\.", "", name).split(".")[0] for name in names})
    return rf"^(?!.*\b({'|'.join(modules[:3])})\b)"


def _refuse_shape(base: Checkpoint, tuned: Checkpoint, name: str) -> None:
    first, second = _part(base, name), _part(tuned, name)
    (rows, width), (other_rows, other_width) = first.shape, second.shape
    if width == other_width and (rows == other_rows or first.vocabulary):
        return
    raise InterpError(
        f"{name} is {rows} x {width} in {base.source} and {other_rows} x {other_width} in "
        f"{tuned.source}: these are no two checkpoints of one model; give the checkpoint that "
        f"training started from"
    )


def _refuse_tokenizer(base: Checkpoint, tuned: Checkpoint) -> None:
    """Rows of an embedding can be compared only when they are the same tokens."""
    files = [Path(c.source) / "tokenizer.json" for c in (base, tuned)]
    if not all(file.is_file() for file in files) or files[0] == files[1]:
        return
    texts = [file.read_bytes() for file in files]
    if texts[0] == texts[1]:
        return
    first, second = (_vocabulary(text) for text in texts)
    moved = [token for token, row in first.items() if second.get(token, row) != row]
    if moved:
        token = moved[0]
        raise InterpError(
            f"the tokenizers disagree on {len(moved)} tokens: {token!r} is {first[token]} in "
            f"{base.source} and {second[token]} in {tuned.source}, so embedding rows are no pairs; "
            f"leave them out with select={_leaving_out(['embed', 'head'])!r}"
        )


def _vocabulary(text: bytes) -> dict[str, int]:
    try:
        vocabulary = json.loads(text)["model"]["vocab"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return {}
    if isinstance(vocabulary, dict):
        return vocabulary
    return {str(entry[0]): row for row, entry in enumerate(vocabulary)}  # unigram: [token, score]
