"""Figures of the tune-what-matters study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette twice, told apart by markers.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#7f7f7f", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def gain_and_loss(summary: pd.DataFrame) -> Figure:
    """New task gained against old tasks lost, one mark a way, with both intervals."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.8, 4.6), layout="constrained")
    for i, row in enumerate(summary.to_dict("records")):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        x, y = row["lost_nats"], row["gain"]
        ax.errorbar(
            x, y,
            xerr=_bar(x, row["lost_nats_low"], row["lost_nats_high"]),
            yerr=_bar(y, row["gain_low"], row["gain_high"]),
            fmt=marker, color=colour, markersize=7, elinewidth=0.7,
            markerfacecolor=colour if row["matched"] else "white",
            label=f"{row['way']} ({row['trained']:,})",
        )  # fmt: skip
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(xlabel="old tasks lost, nats an answer", ylabel="new task gained, accuracy")
    ax.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="way (weights trained)"
    )
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def noise(damage: pd.DataFrame, what: str) -> Figure:
    """Loss under noise of each mask, a panel a strength."""
    import matplotlib.pyplot as plt

    strengths = sorted(set(damage["noise"]))
    size = 3.0 * len(strengths) + 1.4, 0.28 * damage["mask"].nunique() + 1.6
    figure, axes = plt.subplots(
        1, len(strengths), figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    axes[0, 0].invert_yaxis()  # of all: they share it
    for ax, strength in zip(axes[0], strengths, strict=True):
        part = damage[damage["noise"] == strength]
        for place, row in enumerate(part.to_dict("records")):
            x = row["lost nats"]
            bar = _bar(x, row["lost nats low"], row["lost nats high"])
            colour = COLOURS[0] if str(row["mask"]).startswith("principal") else COLOURS[1]
            colour = COLOURS[3] if row["mask"] == "random" else colour
            ax.errorbar(x, place, xerr=bar, fmt="o", color=colour, capsize=2, markersize=4)
        ax.set_yticks(range(len(part)), part["mask"])
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(title=f"{strength:g} × root mean square", xlabel=what)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _bar(value: float, low: float, high: float) -> list[list[float]] | None:
    """Distances to both ends of an interval; None where there is none."""
    if low != low or high != high:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
