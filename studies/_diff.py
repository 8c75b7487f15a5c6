"""`interp diff`: what changed between checkpoints on disk, in the terminal, as files, as a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

import interp
from interp import WeightDiff
from studies._report import Section, write_report

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEANS = ["relative_norm", "rms", "sparsity", "cosine"]


@dataclass(frozen=True)
class Diff:
    """What changed in the weights? Two or more checkpoints, read from disk."""

    base: tyro.conf.Positional[str]
    """The checkpoint before: a folder or a hub id."""
    tuned: tyro.conf.Positional[tuple[str, ...]]
    """One or more checkpoints after it, LoRA adapter folders included."""
    metrics: Literal["cheap", "spectral", "overlap", "all"] = "cheap"
    """How much to measure: one pass over the files, or decompositions and masks with nulls too."""
    out: Path = Path("runs/diff")
    """Where report.html, the record, the figures and table.csv go."""
    workers: int = 1
    """Processes; the result does not depend on it."""


def run(config: Diff) -> WeightDiff:
    """Diff, print, write; interrupted work continues when the command is given again."""
    config.out.mkdir(parents=True, exist_ok=True)
    found = interp.diff(
        config.base,
        list(config.tuned),
        config.metrics,
        workers=config.workers,
        resume=config.out / "kept",
    )
    found.save(config.out / "diff")
    found.table().to_csv(config.out / "table.csv", index=False)
    _report(found, config)
    _print(found, config)
    return found


def _report(found: WeightDiff, config: Diff) -> None:
    """report.html: what may be said, then a table and a heat map for each checkpoint."""
    table = found.table("module")
    sections = [
        Section(
            label,
            ["Means over layers; the heat map has its own scale."],
            _by_module(table[table["tuned"] == label])
            .reset_index()
            .assign(cosine=lambda t: 1 - t["cosine"])
            .rename(columns={"cosine": "1 - cosine"}),
            [(_heat_map(found, label, config.out), "Relative norm ||ΔW||/||W||.")],
        )
        for label in found.tuned
    ]
    if len(found.tuned) > 2:
        course = _drawn(
            lambda ax: found.plot("relative_norm", kind="trajectory", ax=ax),
            config.out / "trajectory.png",
        )
        caption = "Relative norm over the checkpoints: mean over layers, their range shaded."
        sections.append(
            Section(
                "In the order given",
                ["The course of a run, if they are one."],
                figures=[(course, caption)],
            )
        )
    write_report(
        config.out / "report.html",
        f"What changed in the weights of {config.base}?",
        found.findings(),
        sections,
        found.meta,
    )


def _heat_map(found: WeightDiff, label: str, folder: Path) -> Path:
    path = folder / f"{_file_name(label)}.png"
    return _drawn(lambda ax: found.plot("relative_norm", tuned=label, ax=ax), path)


def _drawn(draw: Callable[[Axes], object], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.0, 4.5), layout="constrained")
    draw(ax)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-") or "tuned"


def _print(found: WeightDiff, config: Diff) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = found.table("module")
    for label in found.tuned:
        here = table[table["tuned"] == label]
        shown = Table(
            title=escape(f"{config.base} -> {label}"),
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        shown.add_column("module")
        for name in ("relative norm", "RMS", "unchanged in bf16", "cosine"):
            shown.add_column(name, justify="right")
        for module, row in _by_module(here).iterrows():
            shown.add_row(
                str(module),
                f"{row['relative_norm']:.4f}",
                f"{row['rms']:.2e}",
                f"{row['sparsity']:.3f}",
                f"{row['cosine']:.6f}",
            )
        console.print(shown, "")
    for sentence in found.findings():
        console.print(f"- {escape(sentence)}")
    console.print(f"Columns are means over layers. Wrote {config.out}/report.html and table.csv.")


def _by_module(table: pd.DataFrame) -> Any:
    return table.groupby("module", sort=False)[MEANS].mean()
