"""Figures of the shortcut-neurons study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a marker each.
STYLES = {
    "in-distribution": ("#0072B2", "s"),
    "off-distribution": ("#D55E00", "o"),
    "counter": ("#7f7f7f", "^"),
}


def gains(summary: pd.DataFrame) -> Figure:
    """Change in accuracy of each method on each set, with intervals."""
    import matplotlib.pyplot as plt

    methods = [m for m in dict.fromkeys(summary["method"]) if m != "as it is"]
    figure, ax = plt.subplots(figsize=(7.6, 0.55 * len(methods) + 1.6), layout="constrained")
    for offset, (name, (colour, marker)) in zip((-0.2, 0.0, 0.2), STYLES.items(), strict=True):
        part = summary[(summary["set"] == name)].set_index("method").reindex(methods)
        places = [i + offset for i in range(len(methods))]
        low, high = part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]
        ax.errorbar(
            part["gain"],
            places,
            xerr=[low.clip(lower=0), high.clip(lower=0)],
            fmt=marker,
            color=colour,
            label=name,
            markersize=5,
            capsize=2,
        )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(methods)), [m.replace("_", " ") for m in methods])
    ax.invert_yaxis()
    ax.set_xlabel("change in accuracy")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def layer_by_percent(maps: pd.DataFrame) -> Figure:
    """Gain on dev by layer and percentage, mean over seeds; chosen settings framed."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    grid = maps.pivot_table(index="layer", columns="percent", values="gain", aggfunc="mean")
    figure, ax = plt.subplots(figsize=(6.2, 0.45 * len(grid) + 1.6), layout="constrained")
    limit = max(float(grid.abs().to_numpy().max()), 0.01)
    image = ax.imshow(grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    ax.set_xticks(range(len(grid.columns)), [f"{p:g}" for p in grid.columns])
    ax.set_yticks(range(len(grid.index)), [str(layer) for layer in grid.index])
    for row in maps[maps["chosen"]].itertuples():
        x, y = list(grid.columns).index(row.percent), list(grid.index).index(row.layer)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, linewidth=2))
    ax.set(xlabel="% of the layer's neurons pruned", ylabel="layer")
    figure.colorbar(image, ax=ax, label="gain in dev accuracy", pad=0.01)
    return figure
