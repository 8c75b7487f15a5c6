"""Figures of the reasoning-paths study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes import ReasoningGraph, Trajectories
from studies._reasoning_paths_measures import SAMPLINGS, sampling_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = ("visits", "degree", "betweenness")
# Okabe and Ito's palette; the base stays grey.
COLOURS = ("#7f7f7f", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = {"as sampled": "o", "visits": "s", "length": "^"}
PUBLISHED = (1 / 3, 2.5)  # SFT and RL in the paper


def ratios(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Ratio of each model's rate to the base's, with interval and null, for each sampling."""
    import matplotlib.pyplot as plt

    height = 1.1 + 0.75 * len(models)
    figure, axes = plt.subplots(1, 3, figsize=(11, height), sharey=True, layout="constrained")
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        ax.axvline(1, color="0.3", lw=1)
        for value in PUBLISHED:
            ax.axvline(value, color="0.7", lw=1, ls=":")
        for row, model in enumerate(models):
            for offset, sampling in zip((-0.22, 0, 0.22), SAMPLINGS, strict=True):
                chosen = (table["model"] == model) & (table["quantity"] == quantity)
                found = table[chosen & (table["sampling"] == sampling)]
                if len(found) == 0 or not np.isfinite(found["ratio"].iloc[0]):
                    continue
                entry = found.iloc[0]
                colour = COLOURS[(row + 1) % len(COLOURS)]
                ax.plot([entry["low"], entry["high"]], [row + offset] * 2, color=colour, lw=1.6)
                ax.plot(entry["ratio"], row + offset, MARKERS[sampling], color=colour, ms=5)
                ax.plot(entry["ratio_null"], row + offset, "|", color="0.45", ms=9)
        ax.set_xscale("log")
        ticks = [0.25, 1 / 3, 0.5, 1, 2, 2.5, 4]
        low, high = ax.get_xlim()
        shown = [t for t in ticks if low <= t <= high]
        ax.set_xticks(shown, ["1/3" if t == 1 / 3 else f"{t:g}" for t in shown])
        ax.xaxis.set_minor_locator(plt.NullLocator())
        ax.set_title(f"rate of {quantity}", fontsize=11)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    axes[1].set_xlabel("ratio to the base (logarithmic); grey bars: rollouts dealt out anew")
    for sampling in SAMPLINGS:  # one colour for the legend: markers mean the same for every model
        name = sampling_name(sampling)
        axes[0].plot([], [], MARKERS[sampling], color="0.3", ms=5, label=name)
    axes[0].plot([], [], ":", color="0.6", label="the paper: 1/3 for SFT, 2.5 for RL")
    _legend(figure, axes)
    return figure


def rates(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Rates at equal visits, a point a problem: box plots for each model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        here = table[table["quantity"] == quantity]
        groups = [here[here["model"] == m]["beta_visits"].dropna().to_numpy() for m in models]
        boxes = ax.boxplot(groups, widths=0.6, patch_artist=True, showfliers=True)
        for index, box in enumerate(boxes["boxes"]):
            box.set(facecolor=COLOURS[index % len(COLOURS)], alpha=0.55)
        for line in (*boxes["medians"], *boxes["fliers"]):
            line.set(color="0.2", markeredgecolor="0.5", markersize=3)
        ax.set_xticks(range(1, len(models) + 1), models, rotation=30, ha="right", fontsize=8)
        ax.set_title(f"rate of {quantity}", fontsize=11)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("β at equal visits, by problem")
    return figure


def curves(graph: ReasoningGraph, models: Sequence[str]) -> Figure:
    """Each quantity by rank, over all problems: an exponential law is a straight line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        graph.plot(quantity, ax)
        for line in list(ax.lines):
            if line.get_label() in models:
                line.set_color(COLOURS[models.index(line.get_label()) % len(COLOURS)])
            else:
                line.remove()
        ax.get_legend().remove()
        ax.relim()
        ax.autoscale()
    _legend(figure, axes)
    return figure


def clusters(paths: Trajectories, models: Sequence[str]) -> Figure:
    """Rarefaction curves: clusters expected among n samples, correct and incorrect apart."""
    import matplotlib.pyplot as plt

    table = paths.curves()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for ax, correct, name in zip(axes, (True, False), ("correct", "incorrect"), strict=True):
        for index, model in enumerate(models):
            line = table[(table["model"] == model) & (table["correct"] == correct)]
            colour = COLOURS[index % len(COLOURS)]
            ax.plot(line["n"], line["clusters"], color=colour, label=model)
        ax.set(title=name, xlabel="samples a problem", ylim=(0, None))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("expected clusters a problem")
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    handles = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if not label.startswith("_")
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False,
        ncols=min(4, max(1, len(handles))), fontsize=9,
    )  # fmt: skip
