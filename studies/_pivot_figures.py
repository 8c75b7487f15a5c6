"""Figures of the pivot study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studies._pivot_causes import CONDITIONS
from studies._pivot_measures import WHO

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette; nulls are grey.
COLOURS = dict(zip(WHO, ("#0072B2", "#D55E00", "#009E73", "#7f7f7f", "#b0b0b0"), strict=True))
STYLES = dict(zip(WHO, ("o-", "s-", "^-", "v:", "x:"), strict=True))
NAMES = {"trained": "taught pairs", "held_out": "held-out pairs"}


def profiles(table: pd.DataFrame) -> Figure:
    """Probability by layer of target, pivot, source and two nulls, by model and split."""
    import matplotlib.pyplot as plt

    models, splits = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["split"]))
    figure, axes = plt.subplots(
        len(models), len(splits), figsize=(4.2 * len(splits) + 1.4, 2.6 * len(models) + 0.4),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, model in zip(axes, models, strict=True):
        for ax, split in zip(row, splits, strict=True):
            part = table[(table["model"] == model) & (table["split"] == split)]
            for who in WHO:
                line = part[part["who"] == who]
                ax.fill_between(
                    line["layer"], line["low"], line["high"], color=COLOURS[who], alpha=0.15, lw=0
                )
                ax.plot(line["layer"], line["mean"], STYLES[who], color=COLOURS[who], ms=4)
            ax.set_title(f"{model}: {NAMES.get(split, split)}", fontsize=10)
            ax.set_ylim(-0.03, 1.03)
            ax.spines[["top", "right"]].set_visible(False)
            ax.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel("probability (logit lens)")
    for ax in axes[-1]:
        ax.set_xlabel("layer (0: embedding)")
    handles = [
        plt.Line2D([], [], color=COLOURS[who], marker=STYLES[who][0], ls=STYLES[who][1:])
        for who in WHO
    ]
    figure.legend(handles, WHO, loc="outside right center", frameon=False)
    return figure


def causes(table: pd.DataFrame) -> Figure:
    """What ablating (top) and exchanging (bottom) do at each site, with intervals over concepts."""
    import matplotlib.pyplot as plt

    splits = list(dict.fromkeys(table["split"]))
    figure, axes = plt.subplots(
        2, len(splits), figsize=(4.2 * len(splits) + 1.4, 5.4), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    labels = {"ablated": "target's log-prob", "exchanged": "partner's target's log-prob"}
    colours = dict(zip(CONDITIONS, ("#D55E00", "#7f7f7f", "#b0b0b0"), strict=True))
    for row, (what, label) in zip(axes, labels.items(), strict=True):
        for ax, split in zip(row, splits, strict=True):
            part = table[(table["what"] == what) & (table["split"] == split)]
            sites = list(dict.fromkeys(part["site"]))
            for offset, condition in zip((-0.2, 0.0, 0.2), CONDITIONS, strict=True):
                line = part[part["condition"] == condition].set_index("site").reindex(sites)
                ax.errorbar(
                    [i + offset for i in range(len(sites))], line["mean"],
                    yerr=[line["mean"] - line["low"], line["high"] - line["mean"]],
                    fmt="o", color=colours[condition], ms=5, capsize=2, label=condition,
                )  # fmt: skip
            ax.axhline(0, color="black", lw=0.8)
            ax.set_title(f"{what}: {NAMES.get(split, split)}", fontsize=10)
            ax.set_xticks(range(len(sites)), sites, rotation=20)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"change of the\n{label} (nats)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    return figure
