"""Figures of the superficial-edits study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and by line style in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#7f7f7f")
_STYLES = ("-", "--", "-.", ":")


def trace(table: pd.DataFrame) -> Figure:
    """Causal tracing by layer: a panel for each position, a line for each kind of state."""
    names = {"resid_post": "stream after the block", "mlp_out": "MLP output",
             "attn_out": "attention output"}  # fmt: skip
    titles = {"subject_last": "the subject's last token", "last": "the prompt's last token"}
    figure, axes = _panels(len(titles))
    for ax, (position, title) in zip(axes, titles.items(), strict=True):
        part = table[table["position"] == position]
        for number, (kind, label) in enumerate(names.items()):
            _line(ax, part[part["site"] == kind], "effect", number, label)
        ax.set_title(title, fontsize=11)
    return _finished(figure, axes, "gain in P(answer)")


def attacks(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """OM of all attacks together beside its controls, for each model."""
    shown = {"OM": "old answer comes back", "OM, no mention": "… after a text without any value",
             "OM, decoy": "a decoy is said instead", "new kept": "new answer kept"}  # fmt: skip
    import matplotlib.pyplot as plt

    pooled = table[table["attack"] == "all"].set_index(["model", "quantity"])
    figure, ax = plt.subplots(figsize=(1.7 * len(models) + 2.5, 3.9), layout="constrained")
    for number, (quantity, label) in enumerate(shown.items()):
        for place, model in enumerate(models):
            if (model, quantity) not in pooled.index:
                continue
            row = pooled.loc[(model, quantity)]
            error = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            ax.errorbar(
                place + 0.17 * (number - 1.5), row["mean"], yerr=error, fmt="osD^"[number], ms=6,
                color=_COLOURS[number], capsize=3, label=label if place == 0 else None,
            )  # fmt: skip
    ax.set_xticks(range(len(models)), models)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of attacked prompts")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def reversal(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """The gain in P(old) from each patch, by layer; thin lines are donors without a mention."""
    positions = ("subject_last", "last", "random", "first")
    figure, axes = _panels(len(models), width=3.3)
    for ax, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        for number, position in enumerate(positions):
            at = part[part["position"] == position]
            label = position.replace("_", ", ")
            _line(ax, at[at["mention"] == "old"], "gain", number, label)
            control = at[at["mention"] == "none"].sort_values("layer")
            ax.plot(control["layer"], control["gain"], _STYLES[number], lw=0.8,
                    color=_COLOURS[number], alpha=0.7)  # fmt: skip
        ax.set_title(model, fontsize=11)
    return _finished(figure, axes, "gain in P(old answer)")


def modules(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """What attention and MLP add to the lens's P(old) at the last position of attacks."""
    figure, axes = _panels(len(models), width=3.3)
    for ax, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        for number, module in enumerate(("attention", "MLP")):
            _line(ax, part[part["module"] == module], "gain", number, module)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_title(model, fontsize=11)
    return _finished(figure, axes, "change in the lens's P(old)")


def heads(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Mean LOPH of the old answer under attack, by layer and head, on even cases."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(models), figsize=(2.9 * len(models) + 1, 3.2), squeeze=False, layout="constrained"
    )
    even = table[table["case"] % 2 == 0]
    means = even.groupby(["model", "layer", "head"])["old"].mean()
    top = max(0.1, float(means.max()))
    image: Any = None
    for ax, model in zip(axes[0], models, strict=True):
        grid = means.loc[model].unstack("head")
        image = ax.imshow(grid.to_numpy(), cmap="viridis", vmin=0, vmax=top, aspect="auto")
        ax.set_title(model, fontsize=11)
        ax.set_xlabel("head")
        ax.set_xticks(range(grid.shape[1]), grid.columns)
        ax.set_yticks(range(grid.shape[0]), grid.index)
    axes[0][0].set_ylabel("layer")
    figure.colorbar(image, ax=axes[0], label="LOPH of the old answer")
    return figure


def ablations(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """The change in P(old) and P(new) when heads or vectors are removed under attack."""
    order = ["heads", "random heads", "10 %", "random 10 %", "5 %", "random 5 %"]
    figure, axes = _panels(len(models), width=3.3)
    for ax, model in zip(axes, models, strict=True):
        part = table[table["model"] == model].set_index(["removed", "answer"])
        for number, answer in enumerate(("old", "new")):
            for place, removed in enumerate(order):
                if (removed, answer) not in part.index:
                    continue
                row = part.loc[(removed, answer)]
                error = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
                ax.errorbar(
                    row["mean"], place + 0.2 * (number - 0.5), xerr=error, fmt="os"[number],
                    color=_COLOURS[number], capsize=2, ms=5,
                    label=f"{answer} answer" if place == 0 else None,
                )  # fmt: skip
        ax.axvline(0, color="black", lw=0.6)
        ax.set_yticks(range(len(order)), order)
        ax.invert_yaxis()
        ax.set_title(model, fontsize=11)
        ax.set_xlabel("change in probability")
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panels(count: int, width: float = 4.2) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(width * count + 0.5, 3.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    return figure, axes[0]


def _line(ax: Axes, part: pd.DataFrame, column: str, number: int, label: str) -> None:
    line = part.sort_values("layer")
    if not len(line):
        return
    ax.plot(line["layer"], line[column], _STYLES[number], color=_COLOURS[number], marker="o", ms=4,
            label=label)  # fmt: skip
    ax.fill_between(
        line["layer"], line["low"], line["high"], color=_COLOURS[number], alpha=0.15, lw=0
    )


def _finished(figure: Figure, axes: Any, label: str) -> Figure:
    for ax in axes:
        ax.set_xlabel("layer")
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
