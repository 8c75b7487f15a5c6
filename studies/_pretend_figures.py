"""Figures of the pretend-to-forget study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and by line style in print.
STYLES = {
    "answer": ("#0072B2", "-", "true answer"),
    "forgotten": ("#D55E00", "--", "“forgot”"),
    "another's answer": ("#7f7f7f", ":", "another person's answer (null)"),
}
TITLES = {"base": "base", "tuned": "after unlearning"}


def curves(layers: pd.DataFrame, lenses: list[str]) -> Figure:
    """P(answer), P(forgot) and the null by layer: a row for each model, a column for each lens."""
    return _panels(layers, lenses, "prob", "probability", list(STYLES))


def readable(layers: pd.DataFrame, lenses: list[str]) -> Figure:
    """How often the answer is the lens's top token, beside the null."""
    who = ["answer", "another's answer"]
    return _panels(layers, lenses, "on top", "share of prompts with it on top", who)


def _panels(
    layers: pd.DataFrame, lenses: list[str], quantity: str, label: str, who: list[str]
) -> Figure:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2,
        len(lenses),
        figsize=(4.6 * len(lenses) + 0.4, 5.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    chosen = layers[layers["quantity"] == quantity]
    for row, side in enumerate(("base", "tuned")):
        for column, lens in enumerate(lenses):
            ax = axes[row][column]
            here = chosen[(chosen["model"] == side) & (chosen["lens"] == lens)]
            for name in who:
                colour, style, text = STYLES[name]
                line = here[here["who"] == name].sort_values("layer")
                ax.plot(
                    line["layer"], line["mean"], style, color=colour, marker="o", ms=4, label=text
                )
                ax.fill_between(
                    line["layer"], line["low"], line["high"], color=colour, alpha=0.18, lw=0
                )
            ax.set_title(f"{TITLES[side]}, {lens} lens", fontsize=11)
            ax.set_ylim(-0.03, 1.03)
            ax.spines[["top", "right"]].set_visible(False)
            ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[-1]:
        ax.set_xlabel("layer (0 embedding, last: output)")
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    handles, texts = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(who), frameon=False)
    return figure
