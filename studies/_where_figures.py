"""Figures of the where-it-forgets study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from probes._forgetting_plot import LINES
from studies._where_measures import WHOLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, from kept to erased.
COLOURS = {
    "kept": "#0072B2",
    "hidden late": "#009E73",
    "hidden early": "#E69F00",
    "erased": "#D55E00",
}


def shares(table: pd.DataFrame) -> Figure:
    """Verdict shares of each model and set with intervals; hollow: decoys of the lost facts."""
    import matplotlib.pyplot as plt

    table = table[table["evidence"] == WHOLE]
    sets = list(dict.fromkeys(zip(table["model"], table["set"], strict=True)))
    figure, axes = plt.subplots(
        1,
        len(COLOURS),
        figsize=(11.0, 0.42 * len(sets) + 1.5),
        sharey=True,
        sharex=True,
        layout="constrained",
    )
    for ax, (verdict, colour) in zip(axes, COLOURS.items(), strict=True):
        for row, (model, name) in enumerate(sets):
            here = table[(table["model"] == model) & (table["set"] == name)]
            at = here.set_index(["verdict", "of"])
            if (verdict, "facts") in at.index:
                _mark(ax, at.loc[(verdict, "facts")], row, colour, filled=True)
            if (verdict, "decoys") in at.index:
                scale = at.loc[(verdict, "decoys")]["facts"] / at.loc[(verdict, "facts")]["facts"]
                decoys = at.loc[(verdict, "decoys")][["mean", "low", "high"]] * scale
                _mark(ax, decoys, row + 0.28, colour, filled=False)
        ax.set_title(verdict, fontsize=11)
        ax.set_xlim(-0.04, 1.04)
        ax.grid(axis="y", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(sets)), [f"{model}: {name}" for model, name in sets])
    axes[0].invert_yaxis()
    figure.supxlabel("share of the facts that the base answers", fontsize=10)
    return figure


def profiles(table: pd.DataFrame) -> Figure:
    """Each reading by layer, a panel a model and set."""
    import matplotlib.pyplot as plt

    table = table[(table["quantity"] == "top") & (table["who"] == "answer")]
    sets = list(dict.fromkeys(zip(table["model"], table["set"], table["of"], strict=True)))
    columns = min(3, max(1, len(sets)))
    rows = math.ceil(max(1, len(sets)) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.7 * columns + 0.6, 2.9 * rows + 1.0),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (model, name, of) in zip(axes.flat, sets, strict=False):
        here = table[(table["model"] == model) & (table["set"] == name)]
        for (reading, _), (colour, style, label) in LINES.items():
            line = here[here["reading"] == reading].sort_values("layer")
            ax.plot(line["layer"], line["mean"], style, color=colour, marker="o", ms=3, label=label)
            ax.fill_between(
                line["layer"], line["low"], line["high"], color=colour, alpha=0.13, lw=0
            )
        facts = int(here["facts"].max())
        ax.set_title(f"{model}: {name}\n{facts} {of} facts", fontsize=10)
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes.flat)[len(sets) :]:
        ax.set_visible(False)
    for ax in list(axes.flat)[max(0, len(sets) - columns) : len(sets)]:
        ax.set_xlabel("layer (0 embedding)")
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("answer on top, share")
    handles, texts = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark(ax: Axes, row: pd.Series, at: int | float, colour: str, *, filled: bool) -> None:
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    low, high = (mean if bound != bound else bound for bound in (low, high))
    ax.errorbar(
        mean,
        at,
        xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
        marker="o" if filled else "D",
        ms=6 if filled else 4,
        color=colour if filled else "#7f7f7f",
        mfc=colour if filled else "white",
        capsize=2,
        lw=1.2,
    )
