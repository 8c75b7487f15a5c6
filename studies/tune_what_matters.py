"""Tune only what matters: what each choice of weights learns of a new task, and forgets.

LIFT (arXiv 2506.00772) tunes the largest entries of a low-rank approximation; others tune the
smallest weights, a lottery ticket, half of the matrices in turn, one module, all but some, or
adapters that start away from what is to be kept (CorDA); DRIFT bends the gradients. Here each
stands beside as many random weights, at one number of steps, with a rate of its own chosen on dev,
by what it gains on the new task and loses on the old ones. LIFT's noise test, which asks whether
principal weights matter more than others, stands beside it, and runs alone on any model with texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from interp import InterpError
from interp._errors import nearest
from studies import _tune_noise as noise
from studies import _tune_report as report
from studies import _who_forgets_measures as measures
from studies._checkpoints import ORGANISM, identity
from studies._report import write_report
from studies._run import Run, digests
from studies._tune_bench import TuneBench
from studies._tune_summary import claims, summarise
from studies._tune_ways import WAYS

if TYPE_CHECKING:
    import pandas as pd

NAME = "tune-what-matters"


@dataclass(frozen=True)
class TuneWhatMatters:
    """Which weights should one tune, to learn the new and keep the old?"""

    base: str = "organism:base"
    """What is tuned: a folder, a hub id, or a shipped organism."""
    examples: Path | None = None
    """The new task's training examples: JSON lines with prompt and completion; default: word
    problems with a teacher's solution in one written style."""
    problems: Path | None = None
    """The new task's test problems: JSON lines with prompt and answer (and group)."""
    tasks: Path | None = None
    """Old tasks: JSON lines with task, prompt and answer (and group, chance)."""
    texts: Path | None = None
    """JSON lines with text. Beside the three files above: texts of the old tasks, from whose inputs
    CorDA starts away. Alone: what noise breaks is their loss, and nothing is tuned."""
    prior: str | None = None
    """A checkpoint of the base's kind; where it lies from the base is DRIFT's direction. Default:
    the organism trained on the same new task by RL, for want of another."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Which ways of tuning."""
    tried: int = 1
    """Rates tried for each way; the one with the least loss on dev is taken."""
    lr: float | None = None
    """One rate for all ways instead, to tell a way from its rate."""
    seeds: int = 1
    """Draws of the training examples and of what is random in a mask."""
    steps: int = 15
    """Of AdamW."""
    rows: int = 16
    """Examples a step."""
    rank: int = 8
    """Of the approximation behind the principal weights."""
    items: int = 40
    """Questions of each of the organisms' old tasks."""
    count: int = 60
    """Problems of the new task."""
    samples: int = 2
    """Solutions sampled of each problem, at temperature 1."""
    draws: int = 5
    """Of noise on each mask."""
    noise: tuple[float, ...] = (0.5, 1.0)
    """Standard deviation of that noise, as a multiple of the weights' root mean square."""
    noise_ranks: tuple[int, ...] = ()
    """Ranks behind the principal masks that get noise; default: the one above."""
    seed: int = 0
    """Of questions, problems and samples."""
    out: Path = Path("runs/tune-what-matters")
    """The run folder; an interrupted run continues there."""
    full: bool = False
    """Three seeds, three rates tried, ten draws of noise of three sizes at five ranks."""
    smoke: bool = False
    """Two ways, a few steps and questions: that everything runs, in seconds."""

    @property
    def own(self) -> tuple[Path | None, ...]:
        """The files that say what a model of one's own learns and may forget."""
        return self.examples, self.problems, self.tasks

    @property
    def only_noise(self) -> bool:
        """Whether a model of one's own came with texts alone."""
        return not self.base.startswith(ORGANISM) and self.texts is not None and not any(self.own)


def run(config: TuneWhatMatters) -> Run:
    """Run the study and write its folder: answers, samples, tables, figures, report.html."""
    config = _sized(config)
    _check(config)
    named = (config.base,) if config.prior is None else (config.base, config.prior)
    weights = {source: identity(source) for source in named}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    bench = TuneBench(config)
    if config.only_noise:
        return _only_noise(folder, bench)
    base = folder.table("answers-base", lambda: bench.old.answers(bench.old.base))
    chance = {item.task: item.chance for item in bench.old.items}
    known = folder.table("tasks", lambda: measures.known_tasks(base, chance, config.seed))
    tasks = list(known["task"][known["kept"]])
    if not tasks:
        raise InterpError(
            "the base answers no old task above chance, so there is nothing to forget; give tasks "
            "that it knows, or more questions of each"
        )
    base = base[base["task"].isin(tasks)]
    before = folder.table("written-base", lambda: bench.old.written(bench.old.base))
    rates = folder.table("rates", bench.rates)
    best = rates.loc[rates.groupby("way")["dev"].idxmin()].set_index("way")["lr"]
    results = []
    for seed, way in tqdm(list(itertools.product(range(config.seeds), bench.ways)), desc="ways"):
        results.append(_one(folder, bench, way, seed, float(best[way]), base, before, tasks))
    pairs, new, costs = (_joined([r[i] for r in results]) for i in range(3))
    summary = folder.table("summary", lambda: summarise(pairs, new, costs, config.seed))
    claimed = folder.table("claims", lambda: claims(pairs, new, config.seed))
    noisy = folder.table("noise", lambda: bench.noise_on_tasks(base, tasks))
    broken = folder.table("damage", lambda: noise.damage(noisy))
    verdict = report.verdict(summary, claimed, broken, before, bench.missing)
    sections = report.sections(folder, config, summary, claimed, broken, known, rates)
    title = "Tune only what matters: new task gained, old tasks lost"
    write_report(folder.path / "report.html", title, verdict, sections, folder.meta)
    folder.finish(verdict=verdict)
    return folder


def _only_noise(folder: Run, bench: TuneBench) -> Run:
    noisy = folder.table("noise", bench.noise_on_texts)
    broken = folder.table("damage", lambda: noise.damage(noisy))
    verdict = noise.told(broken)
    title = "Tune only what matters: what noise on the chosen weights breaks"
    sections = [report.noise_section(folder, broken, "texts, nats a token")]
    write_report(folder.path / "report.html", title, verdict, sections, folder.meta)
    folder.finish(verdict=verdict)
    return folder


def _sized(config: TuneWhatMatters) -> TuneWhatMatters:
    if config.smoke:
        return replace(
            config, ways=("principal", "random"), seeds=1, steps=2, rows=4, items=6, count=4,
            samples=1, draws=2, noise=(1.0,),
        )  # fmt: skip
    if config.full:
        return replace(
            config, seeds=max(3, config.seeds), tried=3, draws=10, noise=(0.5, 1.0, 2.0),
            noise_ranks=config.noise_ranks or (2, 4, 8, 16, 32),
        )  # fmt: skip
    return config


def _check(config: TuneWhatMatters) -> None:
    for way in config.ways:
        if way not in WAYS:
            raise InterpError(f"no way {way!r}; {nearest(way, WAYS)}")
    organism = config.base.startswith(ORGANISM)
    if not organism and not all(config.own) and not config.only_noise:
        raise InterpError(
            "this model is no organism, so say what it learns and may forget: --examples FILE, "
            "--problems FILE and --tasks FILE; or give --texts FILE alone, for the noise test"
        )
    if config.lr is not None and not config.lr > 0:
        raise InterpError(f"lr={config.lr}: expected more than 0")
    if config.draws < 2:
        raise InterpError(f"draws={config.draws}: expected at least 2, for an interval over them")


def _one(
    folder: Run, bench: TuneBench, way: str, seed: int, lr: float,
    base: pd.DataFrame, before: pd.DataFrame, tasks: list[str],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """One training: old questions paired with the base's, new problems paired, and its cost."""
    import pandas as pd

    slug = f"{way.replace(' ', '-')}-{seed}"

    def compute() -> pd.DataFrame:
        tuned = bench.tuner.tune(way, seed, lr)
        with tuned.use() as model:
            answers = bench.old.answers(model, tasks)
            written = bench.old.written(model)
        folder.table(f"answers-{slug}", lambda: answers)
        folder.table(f"written-{slug}", lambda: written)
        row = {"way": way, "seed": seed, "lr": lr, "trained": tuned.count}
        return pd.DataFrame([row | {"state bytes": tuned.state_bytes, "dev": tuned.dev}])

    cost = folder.table(f"cost-{slug}", compute)
    after = folder.table(f"answers-{slug}", pd.DataFrame)
    written = folder.table(f"written-{slug}", pd.DataFrame)
    pairs = measures.lost(base, after).assign(way=way, seed=seed)
    gained = written["solved"].astype(float) - before["solved"].astype(float)
    new = written[["problem", "group"]].assign(way=way, seed=seed, gain=gained.to_numpy())
    return pairs, new, cost


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(parts, ignore_index=True)
