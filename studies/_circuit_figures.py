"""Figures of the same-circuit study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, TUNED, CONTROL = "#0072B2", "#D55E00", "#7f7f7f"  # Okabe and Ito's palette


def effects(paths: pd.DataFrame) -> Figure:
    """Direct effect of each head, group by group, in both models; chosen heads are framed."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    groups = list(dict.fromkeys(paths["group"]))
    figure, axes = plt.subplots(
        2, len(groups), figsize=(2.6 * len(groups) + 1, 5.2), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    limit = max(float(paths["effect"].abs().max()), 0.01)
    image = None
    for row, which in enumerate(("base", "tuned")):
        for column, group in enumerate(groups):
            ax = axes[row][column]
            part = paths[(paths["model"] == which) & (paths["group"] == group)]
            grid = part.pivot_table(index="layer", columns="head", values="effect")
            if len(grid):
                image = ax.imshow(
                    grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit,
                    extent=(-0.5, grid.columns.max() + 0.5, -0.5, grid.index.max() + 0.5),
                )  # fmt: skip
            for one in part[part["chosen"]].itertuples():
                ax.add_patch(
                    Rectangle((one.head - 0.5, one.layer - 0.5), 1, 1, fill=False, linewidth=1.6)
                )
            if row == 0:
                ax.set_title(group, fontsize=10)
            else:
                ax.set_xlabel("head")
        axes[row][0].set_ylabel(f"{which}: layer")
    last = int(paths["layer"].max())
    axes[0][0].set_ylim(-0.5, last + 0.5)
    axes[0][0].set_yticks(range(last + 1))
    if image is not None:
        figure.colorbar(image, ax=axes, label="relative change of the answer's lead", pad=0.01)
    return figure


def recovered(activations: pd.DataFrame, weights: pd.DataFrame) -> Figure:
    """Accuracy of the base with the tuned model's activations, and with its weights."""
    import matplotlib.pyplot as plt

    height = 0.36 * max(len(activations), len(weights)) + 1.4
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, height), layout="constrained", sharex=True
    )
    _bars(left, activations, "activations of the tuned model")
    _bars(right, weights, "weights of the tuned model")
    return figure


def _bars(ax: Axes, table: pd.DataFrame, title: str) -> None:
    shown = table[~table["what"].isin(["base", "tuned"])]
    for place, row in enumerate(shown.itertuples()):
        control = str(row.what).endswith("random heads")
        below, above = max(0, row.accuracy - row.low), max(0, row.high - row.accuracy)
        ax.errorbar(
            row.accuracy, place, xerr=[[below], [above]], fmt="x" if control else "o",
            color=CONTROL if control else TUNED, capsize=2, markersize=5,
        )  # fmt: skip
    ends = {name: table[table["what"] == name].iloc[0] for name in ("base", "tuned")}
    rising = ends["base"]["accuracy"] <= ends["tuned"]["accuracy"]
    for name, colour in (("base", BASE), ("tuned", TUNED)):
        line, left = ends[name], (name == "base") == rising
        ax.axvline(line["accuracy"], color=colour, linewidth=1, linestyle="--")
        ax.axvspan(line["low"], line["high"], color=colour, alpha=0.1, linewidth=0)
        ax.annotate(
            name, (line["accuracy"], 1.0), xycoords=("data", "axes fraction"), color=colour,
            xytext=(-2 if left else 2, 2), textcoords="offset points",
            ha="right" if left else "left", fontsize=9,
        )  # fmt: skip
    ax.set_yticks(range(len(shown)), list(shown["what"]))
    ax.invert_yaxis()
    ax.set(xlabel="accuracy of the base", xlim=(0, 1.02))
    ax.set_title(title, fontsize=10, pad=16)
    ax.spines[["top", "right"]].set_visible(False)


def taken(masks: pd.DataFrame) -> Figure:
    """Which heads each mask takes, in both models."""
    import matplotlib.pyplot as plt

    swaps = list(dict.fromkeys(masks["swap"]))
    figure, axes = plt.subplots(
        1, len(swaps), figsize=(2.7 * len(swaps) + 1.3, 2.9), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    for ax, swap in zip(axes[0], swaps, strict=True):
        part = masks[(masks["swap"] == swap) & masks["taken"]]
        for which, marker, size, colour in (("base", "s", 90, BASE), ("tuned", "x", 40, TUNED)):
            own = part[part["model"] == which]
            face = {"facecolors": "none"} if marker == "s" else {}
            ax.scatter(
                own["head"], own["layer"], marker=marker, s=size, label=which, linewidths=1.6,
                **({"edgecolors": colour} if marker == "s" else {"color": colour}), **face,
            )  # fmt: skip
        ax.set(
            xlabel="head", xlim=(-0.6, masks["head"].max() + 0.6),
            ylim=(-0.6, masks["layer"].max() + 0.6),
        )  # fmt: skip
        ax.set_yticks(range(int(masks["layer"].max()) + 1))
        ax.set_title(swap, fontsize=10)
    axes[0][0].set_ylabel("layer")
    axes[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
