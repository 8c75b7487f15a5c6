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


def sae_cost(tuning: pd.DataFrame) -> Figure:
    """What the SAE costs in KL before the tuning and after it, on each kind of dev texts."""
    import matplotlib.pyplot as plt

    shown = tuning[tuning["kl with SAE"] > 1e-6]
    kinds = shown["texts"].unique()
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(4.2 * len(kinds) + 1.2, 2.6), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, kind in zip(axes[0], kinds, strict=True):
        rows = shown[shown["texts"] == kind].iloc[::-1]
        for at, (before, after) in enumerate(
            zip(rows["kl with SAE"], rows["kl with SAE after"], strict=True)
        ):
            ax.plot([before, after], [at, at], color="0.7", lw=2, zorder=1)
            ax.plot(before, at, "o", mfc="white", mec="#0072B2")
            ax.plot(after, at, "o", color="#0072B2")
        ax.set_yticks(range(len(rows)), rows["condition"])
        ax.set_xscale("log")
        ax.set_title(f"{kind} answers" if kind == "bare" else f"{kind} solutions", fontsize=10)
        ax.set_xlabel("KL with the SAE in place, nats a token")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def settings(table: pd.DataFrame) -> Figure:
    """Gain on dev problems of each setting and layer."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 0.3 * len(table) + 1), layout="constrained")
    rows = table.iloc[::-1]
    points = 100 * rows[["dev_gain", "dev_gain_low", "dev_gain_high"]].to_numpy()
    for at, (mean, low, high) in enumerate(points):
        ax.plot([low, high], [at, at], color="#0072B2", lw=2)
        ax.plot(mean, at, "o", color="#0072B2")
    ax.axvline(0, color="0.5", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), rows["setting"])
    ax.set_xlabel("dev problems solved over the target as it is, points")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
