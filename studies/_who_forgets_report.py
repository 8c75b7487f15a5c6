"""The sections of the who-forgets report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studies import _who_forgets_figures as figures
from studies._report import Section
from studies._run import Run
from studies._who_forgets_measures import NO_STYLE
from studies._who_forgets_verdict import MATCHED, NAMES

if TYPE_CHECKING:
    import pandas as pd


def sections(folder: Run, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """From what is lost to what predicts it."""
    found = [_trade(folder, tables), _side_by_side(folder, tables), _noise(tables["noise"])]
    if "fit" in tables:
        found.append(_razor(folder, tables))
    partial = _of_partial(tables["pairs"])
    if len(partial):
        found.append(_partial(folder, partial))
    if "styles" in tables:
        found.append(_styles(folder, tables))
    return [*found, _old_tasks(tables["tasks"]), _misleading()]


def _trade(folder: Run, tables: dict[str, pd.DataFrame]) -> Section:
    drawn = folder.figure("trade", lambda: figures.trade(tables["checkpoints"], tables["noise"]))
    keys = ["new", "lost_nats", "lost_nats_known", "lost_accuracy"]
    shown = readable(tables["checkpoints"], ["checkpoint"], keys, places=4)
    return Section(
        "What is gained and what is lost",
        [
            "New: share of sampled solutions of the new task that are right. Lost: before minus "
            "after, mean over the old tasks; of the answer's log-prob in nats, of that of answers "
            "that the base got right, and of accuracy, which is minus the forgetting measure FM of "
            "two stages. Below zero, something was gained. Intervals are a bootstrap over people, "
            "words and problems."
        ],
        shown,
        [(drawn, "One line a run, from the base; crosses: noise of the last one's norm.")],
    )


def _side_by_side(folder: Run, tables: dict[str, pd.DataFrame]) -> Section:
    pairs, by_task = tables["pairs"], tables["by_task"]
    rows = pairs[pairs["method"].isin(NAMES)] if len(pairs) else pairs
    chosen = [name for r in rows.itertuples() for name in (r.one, r.other)]
    shown = list(dict.fromkeys(chosen or by_task.drop_duplicates("run", keep="last")["checkpoint"]))
    drawn = folder.figure("tasks", lambda: figures.tasks(by_task, shown))
    table = by_task[by_task["checkpoint"].isin(shown)]
    columns = ["before", "after", "negative_flips", "positive_flips", "gap", "ratio", "nats"]
    return Section(
        "Task by task, at the nearest accuracy on the new task",
        [
            "The last checkpoint of RL (and of SFT, then RL) beside the checkpoint of SFT whose "
            "accuracy on the new task is nearest. Negative flips: share of questions that were "
            "right and are wrong. Gap: accuracy over chance; ratio: share of what was above chance "
            "that is lost. Nats: log-prob lost an answer."
        ],
        readable(table, ["checkpoint", "task", "items"], columns),
        [(drawn, "Log-prob lost an answer by task, with 95 % intervals over groups.")],
    )


def _noise(noise: pd.DataFrame) -> Section:
    keys = ["noise_nats", "beyond_nats", "noise_accuracy", "beyond_accuracy"]
    return Section(
        "Beside noise of the same norm",
        [
            "The base plus isotropic Gaussian noise that has, tensor by tensor, the norm of the "
            "checkpoint's own change, stored as the base is: what a change of that size loses by "
            "itself. Beyond: lost by the checkpoint minus lost by noise, question by question."
        ],
        readable(noise, ["checkpoint", "draws"], keys, places=4),
    )


def _razor(folder: Run, tables: dict[str, pd.DataFrame]) -> Section:
    points = folder.figure(
        "predictors", lambda: figures.predictors(tables["checkpoints"], tables["fit"])
    )
    r2 = folder.figure("r2", lambda: figures.explained(tables["fit"]))
    return Section(
        "What predicts it (2509.04259)",
        [
            "Quadratic fits of the nats lost over all checkpoints. Forward KL(base ‖ tuned), "
            "reverse KL and total variation are per token on solutions that the base sampled; "
            "“own samples” on the checkpoint's. Weights: norm of the change over norm of the base "
            "(L2, L1), mean over matrices of spectral norms and of the shift of singular values "
            "(NSS), share of entries that bfloat16 sees change. Fisher-weighted distances and "
            "activations were not measured.",
            "Intervals resample runs; “r2 left out” predicts each run from the others. Checkpoints "
            "of one run are not independent, so the shuffled null is too easy to beat: the honest "
            "rivals are steps and gain, which know nothing of either.",
        ],
        tables["fit"].drop(columns=["checkpoints", "groups"]),
        [
            (points, "One point a checkpoint; the curve is the fit over all."),
            (r2, "R² with intervals over runs."),
        ],
    )


def _partial(folder: Run, partial: pd.DataFrame) -> Section:
    drawn = folder.figure("partial", lambda: figures.partial(partial))
    return Section(
        "Training some weights only (2507.10616)",
        [
            "SFT with the MLPs of the middle layers frozen, and SFT of query and key projections "
            "alone, minus SFT of all weights: at the same number of steps, and at the nearest "
            "accuracy on the new task, where less learnt is no explanation."
        ],
        readable(partial, ["one", "other", "why"], ["new", "nats", "accuracy"], places=4),
        [(drawn, "Partial training minus the whole.")],
    )


def _styles(folder: Run, tables: dict[str, pd.DataFrame]) -> Section:
    styles, checkpoints = tables["styles"], tables["checkpoints"]
    drawn = folder.figure("styles", lambda: figures.styles(styles, checkpoints))
    entropy = checkpoints[["checkpoint", "entropy", "entropy_low", "entropy_high"]]
    shown = readable(
        styles[(styles["style"] != NO_STYLE) | (styles["solutions"] > 0)],
        ["checkpoint", "style", "solutions"], ["share", "accuracy"],
    )  # fmt: skip
    shown["entropy of the checkpoint's styles"] = shown["checkpoint"].map(
        readable(entropy, ["checkpoint"], ["entropy"]).set_index("checkpoint")["entropy"]
    )
    return Section(
        "Written styles (2504.07912)",
        [
            "Of the solutions sampled at T = 1: share of each style by its first step, and how "
            "many of those are right. SFT was taught one style by its data; RL was asked for none."
        ],
        shown,
        [(drawn, "Share of each style over steps, with 95 % intervals over problems.")],
    )


def _old_tasks(known: pd.DataFrame) -> Section:
    return Section(
        "Which old tasks count",
        [
            "Kept is what the base does above chance, by its 95 % interval: what it cannot do "
            "cannot be forgotten."
        ],
        known,
    )


def _misleading() -> Section:
    return Section(
        "How this could mislead",
        [
            "The new task was already part of the base's training, in all its styles: SFT and RL "
            "here sharpen what is known more than they teach. Larger models on new domains may "
            "forget far more.",
            "A claim must hold in every pair of runs by its own interval over people; two seeds "
            "say little about their spread, and the nearest checkpoint was chosen by an accuracy "
            "that is itself uncertain: look at the difference of accuracies that is left.",
            "A partial training moves fewer weights, in whatever place: without a training that "
            "froze as many others, less forgetting says nothing about these layers. One seed of "
            "each: compare the difference with that between two seeds of the whole training.",
            "A mean of log-probs counts answers that were never right, too; the column of those "
            "that the base got right stands beside it.",
            "SFT and RL differ in data, steps and tokens seen; the same accuracy is one way to "
            f"put them side by side ({MATCHED}), the same KL would be another: see the fits.",
        ],
    )


def _of_partial(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs[~pairs["method"].isin(NAMES)] if len(pairs) else pairs


def readable(
    table: pd.DataFrame, keys: list[str], quantities: list[str], places: int = 3
) -> pd.DataFrame:
    """Keys, and quantities with their intervals as text."""
    shown = table[keys].copy()
    for name in quantities:
        cells = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        shown[name.replace("_", " ")] = [
            "–" if mean != mean
            else f"{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
            for mean, low, high in cells
        ]  # fmt: skip
    return shown
