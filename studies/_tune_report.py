"""A tune-what-matters run in words, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studies import _tune_figures as figures
from studies import _tune_noise as noise
from studies._report import Section
from studies._run import Run

if TYPE_CHECKING:
    import pandas as pd

    from studies.tune_what_matters import TuneWhatMatters


def verdict(
    summary: pd.DataFrame, claimed: pd.DataFrame, broken: pd.DataFrame, before: pd.DataFrame,
    missing: dict[str, str],
) -> list[str]:  # fmt: skip
    """What was found, a sentence a line."""
    lines = [f"The base solves {before['solved'].mean():.3f} of the sampled problems."]
    for name, what in (
        ("gain", "Gained on the new task, accuracy"),
        ("lost_nats", "Lost on the old tasks, nats an answer"),
    ):
        order = summary.sort_values(name, ascending=False).to_dict("records")
        lines.append(f"{what}: " + "; ".join(f"{r['way']} {_span(r, name)}" for r in order) + ".")
    for row in claimed.to_dict("records"):
        lines.append(
            f"{row['source']}: {row['claim']}: {row['told']} ({row['measure']}: "
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}])."
        )
    lines += [f"{way} is left out: it needs {option}." for way, option in missing.items()]
    return lines + noise.told(broken)


def _span(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def sections(
    folder: Run, config: TuneWhatMatters, summary: pd.DataFrame, claimed: pd.DataFrame,
    broken: pd.DataFrame, known: pd.DataFrame, rates: pd.DataFrame,
) -> list[Section]:  # fmt: skip
    """The page's, in order."""
    drawn = folder.figure("gain-and-loss", lambda: figures.gain_and_loss(summary))
    chosen = (
        "each way's rate is that of the least loss on dev problems of the new task"
        if config.tried > 1
        else "rates are those that dev chose on the shipped organism (--tried 3 chooses anew)"
    )
    chosen = chosen if config.lr is None else f"the rate is {config.lr:g} for all"
    over = " and over trainings" if config.seeds > 1 else " (one training: not over trainings)"
    return [
        Section(
            "What is gained and what is lost",
            [
                f"{config.steps} steps of {config.rows} examples for every way; {chosen}. Gained: "
                f"share of sampled solutions that are right, after - before, on the same problems "
                f"with the same random numbers, interval over problems{over}. Lost: "
                f"log-probability of the right answers to old questions, before - after, every "
                f"task alike, interval over people and words{over}. Matched ways train as many "
                f"weights as one module has. Prior and random prior train the random mask's "
                f"weights."
            ],
            summary,
            [(drawn, "Up is learnt, left is kept. Filled: matched number of weights.")],
        ),
        Section(
            "Way beside way",
            [
                "Differences on the same questions and problems, with the same intervals. Held: "
                "the interval is on the claimed side of 0; reversed: on the other. "
                f"{len(claimed)} comparisons at 95 %: about one in twenty is told by chance."
            ],
            claimed,
        ),
        noise_section(folder, broken, "old tasks, nats an answer"),
        Section("The old tasks", ["Kept are those that the base answers above chance."], known),
        *([Section("Rates", ["Dev loss of those tried."], rates)] if config.tried > 1 else []),
    ]


def noise_section(folder: Run, broken: pd.DataFrame, what: str) -> Section:
    """The noise test; `what` was lost."""
    drawn = folder.figure("noise", lambda: figures.noise(broken, what))
    return Section(
        "Noise on the chosen weights",
        [
            "LIFT's test of a mask: the same noise on as many weights of each choice. Means over "
            "draws, Student's intervals; beyond a control is paired by draw. Held is what lies "
            "beyond it by the whole interval."
        ],
        broken,
        [(drawn, "What noise costs; bars are 95 % intervals over draws.")],
    )
