"""Who forgets: SFT beside RL on what the base could do before, and what predicts it.

"Scalpel vs. Hammer" (arXiv 2507.10616) and "RFT naturally mitigates forgetting" (2507.05386) report
that SFT loses more of the old skills than RL; "RL's Razor" (2509.04259) that the KL on the new task
predicts how much, and distances of weights do not; "Echo Chamber" (2504.07912) that RL makes one
written style of the base dominate. Here each stands beside what it must beat: the same accuracy on
the new task, noise of the same norm in every tensor, shuffled checkpoints, other predictors, and
intervals over people, problems and runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from tqdm.auto import tqdm

from interp import InterpError
from studies import _who_forgets_measures as measures
from studies import _who_forgets_report as report
from studies import _who_forgets_verdict as verdicts
from studies._checkpoints import identity
from studies._report import write_report
from studies._run import Run, digests
from studies._who_forgets_bench import Bench
from studies._who_forgets_checkpoints import BASE, Checkpoint, checkpoints, last_of
from studies._who_forgets_measures import Measured
from studies._who_forgets_verdict import MATCHED, SAME_STEPS
from studies._who_forgets_verdict import NAMES as WHOLE

if TYPE_CHECKING:
    import pandas as pd

NAME = "who-forgets"
Sources = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class WhoForgets:
    """Does SFT forget more than RL, and what predicts how much?"""

    base: str = "organism:base"
    """Where all started from: a folder, a hub id, or a shipped organism."""
    sft: Sources = ()
    """Runs of supervised fine-tuning (repeatable): a checkpoint, a folder that holds checkpoint-N
    folders, or an organism with all its steps; default: the shipped ones, in every seed."""
    rl: Sources = ()
    """Runs of reinforcement learning (repeatable). The n-th stands beside the n-th of SFT."""
    sft_rl: Sources = ()
    """Runs of SFT, then RL (repeatable)."""
    frozen: Sources = ()
    """Runs of SFT that trained only some weights (repeatable)."""
    tasks: Path | None = None
    """Old tasks: JSON lines with task, prompt and answer (and group, chance); default: what the
    organisms knew beside arithmetic."""
    problems: Path | None = None
    """The new task: JSON lines with prompt and answer (and group); default: the organisms'."""
    out: Path = Path("runs/who-forgets")
    """The run folder; an interrupted run continues there."""
    items: int = 150
    """Questions of each of the organisms' old tasks."""
    count: int = 100
    """Problems of the new task."""
    samples: int = 2
    """Solutions sampled of each problem."""
    temperature: float = 1.0
    """Of the samples."""
    max_new_tokens: int = 48
    """Of a solution."""
    texts: int = 32
    """Solutions on which the distributions are compared."""
    draws: int = 2
    """Checkpoints of noise beside each run's last and matched one (partial trainings apart)."""
    seed: int = 0
    """Of questions, problems, samples, noise and intervals."""
    full: bool = False
    """Five times the questions, four times the problems and texts, five draws of noise."""
    smoke: bool = False
    """A few questions and problems: that everything runs, in seconds."""


def run(config: WhoForgets) -> Run:
    """Run the study and write its folder: answers, samples, tables, figures, report.html."""
    given = {name: getattr(config, name) for name in ("sft", "rl", "sft_rl", "frozen")}
    found = checkpoints(config.base, given)
    config = _sized(config)
    bench = Bench(config, config.out / "noise")
    if not bench.items or not bench.problems:  # before the folder is made: files may be bad
        raise InterpError("items and count must be at least 1")
    weights = {source: identity(source) for source in (config.base, *(c.source for c in found))}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    known, measured = _measured(folder, bench, found)
    tables = _tables(folder, bench, found, measured, known)
    lines = verdicts.verdict(tables, config)
    title = "Who forgets: SFT beside RL, and what predicts it"
    sections = report.sections(folder, tables)
    write_report(folder.path / "report.html", title, lines, sections, folder.meta)
    folder.finish(verdict=lines)
    return folder


def _sized(config: WhoForgets) -> WhoForgets:
    if config.smoke:
        return replace(config, items=12, count=6, samples=2, texts=3, draws=1)
    if config.full:
        sizes = {"items": 5, "count": 4, "texts": 4}
        more = {name: times * getattr(config, name) for name, times in sizes.items()}
        return replace(config, **more, draws=5)
    return config


def _measured(
    folder: Run, bench: Bench, found: Sequence[Checkpoint]
) -> tuple[pd.DataFrame, Measured]:
    """What the base knows, and answers and samples of every checkpoint, each in its own file."""
    seed = bench.config.seed
    for name in ("answers", "written", "apart"):
        (folder.path / name).mkdir(exist_ok=True)
    base = folder.table(f"answers/{BASE}", lambda: bench.answers(bench.base))
    chance = {item.task: item.chance for item in bench.items}
    known = folder.table("tasks", lambda: measures.known_tasks(base, chance, seed))
    tasks = list(known["task"][known["kept"]])
    if not tasks:
        raise InterpError(
            "the base answers no old task above chance, so there is nothing to forget; give tasks "
            "that it knows, or more questions of each"
        )
    answers = {BASE: base[base["task"].isin(tasks)]}
    written = {BASE: folder.table(f"written/{BASE}", lambda: bench.written(bench.base))}
    for c in tqdm(found, desc="checkpoints", delay=2):
        answers[c.name], written[c.name], _ = _asked(folder, bench, c, tasks)
    return known, Measured(answers, written, seed)


def _asked(
    folder: Run, bench: Bench, c: Checkpoint, tasks: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Answers, samples and distances on the new task, of one checkpoint."""

    def apart() -> pd.DataFrame:
        before = folder.table(f"written/{BASE}", lambda: bench.written(bench.base))
        return bench.apart(bench.model(c.source), before, written)

    answers = folder.table(f"answers/{c.slug}", lambda: bench.answers(bench.model(c.source), tasks))
    written = folder.table(f"written/{c.slug}", lambda: bench.written(bench.model(c.source)))
    return answers, written, folder.table(f"apart/{c.slug}", apart)


def _tables(
    folder: Run,
    bench: Bench,
    found: Sequence[Checkpoint],
    measured: Measured,
    known: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """Everything found, by name."""
    import pandas as pd

    seed, chance = bench.config.seed, dict(zip(known["task"], known["chance"], strict=True))
    weights = folder.table(
        "weights", lambda: bench.distances({c.name: c.source for c in found})
    ).set_index("name")
    apart = pd.concat({c.name: folder.table(f"apart/{c.slug}", pd.DataFrame) for c in found})
    apart = apart.droplevel(1)

    def summary() -> pd.DataFrame:
        rows = [{**_row(c, measured), **apart.loc[c.name], **weights.loc[c.name]} for c in found]
        return pd.DataFrame([_row(None, measured), *rows])

    def by_task() -> pd.DataFrame:
        parts = [
            measures.by_task(measured.answers[BASE], measured.answers[c.name], chance, seed).assign(
                checkpoint=c.name, method=c.method, run=c.run, step=c.step
            )
            for c in found
        ]
        return pd.concat(parts, ignore_index=True)

    def styles() -> pd.DataFrame:
        rows = [
            {"checkpoint": name, **row}
            for name, written in measured.written.items()
            for row in measures.styles(written, seed)
        ]
        return pd.DataFrame(rows)

    pairs = folder.table("pairs", lambda: pd.DataFrame(_pairs(found, measured)))
    tables = {
        "tasks": known,
        "checkpoints": folder.table("checkpoints", summary),
        "by_task": folder.table("by_task", by_task),
        "pairs": pairs,
        "noise": folder.table("noise", lambda: _noise(folder, bench, found, pairs, measured)),
    }
    fit = folder.table("fit", lambda: measures.fits(tables["checkpoints"], seed))
    if len(fit):
        tables["fit"] = fit
    if bench.organism:
        tables["styles"] = folder.table("styles", styles)
    return tables


def _row(c: Checkpoint | None, measured: Measured) -> dict[str, Any]:
    """One checkpoint's accuracy on the new task, what it lost, and how its samples are spread."""
    name, seed = (BASE if c is None else c.name), measured.seed
    before, after = measured.written[BASE], measured.written[name]
    row: dict[str, Any] = {"checkpoint": name}
    row |= {
        "method": c.method if c else BASE, "run": c.run if c else BASE,
        "seed": c.seed if c else 0, "step": c.step if c else 0,
    }  # fmt: skip
    row |= measures.columns("new", measures.accuracy(after, seed))
    row |= measures.columns("gain", measures.gain(before, after, seed))
    pairs = measures.lost(measured.answers[BASE], measured.answers[name])
    row |= measures.forgotten(pairs, seed)
    return row | measures.style_entropy(before, after, seed)


def _pairs(found: Sequence[Checkpoint], measured: Measured) -> list[dict[str, Any]]:
    """SFT beside RL, and partial trainings beside the whole, each with its like of the same seed.

    The last RL checkpoint against the SFT checkpoint nearest to it in accuracy; a partial training
    against the whole one nearest in accuracy, and the one of as many steps.
    """
    rows = []
    last = last_of(found)
    for c in last:
        whole = [s for s in found if s.method == "sft" and s.seed == c.seed]
        if c.method == "sft" or not whole:
            continue
        like = measured.nearest(c, whole)
        if c.method in WHOLE:
            rows.append(measured.beside(like, c, MATCHED))
            continue
        rows.append(measured.beside(c, like, MATCHED))
        rows += [measured.beside(c, s, SAME_STEPS) for s in whole if s.step == c.step]
    return rows


def _noise(
    folder: Run,
    bench: Bench,
    found: Sequence[Checkpoint],
    pairs: pd.DataFrame,
    measured: Measured,
) -> pd.DataFrame:
    """What noise of a checkpoint's norm loses, and what the checkpoint loses beyond that."""
    import pandas as pd

    tasks = list(measured.answers[BASE]["task"].unique())
    beside = set(pairs["one"]) | set(pairs["other"]) if len(pairs) else set()  # at one accuracy
    rows: list[dict[str, Any]] = []
    whole = [c for c in found if c.method in WHOLE]
    for c in tqdm([c for c in whole if c in last_of(found) or c.name in beside], desc="noise"):
        mine = measures.lost(measured.answers[BASE], measured.answers[c.name])
        draws = []
        for draw in range(bench.config.draws):

            def ask(c: Checkpoint = c, draw: int = draw) -> pd.DataFrame:
                return bench.answers(bench.noise(c.source, c.slug, draw), tasks)

            answers = folder.table(f"answers/{c.slug}-noise-{draw}", partial(ask))
            draws.append(measures.lost(measured.answers[BASE], answers))
        row: dict[str, Any] = {"checkpoint": c.name, "method": c.method, "draws": len(draws)}
        rows.append(row | measures.beyond_noise(mine, draws, measured.seed))
    return pd.DataFrame(rows)
