"""The model card of a baked checkpoint: what was edited, where it went, what was checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp._bake.report import BakeReport

_ROWS = 60
_HARMLESS = {ord(mark): f"&#{ord(mark)};" for mark in "&<>\"'|`*[]()\\#~!{}$"}


def card(report: BakeReport) -> str:
    """Markdown; everything that came from a model, a file or an edit is escaped."""
    front = ["---", "library_name: transformers", "tags:", "- interp-toolkit", "- edited"]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", report.base):
        front.append(f"base_model: {json.dumps(report.base)}")
    lines = [
        *front,
        "---",
        "",
        f"# {code(report.base)} with an edit baked in",
        "",
        f"The weights of {code(report.base)} with the {len(report.atoms)} changes below folded "
        f"into them. It is a plain {code(report.architecture)} and loads with transformers alone.",
        "",
        "## What was edited",
        "",
        *_few([f"{i}. {code(atom)}" for i, atom in enumerate(report.atoms, start=1)], "changes"),
        "",
    ]
    if report.notes:
        lines += ["The edit's own notes:", "", _block(report.notes), ""]
    if report.config:
        lines += ["Settings that differ from the base's config:", "", _block(report.config), ""]
    lines += ["## Where it went", "", *_slots(report), "", *_rounding(report), ""]
    lines += ["## Checked", "", _checked(report), "", _made_by(), ""]
    return "\n".join(lines)


def code(text: object) -> str:
    """Text from elsewhere, on one line, with nothing left in it that Markdown or HTML reads."""
    return f"<code>{' '.join(str(text).split()).translate(_HARMLESS)}</code>"


def _block(value: Any) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, default=str)
    return f"<pre>{text.translate(_HARMLESS)}</pre>"


def _few(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - _ROWS
    return [*lines[:_ROWS], *([f"\nand {more} more {what}."] if more > 0 else [])]


def _slots(report: BakeReport) -> list[str]:
    rows = [
        f"| {code(slot.atom)} | {slot.part} | {code(slot.tensor)}"
        f"{f' (by {code(slot.by)})' if slot.by else ''} |"
        for slot in report.slots
    ]
    return ["| change | part | tensor |", "|---|---|---|", *_few(rows, "rows")]


def _rounding(report: BakeReport) -> Iterable[str]:
    whole = report.realised
    dtypes = sorted({folded.dtype for folded in report.folded})
    new = [folded for folded in report.folded if folded.new]
    zeros = sum(folded.change_norm == 0 for folded in new)
    yield (
        f"{len(report.folded) - len(new)} tensors differ from the base's and {len(new)} are new "
        f"({zeros} of these are zeros). Changes are computed in "
        f"float32 and rounded once to {', '.join(dtypes) or 'nothing'}: over all tensors the "
        f"stored change has {whole['norm_ratio']:.6f} of the intended norm and a cosine of "
        f"{whole['cosine']:.6f} with it, and {100 * whole['unmoved']:.3g} % of the coordinates "
        f"that should move did not."
    )


def _checked(report: BakeReport) -> str:
    found = report.verification
    if found is None:
        return (
            "The logits were **not** compared with the edited model's: the check was switched off."
        )
    return (
        f"Against the base with the edit applied by hooks, on {found.tokens} random tokens in "
        f"{found.dtype}: the largest difference of a logit is {found.difference:.2e} (the largest "
        f"logit is {found.largest:.3g}; the edit itself moves logits by {found.effect:.3g} RMS)."
    )


def _made_by() -> str:
    try:
        version = metadata.version("interp-toolkit")
    except metadata.PackageNotFoundError:
        version = "(from source)"
    return f"Made by interp-toolkit {version}."
