"""Figures of the SFT-versus-RL study, each beside its null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp._weights.comparison import WeightComparison
from interp._weights.weight_diff import WeightDiff

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a marker each, so that print and colour-blind readers can follow.
STYLES = {
    "sft": ("#D55E00", "o", "-"),
    "rl": ("#0072B2", "s", "-"),
    "sft at rl's norm": ("#E69F00", "^", "--"),
    "noise like sft": ("#999999", "x", ":"),
    "noise like rl": ("#555555", "+", ":"),
}


def norms(diff: WeightDiff) -> Figure:
    """Relative norm and RMS of SFT and RL, layer x module; each panel with its own scale."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.6, 6.4), layout="constrained")
    for row, metric in enumerate(("relative_norm", "rms")):
        for column, label in enumerate(("sft", "rl")):
            diff.plot(metric, tuned=label, ax=axes[row][column])
    return figure


def jaccard(shared: WeightComparison) -> Figure:
    """Jaccard of SFT and RL over layers, beside independent gated noise."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    shared.plot("jaccard", ax=ax)
    return figure


def by_layer(table: pd.DataFrame, metrics: Sequence[tuple[str, str]]) -> Figure:
    """Metrics by layer for every checkpoint: mean over the matrices of a layer."""
    import matplotlib.pyplot as plt

    width = 4.2 * len(metrics)
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(width, 3.6), squeeze=False, layout="constrained"
    )
    inside = table[table["layer"].notna() & table["nss"].notna()]
    for ax, (metric, label) in zip(axes[0], metrics, strict=True):
        for tuned, (colour, marker, line) in STYLES.items():
            rows = inside[inside["tuned"] == tuned].groupby("layer")[metric].mean()
            ax.plot(
                rows.index.to_numpy(dtype=float),
                rows.to_numpy(dtype=float),
                color=colour,
                marker=marker,
                linestyle=line,
                label=tuned,
            )
        values = inside[metric].to_numpy(dtype=float)
        if (values > 0).all() and values.max() > 20 * values.min():
            ax.set_yscale("log")
        ax.set_xlabel("layer")
        ax.set_title(label, fontsize=11)
        ax.locator_params(axis="x", integer=True)
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def against_nulls(table: pd.DataFrame, metrics: Sequence[tuple[str, str]]) -> Figure:
    """Observed against null, one point a matrix: on the diagonal there is nothing to explain."""
    import matplotlib.pyplot as plt

    width = 3.7 * len(metrics)
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(width, 3.8), squeeze=False, layout="constrained"
    )
    for ax, (metric, label) in zip(axes[0], metrics, strict=True):
        for tuned in ("sft", "rl"):
            rows = table[table["tuned"] == tuned].dropna(subset=[metric, f"{metric}_null"])
            colour, marker, _ = STYLES[tuned]
            outside = rows[f"{metric}_z"].abs() >= 3
            for chosen, face in ((~outside, "none"), (outside, colour)):
                ax.scatter(
                    rows[f"{metric}_null"][chosen],
                    rows[metric][chosen],
                    s=22,
                    marker=marker,
                    facecolors=face,
                    edgecolors=colour,
                    label=f"{tuned}{', |z| ≥ 3' if face == colour else ''}" if chosen.any() else "",
                )
        _diagonal(ax)
        ax.set_title(label, fontsize=11)
        ax.set_xlabel("null")
        ax.set_ylabel("observed")
    handles = {
        text: h for a in axes[0] for h, text in zip(*a.get_legend_handles_labels(), strict=True)
    }
    axes[0][0].legend(handles.values(), handles.keys(), frameon=False, fontsize=8)
    return figure


def _diagonal(ax: object) -> None:
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])  # type: ignore[attr-defined]
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])  # type: ignore[attr-defined]
    line = np.array([low, high])
    ax.plot(line, line, color="0.7", linewidth=1, zorder=0)  # type: ignore[attr-defined]
