"""Figures of the sae-tuning study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def conditions(table: pd.DataFrame, models: pd.DataFrame) -> Figure:
    """Share of samples solved under each condition, between target and source."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 0.5 * len(table) + 1.2), layout="constrained")
    at = models.set_index("model")["accuracy"]
    for name, colour in (("target", "0.5"), ("source", "#009E73")):
        ax.axvline(at[name], color=colour, linestyle="--", linewidth=1)
        ax.annotate(
            f"{name} {at[name]:.2f}", (at[name], 1.01), xycoords=("data", "axes fraction"),
            ha="center", fontsize=8, color=colour,
        )  # fmt: skip
    for row, one in enumerate(table.iloc[::-1].itertuples()):
        colour = "#0072B2" if one.condition.startswith("source") else "#7f7f7f"
        ax.plot([one.accuracy_low, one.accuracy_high], [row, row], color=colour, lw=2)
        ax.plot(one.accuracy, row, "o", color=colour)
    ax.set_yticks(range(len(table)), table.iloc[::-1]["condition"])
    ax.set_xlabel("share of samples solved, 95 % over problems")
    ax.set_xlim(0, 1)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def features(table: pd.DataFrame) -> Figure:
    """Latents at both markers only, a layer, beside all other pairs of tokens."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    ax.bar(table["layer"] - 0.2, table["features"], 0.4, color="#0072B2", label="the markers")
    ax.bar(table["layer"] + 0.2, table["null"], 0.4, color="0.7", label="other pairs, mean")
    ax.plot(table["layer"] + 0.2, table["null_95"], "k_", ms=14, label="other pairs, 95 %")
    ax.set_xlabel("layer")
    ax.set_ylabel("latents at both tokens only")
    ax.set_xticks(table["layer"])
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
