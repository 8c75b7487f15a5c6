"""The figure of a sweep: lines by layer, or a map of layer x position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probes._sweep_record import ProbeSweep

LABELS = {
    "score": "balanced accuracy, held-out groups",
    "control": "balanced accuracy on control labels",
    "selectivity": "balanced accuracy beyond control labels",
    "auroc": "AUROC, held-out groups",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "random_init": "balanced accuracy, random-initialised model",
}
CONTROLS = (
    ("control", "--", "control labels"),
    ("random_init", ":", "random-initialised model"),
)
MANY = 4  # positions; beyond, lines would hide each other


def plot_sweep(fit: ProbeSweep, ax: Axes | None, measure: str) -> Axes:
    """See `ProbeSweep.plot`."""
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]
    table = fit.table()
    table["kind"] = [site.rsplit(".", 1)[0] if "." in site else site for site in table["site"]]
    if table["position"].nunique() > MANY and table["kind"].nunique() == 1:
        return _map(fit, table, ax, measure)
    lines = list(table.groupby(["kind", "position"], sort=False))
    for number, ((kind, position), part) in enumerate(lines):
        _line(ax, part, measure, f"{kind}, {position}", f"C{number}", len(lines) == 1)
    if measure == "score" and np.isfinite(fit.threshold):
        ax.axhline(fit.threshold, color="0.6", linewidth=1)
        label = "95 % of shuffled labels'\nbest cell are below"
        ax.annotate(label, (1, fit.threshold), xycoords=("axes fraction", "data"), fontsize=7,
                    ha="right", va="bottom", color="0.4")  # fmt: skip
    layers = np.unique(table["layer"])
    ax.set_xticks(layers[:: max(1, len(layers) // 12)])
    ax.set(xlabel="layer", ylabel=LABELS.get(measure, measure))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _line(ax: Any, part: Any, measure: str, label: str, colour: str, alone: bool) -> None:
    """A measure with its band; of a score also its controls."""
    ax.plot(part["layer"], part[measure], marker="o", markersize=3, color=colour, label=label)
    low, high = _bounds(measure)
    if low in part and part[low].notna().any():
        ax.fill_between(part["layer"], part[low], part[high], color=colour, alpha=0.15, linewidth=0)
    if measure != "score":
        return
    for name, style, what in CONTROLS:
        if part[name].notna().any():
            own = what if alone else f"{label}: {what}"
            ax.plot(part["layer"], part[name], style, color=colour, linewidth=1, label=own)


def _bounds(measure: str) -> tuple[str, str]:
    return ("low", "high") if measure == "score" else (f"{measure}_low", f"{measure}_high")


def _map(fit: ProbeSweep, table: Any, ax: Axes, measure: str) -> Axes:
    """Layer upwards, position to the right."""
    grid = table.pivot(index="layer", columns="position", values=measure)
    grid = grid[list(dict.fromkeys(table["position"]))]
    chance = {"score": 1 / len(fit.meta["labels"]), "auroc": 0.5}.get(measure)
    image = ax.imshow(
        grid,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        vmin=chance,
        vmax=None if chance is None else 1.0,
    )
    steps = range(0, grid.shape[1], max(1, grid.shape[1] // 16))
    ax.set_xticks(list(steps), [str(grid.columns[i]) for i in steps])
    steps = range(0, len(grid), max(1, len(grid) // 12))
    ax.set_yticks(list(steps), [str(grid.index[i]) for i in steps])
    ax.set(xlabel="position", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label=LABELS.get(measure, measure))
    return ax
