"""The figure of `Forgetting`: by layer, what still holds the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probes._forgetting_record import Forgetting

# Okabe and Ito's palette, with line styles for print: (reading, who) -> colour, style, label.
LINES = {
    ("base_lens", "answer"): ("#7f7f7f", "-", "lens, base"),
    ("tuned_lens", "answer"): ("#0072B2", "-", "lens, tuned"),
    ("tuned_probe", "answer"): ("#D55E00", "-", "probe, tuned"),
    ("shuffled_probe", "answer"): ("#D55E00", ":", "probe, shuffled labels"),
    ("random_probe", "answer"): ("#D55E00", "--", "probe, untrained model"),
    ("recover", "answer"): ("#009E73", "-", "base goes on from the tuned stream"),
    ("restore", "answer"): ("#CC79A7", "-", "tuned goes on from the base's last position"),
    ("restore_other", "answer"): ("#CC79A7", ":", "the same from another fact"),
    ("destroy", "answer"): ("#E69F00", "--", "base goes on from the tuned last position"),
}


def draw(found: Forgetting, ax: Axes | None, of: str, top: int) -> Axes:
    """Share of facts whose answer is within `top`, by layer and reading."""
    from matplotlib.ticker import MaxNLocator

    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(8.4, 4.0), layout="constrained")[1]
    table = found.layers(of, top=top)
    table = table[table["quantity"] == "top"]
    for (reading, who), (colour, style, label) in LINES.items():
        here = table[(table["reading"] == reading) & (table["who"] == who)].sort_values("layer")
        if len(here):
            ax.plot(here["layer"], here["mean"], style, color=colour, marker="o", ms=3, label=label)
            low, high = here["low"].fillna(here["mean"]), here["high"].fillna(here["mean"])
            ax.fill_between(here["layer"], low, high, color=colour, alpha=0.13, lw=0)
    if len(table):
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.text(0.5, 0.5, f"no {of} facts", ha="center", va="center", transform=ax.transAxes)
    ax.set(xlabel="layer (0 embedding)", ylabel=f"share of {of} facts", ylim=(-0.03, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    return ax
