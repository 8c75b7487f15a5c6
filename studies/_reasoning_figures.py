"""Figures of the reasoning-vectors study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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

    vectors = [v for v in COLOURS if (effects[effects["vector"] == v]["control"] == "noise").any()]
    figure, axes = plt.subplots(
        2,
        len(vectors),
        figsize=(4.2 * len(vectors) + 0.6, 6.0),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, vector in enumerate(vectors):
        _levels(axes[0][column], models)
        for ax, quantity in zip(axes[:, column], ("accuracy", "text_loss"), strict=True):
            _course(ax, effects, models, vector, quantity)
            ax.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(f"target + α ({_name(vector)})", fontsize=11)
        axes[1][column].set_xlabel("α (−1: sign flip)")
    axes[0][0].set_ylabel("share of samples solved")
    axes[1][0].set_ylabel("other texts, nats a token")
    labelled: dict[str, Any] = {}
    for ax in axes[0]:
        handles, texts = ax.get_legend_handles_labels()
        labelled |= dict(zip(texts, handles, strict=True))
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _levels(ax: Any, models: pd.DataFrame) -> None:
    """Where SFT and RL themselves stand."""
    at = models.set_index("model")["accuracy"]
    for name, style in (("rl", ":"), ("sft", "--")):
        ax.axhline(at[name], color="0.7", linestyle=style, linewidth=1, zorder=0)
        ax.annotate(
            name, (0.01, at[name]), xycoords=("axes fraction", "data"), fontsize=8, color="0.4",
            ha="left", va="bottom" if at[name] == at[["rl", "sft"]].max() else "top",
        )  # fmt: skip


def _course(
    ax: Any, effects: pd.DataFrame, models: pd.DataFrame, vector: str, quantity: str
) -> None:
    """One vector from the sign flip over the target as it is (alpha 0) to the largest alpha."""
    import pandas as pd

    columns = ["alpha", "accuracy", "accuracy_low", "accuracy_high", "text_loss"]
    here = effects[effects["vector"] == vector]
    start = models[models["model"] == "target"].assign(alpha=0.0)
    line = pd.concat([here[here["control"] == ""][columns], start[columns]]).sort_values("alpha")
    other = effects[(effects["vector"] == "sft - base") & (effects["control"] == "")]
    for name, rows, look in (
        (vector, line, {"marker": "o", "ms": 4}),
        ("sft - base", other, {"marker": "D", "ms": 5, "linestyle": "none"}),
    ):
        bars = None
        if quantity == "accuracy":
            bars = [
                (rows["accuracy"] - rows["accuracy_low"]).clip(lower=0),
                (rows["accuracy_high"] - rows["accuracy"]).clip(lower=0),
            ]
        ax.errorbar(
            rows["alpha"], rows[quantity], yerr=bars, color=COLOURS[name], lw=1.4, capsize=2,
            label=_name(name), **look,
        )  # fmt: skip
    noise = here[here["control"] == "noise"]
    ax.scatter(
        noise["alpha"], noise[quantity], marker="x", s=26, color=NOISE, zorder=3,
        label="noise of the vector's norm",
    )  # fmt: skip


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
                ms=4, label=_name(str(vector)),
            )  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("α")
        ax.set_xscale("log")
        ax.set_xticks(sorted(set(table["alpha"])))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(1, color="0.7", linewidth=1, zorder=0)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _name(vector: str) -> str:
    return vector.replace("-", "−")
