"""`interp bake`: a saved edit folded into a checkpoint on disk."""

from __future__ import annotations

import interp
from interp import BakeReport, Edit
from studies._checkpoints import ORGANISM, open_checkpoint
from studies._commands import Bake

_ROWS = 20


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
