"""`interp diff`: what changed between checkpoints on disk, in the terminal, as files, as a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp import InterpError, WeightDiff
from interp._diff import labelled
from studies._checkpoints import ORGANISM, folder_of
from studies._commands import Diff
from studies._report import Section, write_report
from studies._run import create

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MEANS = ["relative_norm", "rms", "sparsity", "cosine"]


def run(config: Diff) -> WeightDiff:
    """Diff, print, write; interrupted work continues when the command is given again."""
    if not config.tuned:
        raise InterpError(
            f"nothing to compare {config.base} with; give a checkpoint that was tuned from it: "
            f"interp diff {config.base} TUNED"
        )
    if config.workers < 1:
        raise InterpError(f"--workers {config.workers}: expected at least 1")
    labels = labelled([source.removeprefix(ORGANISM) for source in config.tuned])
    tuned = dict(zip(labels, map(_path, config.tuned), strict=True))
    kept = create(config.out) / "kept"
    found = interp.diff(
        _path(config.base), tuned, config.metrics, workers=config.workers, resume=kept
    )
    found.save(config.out / "diff")
    found.table().to_csv(config.out / "table.csv", index=False)
    _report(found, config)
    _print(found, config)
    _clear(kept)
    return found


def _path(source: str) -> str:
    """A name that `interp.diff` reads: of an organism, its folder."""
    return str(folder_of(source)) if source.startswith(ORGANISM) else source


def _clear(kept: Path) -> None:
    """What an interrupted diff would have continued from; nobody else's files."""
    for file in kept.iterdir() if kept.is_dir() else ():
        if re.fullmatch(r"[0-9a-f]{16,}\.(safetensors|part)", file.name):
            file.unlink()
    with suppress(OSError):  # not empty, or not there
        kept.rmdir()


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
