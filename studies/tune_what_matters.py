"""Tune only what matters: what each choice of weights learns of a new task, and forgets.

LIFT (arXiv 2506.00772) tunes the largest entries of a low-rank approximation; others tune the
smallest weights, a lottery ticket, half of the matrices in turn, one module, or all but some. Here
each stands beside as many random weights, at one number of steps, with a rate of its own chosen on
dev, by what it gains on the new task and loses on the old ones. LIFT's noise test, which asks
whether principal weights matter more than others, stands beside it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

import interventions as iv
from interp import InterpError, Model
from interp._edit.parameters import named_parameters
from interp._errors import nearest
from interp._estimate import Estimate, cluster_mean
from studies import _tune_figures as figures
from studies import _who_forgets_measures as measures
from studies._checkpoints import ORGANISM, identity
from studies._report import Section, write_report
from studies._run import Run, digest
from studies._tune_ways import WAYS, Tuner
from studies._who_forgets_bench import Bench
from studies.who_forgets import WhoForgets

if TYPE_CHECKING:
    import pandas as pd

    from interventions._examples import Example

NAME = "tune-what-matters"
NOISED = ("principal", "magnitude", "low magnitude", "random")
_EXAMPLE = '{"prompt": "2 + 2 =", "completion": " 4"}'


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
    ways: tuple[str, ...] = tuple(WAYS)
    """Which ways of tuning."""
    tried: int = 1
    """Rates tried for each way; the one with the least loss on dev is taken."""
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
    draws: int = 3
    """Of noise on each mask."""
    noise: tuple[float, ...] = (0.5, 1.0)
    """Standard deviation of that noise, as a multiple of the weights' root mean square."""
    seed: int = 0
    """Of questions, problems and samples."""
    out: Path = Path("runs/tune-what-matters")
    """The run folder; an interrupted run continues there."""
    full: bool = False
    """Three seeds, three rates tried, five draws of noise."""
    smoke: bool = False
    """Two ways, a few steps and questions: that everything runs, in seconds."""


def run(config: TuneWhatMatters) -> Run:
    """Run the study and write its folder: answers, samples, tables, figures, report.html."""
    config = _sized(config)
    _check(config)
    named = (config.examples, config.problems, config.tasks)
    hashes = {path.name: digest(path) for path in named if path is not None}
    weights = {config.base: identity(config.base)}
    folder = Run.open(config.out, NAME, config, files=hashes, checkpoints=weights)
    bench = _Bench(config)
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
    for seed, way in tqdm(list(itertools.product(range(config.seeds), config.ways)), desc="ways"):
        results.append(_one(folder, bench, way, seed, float(best[way]), base, before, tasks))
    pairs, new, costs = (_joined([r[i] for r in results]) for i in range(3))
    summary = folder.table("summary", lambda: _summary(pairs, new, costs, config.seed))
    noise = folder.table("noise", lambda: bench.noise(base, tasks))
    damage = folder.table("damage", lambda: _damage(noise))
    verdict = _verdict(summary, pairs, new, damage, before)
    sections = _sections(folder, config, summary, damage, known, rates)
    title = "Tune only what matters: new task gained, old tasks lost"
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
        return replace(config, seeds=max(3, config.seeds), tried=3, draws=5)
    return config


def _check(config: TuneWhatMatters) -> None:
    for way in config.ways:
        if way not in WAYS:
            raise InterpError(f"no way {way!r}; {nearest(way, WAYS)}")
    own = (config.examples, config.problems, config.tasks)
    if not config.base.startswith(ORGANISM) and not all(own):
        raise InterpError(
            "this model is no organism, so say what it learns and may forget: --examples FILE, "
            "--problems FILE and --tasks FILE"
        )


class _Bench:
    """The model, what it learns, and what it is asked."""

    def __init__(self, config: TuneWhatMatters) -> None:
        self.config = config
        asked = WhoForgets(
            base=config.base, tasks=config.tasks, problems=config.problems, items=config.items,
            count=config.count, samples=config.samples, seed=config.seed,
        )  # fmt: skip
        self.old = Bench(asked, config.out)

    @cached_property
    def tuner(self) -> Tuner:
        """Every way of tuning, on this run's examples."""
        config, model = self.config, self.old.base
        return Tuner(
            model, self._train, self._train(-1)[:64], config.steps, config.rows, config.rank,
            model.anatomy.n_layers // 2,
        )  # fmt: skip

    def _train(self, seed: int) -> list[Example]:
        """Examples by seed; those of -1 are for choosing rates and in no other's."""
        config = self.config
        if config.examples is not None:
            found = _read_examples(config.examples)
            held, rest = found[: len(found) // 5], found[len(found) // 5 :]
            return held if seed < 0 else rest
        from studies.organisms import sft
        from studies.organisms.world import World

        rows = sft.rows(World(0), sft.SftConfig().style, config.steps * config.rows + 64, seed + 7)
        return [(row["prompt"], row["completion"]) for row in rows][: None if seed < 0 else -64]

    def rates(self) -> pd.DataFrame:
        """Dev loss on the new task of the rates tried, first seed."""
        import pandas as pd

        rows = []
        for way in self.config.ways:
            tried = WAYS[way].rates[: max(1, self.config.tried)]
            if len(tried) == 1:
                rows.append({"way": way, "lr": tried[0], "dev": 0.0})
                continue
            for lr in tried:
                rows.append({"way": way, "lr": lr, "dev": self.tuner.tune(way, 0, lr).dev})
        return pd.DataFrame(rows)

    def noise(self, base: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
        """What the old tasks lose when noise is added to each mask's weights, draw by draw."""
        import pandas as pd

        model, config = self.old.base, self.config
        size = _rms(model)
        rows = []
        for times, draw in itertools.product(config.noise, range(config.draws)):
            for name in NOISED:
                mask = _noised(name, self.tuner, draw)
                with mask.noise(times * size, seed=draw).applied(model):
                    after = self.old.answers(model, tasks)
                lost = measures.forgotten(measures.lost(base, after), config.seed)
                rows.append(
                    {"mask": name, "noise": times, "draw": draw, "count": mask.count,
                     "lost nats": lost["lost_nats"], "lost accuracy": lost["lost_accuracy"]}
                )  # fmt: skip
        return pd.DataFrame(rows)


def _rms(model: Model) -> float:
    """Root mean square of the weights of the blocks' matrices."""
    parameters = named_parameters(model.module)
    names = iv.masks.random_mask(model, share=1.0).index
    total = sum(float(parameters[n].tensor.detach().float().square().sum()) for n in names)
    return (total / sum(parameters[n].tensor.numel() for n in names)) ** 0.5


def _noised(name: str, tuner: Tuner, draw: int) -> iv.WeightMask:
    if name == "principal":
        return iv.principal_mask(tuner.model, rank=tuner.rank, share=tuner.share)
    if name == "random":
        return iv.masks.random_mask(tuner.model, share=tuner.share, seed=draw)
    low = name == "low magnitude"
    return iv.masks.magnitude_mask(tuner.model, low=low, share=tuner.share, seed=draw)


def _read_examples(path: Path) -> list[Example]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append((str(row["prompt"]), str(row["completion"])))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise InterpError(
                f"{path} line {number} is no example ({error!r}); expected an object such as "
                f"{_EXAMPLE}"
            ) from error
    return found


def _one(
    folder: Run, bench: _Bench, way: str, seed: int, lr: float,
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


def _summary(
    pairs: pd.DataFrame, new: pd.DataFrame, costs: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """A row a way: gain on the new task, loss on the old ones, with intervals, and the cost."""
    import pandas as pd

    rows = []
    for way, part in costs.groupby("way", sort=False):
        mine, learned = pairs[pairs["way"] == way], new[new["way"] == way]
        gain = _gain(learned["gain"], learned["group"])
        seeds = learned.groupby("seed")["gain"].mean()
        row = {"way": way, "matched": WAYS[str(way)].matched, "trained": int(part["trained"].max())}
        row |= {"state bytes": int(part["state bytes"].max()), "lr": float(part["lr"].iloc[0])}
        row |= measures.columns("gain", gain)
        row |= {"gain_worst": seeds.min(), "gain_best": seeds.max()}
        row |= measures.forgotten(mine, seed)
        rows.append(row | {"seeds": len(seeds)})
    return pd.DataFrame(rows)


def _gain(values: pd.Series, groups: pd.Series) -> Estimate:
    return cluster_mean(values.tolist(), groups.tolist(), bounds=(-1.0, 1.0))


def _damage(noise: pd.DataFrame) -> pd.DataFrame:
    """Means over draws with Student's intervals, and each mask's difference to random weights."""
    import pandas as pd

    rows = []
    for (times, name), part in noise.groupby(["noise", "mask"], sort=False):
        random = noise[(noise["noise"] == times) & (noise["mask"] == "random")].set_index("draw")
        row: dict[str, object] = {"noise": times, "mask": name, "count": int(part["count"].max())}
        for column in ("lost nats", "lost accuracy"):
            found = _over_draws(part[column].to_numpy(dtype=float))
            row |= {column: found.mean, f"{column} low": found.low, f"{column} high": found.high}
        against = part.set_index("draw")["lost nats"] - random["lost nats"]
        found = _over_draws(against.to_numpy())
        row |= {"beyond random": found.mean, "beyond low": found.low, "beyond high": found.high}
        rows.append(row | {"draws": len(part)})
    return pd.DataFrame(rows)


def _over_draws(values: np.ndarray) -> Estimate:
    return cluster_mean(values.tolist(), list(range(len(values))), bounds=None)


def _against(
    pairs: pd.DataFrame, new: pd.DataFrame, one: str, other: str, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """How much more one way gains than another, and loses, question by question."""
    key = ["seed", "item"]
    a, b = (pairs[pairs["way"] == way].set_index(key) for way in (one, other))
    more = (a["nats"] - b["nats"].reindex(a.index)).to_numpy()
    lost = measures.mean_over_tasks(more, list(a["task"]), list(a["group"]), seed)
    x, y = (new[new["way"] == way] for way in (one, other))
    gained = _gain(x["gain"].reset_index(drop=True) - y["gain"].reset_index(drop=True), x["group"])
    return gained, lost


def _verdict(
    summary: pd.DataFrame, pairs: pd.DataFrame, new: pd.DataFrame,
    damage: pd.DataFrame, before: pd.DataFrame,
) -> list[str]:  # fmt: skip
    at = summary.set_index("way")
    lines = [f"The base solves {before['solved'].mean():.3f} of the sampled problems."]
    for way in at.index:
        row = at.loc[way]
        lines.append(
            f"{way} ({row['trained']:,} weights): gains {_span(row, 'gain')} of accuracy on the "
            f"new task, loses {_span(row, 'lost_nats')} nats an answer and "
            f"{_span(row, 'lost_accuracy')} of accuracy on the old ones."
        )
    if "random" in at.index:
        for way in at.index[at["matched"] & (at.index != "random")]:
            gained, lost = _against(pairs, new, str(way), "random")
            lines.append(
                f"{way} beside as many random weights: gains {gained.mean:+.3f} "
                f"[{gained.low:+.3f}, {gained.high:+.3f}] more, loses {lost.mean:+.3f} "
                f"[{lost.low:+.3f}, {lost.high:+.3f}] nats more."
            )
    for times, part in damage.groupby("noise"):
        order = part.sort_values("lost nats", ascending=False)
        told = " > ".join(f"{r['mask']} {r['lost nats']:.3f}" for _, r in order.iterrows())
        of = part.set_index("mask").loc["principal"]
        big = part.set_index("mask").loc["magnitude"]
        held = (
            of["beyond low"] > 0 and of["lost nats"] > big["lost nats"] > 0
            and big["beyond random"] > 0
        )  # fmt: skip
        lines.append(
            f"Noise of {times:g} root mean squares costs the old tasks, in nats an answer: {told}; "
            f"principal beyond random {of['beyond random']:+.3f} [{of['beyond low']:+.3f}, "
            f"{of['beyond high']:+.3f}]. LIFT's order, principal > magnitude > random, "
            + ("held." if held else "did not hold.")
        )
    return lines


def _span(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def _sections(
    folder: Run, config: TuneWhatMatters, summary: pd.DataFrame, damage: pd.DataFrame,
    known: pd.DataFrame, rates: pd.DataFrame,
) -> list[Section]:  # fmt: skip
    drawn = folder.figure("gain-and-loss", lambda: figures.gain_and_loss(summary))
    broken = folder.figure("noise", lambda: figures.noise(damage))
    chosen = (
        "each way's rate is that of the least loss on dev problems of the new task"
        if config.tried > 1
        else "rates are those that dev chose on the shipped organism (--tried 3 chooses anew)"
    )
    return [
        Section(
            "What is gained and what is lost",
            [
                f"{config.steps} steps of {config.rows} examples for every way; {chosen}. Gained: "
                f"share of sampled solutions that are right, after - before, on the same problems "
                f"with the same random numbers, interval over problems. Lost: log-probability of "
                f"the right answers to old questions, before - after, every task alike, interval "
                f"over groups. Matched ways train as many weights as one module has."
            ],
            summary,
            [(drawn, "Up is learnt, left is kept. Filled: matched number of weights.")],
        ),
        Section(
            "Noise on the chosen weights",
            [
                "LIFT's test of a mask: the same noise on as many weights of each choice. Means "
                "over draws, Student's intervals; beyond random is paired by draw."
            ],
            damage,
            [(broken, "Loss on the old tasks under noise; bars are 95 % intervals over draws.")],
        ),
        Section("The old tasks", ["Kept are those that the base answers above chance."], known),
        *([Section("Rates", ["Dev loss of those tried."], rates)] if config.tried > 1 else []),
    ]


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(parts, ignore_index=True)
