"""Figures of a lens trace, in matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from interp._lens_trace import LensTrace


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _shown(text: str) -> str:
    """A token as it can stand in a figure: spaces visible, no markup read as mathematics."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("$", r"\$") or "∅"


def draw_lines(trace: LensTrace, rows: list[int], ax: Axes | None) -> Axes:
    """P(answer) by layer at one position, with the top token written under each layer."""
    row = rows[0]
    ax = _axes(ax, max(5.0, 0.55 * trace.n_layers), 3.4)
    for index, answer in enumerate(trace.answers[row]):
        ax.plot(trace.prob[row, :, index], marker="o", label=f"P({_shown(answer)})")
    tops = [trace.tokens[int(token)] for token in trace.top_token[row, :, 0]]
    labels = [f"{layer}\n{_shown(top)[:9]}" for layer, top in enumerate(tops)]
    ax.set_xticks(range(trace.n_layers), labels, fontsize=8)
    ax.set(xlabel="layer (0 the embedding), and its top token", ylabel="probability")
    ax.set_ylim(-0.03, 1.03)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_heat_map(trace: LensTrace, rows: list[int], ax: Axes | None) -> Axes:
    """Layer x position: the colour is the top token's probability, the text is the token."""
    n = len(rows)
    ax = _axes(ax, max(5.0, 0.75 * n + 1.5), max(3.0, 0.32 * trace.n_layers + 1.2))
    probs = trace.top_logprob[rows, :, 0].exp().T
    image = ax.imshow(probs, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1)
    for column, row in enumerate(rows):
        for layer in range(trace.n_layers):
            text = trace.tokens[int(trace.top_token[row, layer, 0])]
            colour = "white" if probs[layer, column] > 0.6 else "black"
            ax.text(column, layer, _shown(text)[:7], ha="center", va="center", fontsize=7, c=colour)
    names = [_shown(trace.tokens[int(trace.token[row])])[:9] for row in rows]
    ax.set_xticks(range(n), names, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(trace.n_layers))
    ax.set(xlabel="token read", ylabel="layer (0 the embedding)")
    ax.figure.colorbar(image, ax=ax, label="probability of the top token", pad=0.01)
    return ax
