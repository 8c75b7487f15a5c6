"""Figures of the who-forgets study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from studies._who_forgets_measures import NO_STYLE, PREDICTORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a marker each, so that print and colour-blind readers can follow.
LOOKS = {
    "sft": ("#D55E00", "o"), "rl": ("#0072B2", "s"), "sft_rl": ("#009E73", "^"),
    "sft_midfrozen": ("#CC79A7", "D"), "sft_qk": ("#E69F00", "v"),
}  # fmt: skip
NAMES = {"sft": "SFT", "rl": "RL", "sft_rl": "SFT, then RL",
         "sft_midfrozen": "SFT, middle MLPs frozen", "sft_qk": "SFT of q and k"}  # fmt: skip
_OTHER = ("#000000", "P")
_LINES = ("-", "--", ":", "-.")
_SHOWN = ("forward", "own_reverse", "tv", "l2", "spectral", "changed", "gain", "step")


def trade(checkpoints: pd.DataFrame, noise: pd.DataFrame) -> Figure:
    """What is lost against what is gained, a line a run: in nats and in accuracy; noise beside."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.4), sharex=True, layout="constrained")
    base = checkpoints[checkpoints["run"] == "base"].iloc[0]
    at = noise.set_index("checkpoint")
    for ax, name in zip(axes, ("nats", "accuracy"), strict=True):
        ax.axhline(0, color="0.8", linewidth=1, zorder=0)
        for _, rows in checkpoints[checkpoints["run"] != "base"].groupby("run", sort=False):
            rows = rows.sort_values("step")
            method, seed = rows["method"].iloc[0], int(rows["seed"].iloc[0])
            colour, marker = LOOKS.get(method, _OTHER)
            x = [base["new"], *rows["new"]] if method != "sft_rl" else list(rows["new"])
            y = rows[f"lost_{name}"].to_numpy()
            ax.plot(x, [0.0, *y] if method != "sft_rl" else y, color=colour, lw=1,
                    linestyle=_LINES[seed % 4], alpha=0.6)  # fmt: skip
            ax.errorbar(
                rows["new"], y, yerr=_bars(rows, f"lost_{name}"), linestyle="none", color=colour,
                marker=marker, ms=5, capsize=2, elinewidth=0.8, mfc=colour if not seed else "none",
                label=NAMES.get(method, method) + (f", seed {seed}" if seed else ""),
            )  # fmt: skip
            last = rows.iloc[-1]
            if last["checkpoint"] in at.index:
                ax.plot(last["new"], at.loc[last["checkpoint"], f"noise_{name}"], "x", color=colour,
                        ms=7, zorder=3)  # fmt: skip
        ax.set_xlabel("new task: share of samples solved (T = 1)")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].plot([], [], "x", color="0.4", label="noise of the last one's norm")
    axes[0].set_ylabel("old tasks: nats lost an answer")
    axes[1].set_ylabel("old tasks: accuracy lost (−FM)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    return figure


def tasks(by_task: pd.DataFrame, shown: list[str]) -> Figure:
    """Nats lost an answer by task, for some checkpoints side by side."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(by_task["task"]))
    figure, ax = plt.subplots(figsize=(9.6, 0.55 * len(names) + 1.6), layout="constrained")
    places = np.arange(len(names))[::-1].astype(float)
    ax.axvline(0, color="0.8", linewidth=1, zorder=0)
    for number, checkpoint in enumerate(shown):
        rows = by_task[by_task["checkpoint"] == checkpoint].set_index("task").loc[names]
        method = rows["method"].iloc[0]
        colour, marker = LOOKS.get(method, _OTHER)
        first = not any(m == method for m in _methods(by_task, shown[:number]))
        ax.errorbar(
            rows["nats"], places + 0.3 - 0.6 * number / max(1, len(shown) - 1),
            xerr=_bars(rows, "nats"), linestyle="none", color=colour, marker=marker, ms=4.5,
            capsize=2, elinewidth=0.8, mfc=colour if first else "none", label=checkpoint,
        )  # fmt: skip
    ax.set_yticks(places, names)
    ax.set_xlabel("nats lost an answer")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _methods(by_task: pd.DataFrame, shown: list[str]) -> list[str]:
    return [by_task["method"][by_task["checkpoint"] == name].iloc[0] for name in shown]


def predictors(checkpoints: pd.DataFrame, fit: pd.DataFrame) -> Figure:
    """Nats lost against each predictor with the quadratic fit over all checkpoints."""
    import matplotlib.pyplot as plt

    trained = checkpoints[checkpoints["run"] != "base"]
    r2 = fit.set_index("predictor")["r2"]
    shown = [name for name in _SHOWN if PREDICTORS[name] in r2.index]
    figure, axes = plt.subplots(2, 4, figsize=(12.4, 6.2), sharey=True, layout="constrained")
    for ax, name in zip(axes.flat, shown, strict=False):
        x, y = trained[name].to_numpy(dtype=float), trained["lost_nats"].to_numpy(dtype=float)
        grid = np.linspace(x.min(), x.max(), 100)
        ax.plot(grid, np.polynomial.Polynomial.fit(x, y, 2)(grid), color="0.5", lw=1)
        for method, rows in trained.groupby("method", sort=False):
            colour, marker = LOOKS.get(str(method), _OTHER)
            ax.plot(rows[name], rows["lost_nats"], marker, color=colour, ms=5,
                    label=NAMES.get(str(method), method))  # fmt: skip
        label = PREDICTORS[name]
        ax.set_title(f"{label}: R² = {r2[label]:.2f}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes.flat)[len(shown) :]:
        ax.axis("off")
    for row in axes:
        row[0].set_ylabel("nats lost an answer")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5,
                  frameon=False)  # fmt: skip
    return figure


def explained(fit: pd.DataFrame) -> Figure:
    """R² of every predictor with its interval over runs, left-out R², and shuffled checkpoints."""
    import matplotlib.pyplot as plt

    rows = fit.sort_values("r2").reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(7.6, 0.36 * len(rows) + 1.4), layout="constrained")
    y = np.arange(len(rows))
    kl = rows["predictor"].str.contains("KL|variation")
    control = rows["predictor"].isin([PREDICTORS["gain"], PREDICTORS["step"]])
    for chosen, colour, label in (
        (kl, "#0072B2", "on the new task"), (~kl & ~control, "#D55E00", "of weights"),
        (control, "0.45", "control"),
    ):  # fmt: skip
        some = rows[chosen]
        ax.errorbar(some["r2"], y[chosen], xerr=_bars(some, "r2", "low", "high"), color=colour,
                    linestyle="none", marker="o", capsize=2, label=label)  # fmt: skip
    ax.plot(rows["r2_left_out"].clip(lower=-0.5), y, "|", color="black", ms=10,
            label="runs left out (−0.5 or less at the edge)")  # fmt: skip
    ax.plot(rows["r2_null"], y, "x", color="0.6", ms=5, label="shuffled checkpoints, mean")
    ax.set_yticks(y, list(rows["predictor"]))
    ax.set_xlim(-0.55, 1.02)
    ax.set_xlabel("R² of a quadratic fit of the nats lost")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def partial(pairs: pd.DataFrame) -> Figure:
    """Partial trainings minus the whole one: gain on the new task, and nats lost."""
    import matplotlib.pyplot as plt

    pairs = pairs.drop_duplicates(["one", "other"])
    figure, axes = plt.subplots(
        1, 2, figsize=(9.8, 0.6 * len(pairs) + 1.3), sharey=True, layout="constrained"
    )
    y = np.arange(len(pairs))[::-1]
    for ax, name, title in zip(
        axes, ("new", "nats"), ("new task: share of samples solved", "old tasks: nats lost"),
        strict=True,
    ):  # fmt: skip
        ax.axvline(0, color="0.8", linewidth=1, zorder=0)
        for place, (_, row) in zip(y, pairs.iterrows(), strict=True):
            colour, marker = LOOKS.get(row["method"], _OTHER)
            bars = [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
            ax.errorbar([row[name]], [place], xerr=bars, color=colour, marker=marker, capsize=2)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("difference")
        ax.locator_params(axis="x", nbins=5)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(y, [f"{r.one} − {r.other}\n({r.why})" for r in pairs.itertuples()],
                       fontsize=8)  # fmt: skip
    axes[0].set_ylim(-0.5, len(pairs) - 0.5)
    return figure


def styles(table: pd.DataFrame, checkpoints: pd.DataFrame) -> Figure:
    """Share of each style over steps, a panel a run."""
    import matplotlib.pyplot as plt

    trained = checkpoints[checkpoints["run"] != "base"]
    runs = [run for run, rows in trained.groupby("run", sort=False) if len(rows) > 1]
    runs = runs or list(dict.fromkeys(trained["run"]))
    names = [s for s in dict.fromkeys(table["style"]) if s != NO_STYLE]
    colours = dict(zip(names, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False))
    wide = min(3, len(runs))
    tall = -(-len(runs) // wide)
    figure, axes = plt.subplots(tall, wide, figsize=(3.5 * wide, 2.7 * tall), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    for ax, run in zip(axes.flat, runs, strict=False):
        rows = trained[trained["run"] == run].sort_values("step")
        after_sft = rows["method"].iloc[0] == "sft_rl"
        steps = rows["step"].tolist() if after_sft else [0, *rows["step"]]
        where = list(rows["checkpoint"]) if after_sft else ["base", *rows["checkpoint"]]
        for style in names:
            at = table[table["style"] == style].set_index("checkpoint").reindex(where)
            at = at.fillna({"share": 0.0, "share_low": 0.0, "share_high": 0.0})
            ax.errorbar(steps, at["share"], yerr=_bars(at, "share"), color=colours[style],
                        marker="o", ms=4, lw=1.2, capsize=2, label=style)  # fmt: skip
        ax.set_title(run, fontsize=10)
        ax.set_xlabel("step")
        ax.set_ylim(-0.03, 1.03)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes.flat)[len(runs) :]:
        ax.axis("off")
    for row in axes:
        row[0].set_ylabel("share of samples")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def _bars(rows: pd.DataFrame, name: str, low: str = "", high: str = "") -> list[Any]:
    """Lengths below and above, zero where there is no interval."""
    under = rows[name] - rows[low or f"{name}_low"]
    over = rows[high or f"{name}_high"] - rows[name]
    return [side.fillna(0).clip(lower=0).to_numpy(dtype=float) for side in (under, over)]
