"""Figures of the head-edits study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a marker each.
STYLES = {
    "head edits": ("#D55E00", "o"),
    "LoRA": ("#0072B2", "s"),
    "biases": ("#009E73", "^"),
    "stream edits": ("#CC79A7", "D"),
}


def accuracy(summary: pd.DataFrame) -> Figure:
    """Accuracy by number of training questions, a panel a task."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(summary["task"]))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.4 * len(tasks) + 1.6, 3.6), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    sizes = sorted(set(summary["size"]) - {0})
    for ax, task in zip(axes[0], tasks, strict=True):
        part = summary[summary["task"] == task]
        for offset, (method, (colour, marker)) in enumerate(STYLES.items()):
            rows = part[part["method"] == method].sort_values("size")
            places = [sizes.index(size) + 0.09 * (offset - 1.5) for size in rows["size"]]
            spread = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
            ax.errorbar(
                places, rows["accuracy"], yerr=[s.clip(lower=0) for s in spread], fmt=marker,
                linestyle="-", linewidth=1, color=colour, markersize=5, capsize=2, label=method,
            )  # fmt: skip
        below = -1.0
        for row in part[part["size"] == 0].sort_values("accuracy").itertuples():
            ax.axhline(row.accuracy, color="black", linewidth=0.8, linestyle=":", zorder=1)
            right = row.accuracy - below < 0.06  # beside the label of the line below, not upon it
            ax.annotate(
                row.method, (0.99 if right else 0.01, row.accuracy), fontsize=8, va="bottom",
                ha="right" if right else "left", xycoords=("axes fraction", "data"),
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=1.5,
            )  # fmt: skip
            below = row.accuracy
        ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        ax.set(title=task, xlabel="training questions", ylim=(-0.02, 1.08))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("accuracy on held-out groups")
    axes[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def heads(harm: pd.DataFrame, edited: pd.DataFrame) -> Figure:
    """Harm of turning each head alone, planted heads framed, and how often each was edited."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    grid = harm.pivot_table(index="layer", columns="head", values="harm")
    figure, ax = plt.subplots(
        figsize=(0.55 * len(grid.columns) + 2.4, 0.5 * len(grid) + 1.4), layout="constrained"
    )
    image = ax.imshow(grid.clip(lower=0), origin="lower", aspect="auto", cmap="Greys")
    for row in harm[harm["planted"]].itertuples():
        box = Rectangle(
            (row.head - 0.47, row.layer - 0.47),
            0.94,
            0.94,
            fill=False,
            linewidth=2,
            color="#0072B2",
        )
        ax.add_patch(box)
    counts = edited.groupby(["layer", "head"]).size()
    for (layer, head), count in counts.items():
        ax.text(head, layer, str(count), color="#D55E00", ha="center", va="center", weight="bold")
    ax.set_xticks(range(len(grid.columns)), [str(h) for h in grid.columns])
    ax.set_yticks(range(len(grid)), [str(i) for i in grid.index])
    ax.set(xlabel="head", ylabel="layer")
    figure.colorbar(image, ax=ax, label="harm of turning it, nats", pad=0.01)
    return figure
