"""One self-contained HTML page for a run: prose, tables, figures; no server, no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp._record import write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then perhaps a table and figures. All text is escaped."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    table: pd.DataFrame | None = None
    figures: list[tuple[Path, str]] = field(default_factory=list)  # (file, caption)


def write_report(
    path: Path, title: str, verdict: list[str], sections: list[Section], meta: dict[str, Any]
) -> Path:
    """Write the page whole or not at all.

    Args:
        path: the HTML file.
        title: the question the study asks.
        verdict: what it found, a sentence a line.
        sections: in order.
        meta: the run's meta.json, shown at the end.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        resources.files("studies").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        verdict=verdict,
        sections=[_rendered(section) for section in sections],
        meta=meta,
    )
    write_text(path, page)
    return path


def _rendered(section: Section) -> dict[str, Any]:
    figures = [
        (base64.b64encode(file.read_bytes()).decode(), caption) for file, caption in section.figures
    ]
    table = None
    if section.table is not None:
        table = {
            "columns": [str(column) for column in section.table.columns],
            "rows": [[_cell(value) for value in row] for row in section.table.to_numpy().tolist()],
        }
    return {
        "title": section.title,
        "paragraphs": section.paragraphs,
        "figures": figures,
        "table": table,
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "–" if value is None else str(value)
