"""Results as Markdown and JSON, with the machine in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._report import machine


def write(name: str, result: dict[str, Any], folder: Path) -> list[Path]:
    """`diff-NAME.json` and `diff-NAME.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {**machine(), "threads": 1, "load_average": round(os.getloadavg()[0], 1)}
    paths = folder / f"diff-{name}.json", folder / f"diff-{name}.md"
    paths[0].write_text(json.dumps({"machine": about, **result}, indent=1) + "\n")
    text = markdown(name, result)
    lines = [f"- {key}: {value}" for key, value in about.items()]
    paths[1].write_text(text + "\n\nMachine:\n\n" + "\n".join(lines) + "\n")
    return list(paths)


def markdown(name: str, result: dict[str, Any]) -> str:
    """Every number of a case, in tables."""
    parts = [f"# diff: {name}", f"numba: {'yes' if result['numba'] else 'no'}; one thread."]
    for key in ("pair", "size", "gigabytes"):
        if key in result:
            value = result[key]
            parts.append(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    if "seconds" in result:
        parts.append(_times(result))
    for key in ("runs", "peaks", "errors", "overlaps", "jaccards"):
        if key in result:
            parts.append(_table(key, [{"": k, **v} for k, v in result[key].items()]))
    if "agreement" in result:
        parts.append(_table("relative errors against float64", result["agreement"]))
    return "\n\n".join(parts)


def _times(result: dict[str, Any]) -> str:
    rows = []
    for name, seconds in result["seconds"].items():
        work = median(result["cpu_seconds"][name])
        row: dict[str, Any] = {"": name, "wall s": median(seconds), "CPU s": work}
        for key in ("to_diff", "to_read"):
            if key in result:
                row[f"CPU ratio {key.replace('_', ' ')} (low, high)"] = (
                    "{:.3g} ({:.3g}, {:.3g})".format(*result[key][name])
                )
        if "gigabytes_per_second" in result:
            row["GB per CPU s"] = result["gigabytes_per_second"][name]
        rows.append(row)
    return _table(f"seconds, medians of {len(seconds)} rounds", rows)


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [_cell(key, row.get(key)) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return f"## {title}\n\n" + "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "peak":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
