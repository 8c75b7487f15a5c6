"""Figures of the reasoning-vectors study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from probes import LossBarrier

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a marker each, so that print and colour-blind readers can follow.
COLOURS = {"rl - sft": "#0072B2", "rl - base": "#009E73", "sft - base": "#D55E00"}
NOISE = "#7f7f7f"


def sweep(effects: pd.DataFrame, models: pd.DataFrame) -> Figure:
    """Accuracy and loss on other texts over alpha, a column a vector; noise of its norm beside."""
    import matplotlib.pyplot as plt

    vectors = [v for v in COLOURS if (effects["vector"] == v).any()]
    figure, axes = plt.subplots(
        2,
        len(vectors),
        figsize=(3.6 * len(vectors) + 0.6, 5.8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    at = models.set_index("model")
    for column, vector in enumerate(vectors):
        colour = COLOURS[vector]
        here = effects[effects["vector"] == vector]
        line = here[here["control"] == ""].sort_values("alpha")
        noise = here[here["control"] == "noise"]
        for ax, quantity in zip(axes[:, column], ("accuracy", "text_loss"), strict=True):
            known = at[quantity].dropna()
            for name, style in (("target", "-"), ("rl", ":"), ("sft", "--")):
                if name in known:
                    ax.axhline(known[name], color="0.75", linestyle=style, linewidth=1, zorder=0)
                    ax.annotate(
                        name, (1, known[name]), xycoords=("axes fraction", "data"), fontsize=7,
                        color="0.4", ha="right", va="bottom",
                    )  # fmt: skip
            if quantity == "accuracy":
                low = (line["accuracy"] - line["accuracy_low"]).clip(lower=0)
                high = (line["accuracy_high"] - line["accuracy"]).clip(lower=0)
                ax.errorbar(
                    line["alpha"], line["accuracy"], yerr=[low, high], color=colour, marker="o",
                    ms=4, lw=1.4, capsize=2, label="vector",
                )  # fmt: skip
            else:
                ax.plot(line["alpha"], line["text_loss"], color=colour, marker="o", ms=4, lw=1.4)
            ax.scatter(
                noise["alpha"], noise[quantity], marker="x", s=24, color=NOISE, zorder=3,
                label="noise of its norm",
            )  # fmt: skip
            ax.axvline(0, color="0.85", linewidth=1, zorder=0)
            ax.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(f"target + α ({vector.replace('-', '−')})", fontsize=11)
        axes[1][column].set_xlabel("α (−1: sign flip)")
    axes[0][0].set_ylabel("share of samples solved")
    axes[1][0].set_ylabel("other texts, nats a token")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def barriers(lines: Mapping[str, LossBarrier]) -> Figure:
    """Loss along each line, a panel a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(lines), figsize=(3.4 * len(lines), 3.0), squeeze=False, layout="constrained"
    )
    for ax, (title, line) in zip(axes[0], lines.items(), strict=True):
        mean = line.mean.tolist()
        ax.plot(line.point.tolist(), mean, color="#0072B2", marker="o", ms=4)
        ax.axhline(max(mean[0], mean[-1]), color="0.6", linestyle="--", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("share of the way")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("nats a token")
    return figure


def stored(table: pd.DataFrame) -> Figure:
    """What bfloat16 leaves of alpha times each vector."""
    import matplotlib.pyplot as plt

    panels = (("norm_ratio", "norm / norm asked for"), ("cosine", "cosine with what was asked"),
              ("unmoved", "share of weights that stay"))  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained")
    for ax, (column, title) in zip(axes, panels, strict=True):
        for vector, rows in table.groupby("vector", sort=False):
            ax.plot(
                rows["alpha"], rows[column], color=COLOURS.get(str(vector), NOISE), marker="o",
                ms=4, label=str(vector).replace("-", "−"),
            )  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("α")
        ax.set_xscale("log")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(1, color="0.7", linewidth=1, zorder=0)
    axes[0].legend(frameon=False, fontsize=8)
    return figure
