"""`interp bake`: a saved edit folded into a checkpoint on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

import interp
from interp import BakeReport, Edit
from studies._checkpoints import ORGANISM, open_checkpoint

_ROWS = 20


@dataclass(frozen=True)
class Bake:
    """Fold an edit into the weights: a plain checkpoint, verified, with a model card."""

    model: tyro.conf.Positional[str]
    """A folder, a hub id, or a shipped organism such as organism:base."""
    edit: tyro.conf.Positional[Path]
    """The folder of a saved edit."""
    out: Path
    """The new checkpoint's folder; nothing may be there yet."""
    verify: bool = True
    """Compare the logits with the edited model's: loads the base, then the result."""
    transfer: bool = False
    """Allow another model of the same shapes than the one the edit was made on."""
    untie: bool = False
    """Store a tied embedding and head apart, where a change of the embedding needs it."""


def run(config: Bake) -> BakeReport:
    """Bake, print what went where."""
    edit = Edit.load(config.edit)
    is_organism = config.model.startswith(ORGANISM)
    report = interp.bake(
        open_checkpoint(config.model) if is_organism else config.model,
        edit,
        out=config.out,
        verify=config.verify,
        transfer=config.transfer,
        untie=config.untie,
    )
    _print(report, config)
    return report


def _print(report: BakeReport, config: Bake) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    shown = Table(box=None, pad_edge=False)
    for name in ("change", "part", "went into"):
        shown.add_column(name, overflow="fold")
    for slot in report.slots[:_ROWS]:
        by = f" (by {slot.by})" if slot.by else ""
        shown.add_row(escape(slot.atom), slot.part, escape(slot.tensor + by))
    console.print(shown, "")
    if len(report.slots) > _ROWS:
        console.print(f"and {len(report.slots) - _ROWS} more, in {config.out}/README.md")
    for line in _findings(report):
        console.print(f"- {escape(line)}")
    console.print(f"Wrote {escape(str(config.out))}, a {report.architecture}.")


def _findings(report: BakeReport) -> list[str]:
    found = []
    if report.config:
        settings = ", ".join(f"{key}={value}" for key, value in report.config.items())
        found.append(f"the config differs from the base's: {settings}")
    whole, checked = report.realised, report.verification
    found.append(
        f"rounding left {whole['norm_ratio']:.4f} of the change's norm at cosine "
        f"{whole['cosine']:.6f}; {100 * whole['unmoved']:.3g} % of the coordinates that should "
        f"move did not"
    )
    if checked is None:
        found.append("the logits were not compared (--no-verify)")
    else:
        found.append(
            f"logits differ from the edited model's by at most {checked.difference:.1e} "
            f"({checked.dtype}, {checked.tokens} tokens); the edit moves them by "
            f"{checked.effect:.3g} RMS"
        )
    return found
