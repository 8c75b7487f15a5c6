"""What was measured, as Markdown and JSON, with the machine in words."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import Contestant, Timing

PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "captum")
MEBI = 2**20


@dataclass
class Section:
    """One model at one batch shape."""

    title: str
    reference: str
    timing: Timing
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """A benchmark's sections and what a reader has to know about them."""

    name: str
    notes: str
    sections: list[Section] = field(default_factory=list)


def row_of(one: Contestant, timing: Timing, reference: str) -> dict[str, Any]:
    """A contestant's times relative to the reference, and whether its target holds."""
    reference = one.reference or reference
    wall = timing.ratio(one.name, reference)
    cpu = timing.ratio(one.name, reference, "cpu")
    row: dict[str, Any] = {
        "contestant": one.name,
        "reference": reference,
        "milliseconds": timing.milliseconds(one.name),
        "ratio": vars(wall),
        "cpu_ratio": vars(cpu),
    }
    if one.target is not None:
        median, high = one.target
        row["target"] = {"median": median, "high": high}
        for clock, ratio in (("wall", wall), ("cpu", cpu)):
            within = ratio.median <= median, ratio.high <= high
            row[f"target_{clock}"] = (
                "met" if all(within) else "bound missed" if within[0] else "missed"
            )
    return row


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions: no names, no paths."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def write(report: Report, folder: Path, about: dict[str, Any]) -> tuple[Path, Path]:
    """Both files; numbers stand in them as measured, every round in the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, data = folder / f"{report.name}.md", folder / f"{report.name}.json"
    markdown.write_text(as_markdown(report, about), encoding="utf-8")
    content = {
        "name": report.name,
        "notes": report.notes,
        "machine": about,
        "sections": [
            {
                "title": section.title,
                "reference": section.reference,
                "rounds": section.timing.rounds,
                "rows": section.rows,
                "wall_seconds": _rounded(section.timing.wall),
                "cpu_seconds": _rounded(section.timing.cpu),
            }
            for section in report.sections
        ],
    }
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return markdown, data


def _rounded(seconds: dict[str, list[float]]) -> dict[str, str]:
    # One line a contestant: a file that can be read and compared.
    return {name: " ".join(f"{value:.6f}" for value in values) for name, values in seconds.items()}


def as_markdown(report: Report, about: dict[str, Any]) -> str:
    """The report as a page: one table a section."""
    versions = ", ".join(f"{name} {about[name]}" for name in PACKAGES)
    lines = [
        f"# {report.name}",
        "",
        f"Written by `python -m benchmarks {report.name}`; do not edit.",
        "",
        f"{about['processor']}, {about['cores']} cores, torch threads: {about['torch_threads']}; "
        f"{about['system']}, Python {about['python']}, {versions}. Load average "
        f"{about['load_average']} before and {about['load_average_after']} after, so other work "
        f"ran on this machine wherever it is above {about['torch_threads']}.",
        "",
        "Ratios are taken round by round against the reference of the same round, in which "
        "everyone ran once in random order: median [bootstrap 95 % interval] (quartiles of the "
        "rounds). CPU ratio: the same with the process's CPU time, which other work on the "
        "machine moves less. A target is a largest median and a largest upper bound of the "
        "interval; 'bound missed' says that the median holds and the interval is too wide or too "
        "high.",
        "",
        report.notes,
    ]
    for section in report.sections:
        lines += ["", f"## {section.title}", "", f"{section.timing.rounds} rounds.", ""]
        lines += _table(section)
    return "\n".join(lines) + "\n"


def _table(section: Section) -> list[str]:
    columns = ["", "ms", "compared with", "ratio", "CPU ratio", "target"]
    memory = any("asked_bytes" in row for row in section.rows)
    peak = any("peak_growth_bytes" in row for row in section.rows)
    columns += ["asked MiB", "retained MiB"] * memory + ["peak growth MiB"] * peak
    columns += ["max diff"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in section.rows:
        cells = [row["contestant"], f"{row['milliseconds']:.1f}", row["reference"]]
        cells += [_ratio(row["ratio"], True), _ratio(row["cpu_ratio"], False), _target(row)]
        if memory:
            cells += [_mebi(row.get("asked_bytes")), _mebi(row.get("retained_bytes"))]
        if peak:
            cells.append(_mebi(row.get("peak_growth_bytes")))
        gap = row.get("max_difference")
        cells.append("" if gap is None else f"{gap:.0e}" if gap else "0")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(ratio: dict[str, float], spread: bool) -> str:
    text = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return text + f" ({ratio['lower_quartile']:.2f}-{ratio['upper_quartile']:.2f})" * spread


def _target(row: dict[str, Any]) -> str:
    if "target" not in row:
        return ""
    median, high = row["target"]["median"], row["target"]["high"]
    asked = f"<= {median:.2f}, bound {high:.2f}" if median >= 0.1 else f"<= {median:.3f}"
    if row["target_wall"] == row["target_cpu"]:
        return f"{row['target_wall']} ({asked})"
    return f"{row['target_wall']}; CPU {row['target_cpu']} ({asked})"


def _mebi(number: int | None) -> str:
    return "" if number is None else f"{number / MEBI:.2f}"
