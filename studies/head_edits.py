"""Which heads to edit: gated edits of heads beside LoRA, biases, edits of the stream and examples.

JoLA (arXiv 2502.01179) learns which heads to edit and how from few examples, and reports more
accuracy than LoRA, BitFit and ReFT at 200 examples. Here each way of tuning sees the same
questions, steps and dev set, with a rate and a price of its own chosen on dev; once on a task where
we know which heads matter, because we turned them around, and once on a form of question never
taught.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp import InterpError, Model
from interp._estimate import Estimate, cluster_mean
from interventions._examples import answered, encode
from studies import _head_edits_figures as figures
from studies._checkpoints import ORGANISM, identity, open_checkpoint
from studies._head_edits_methods import METHODS, RATES, ROWS, Learned, Plan, with_examples
from studies._head_edits_price import dearest
from studies._head_edits_tasks import (
    Parts,
    Question,
    organism_parts,
    planted,
    read_parts,
)
from studies._report import Section, write_report
from studies._run import Run, digests

if TYPE_CHECKING:
    import pandas as pd

NAME = "head-edits"
PLAIN, SHOWN, HEADS = "as it is", "examples in the prompt", "head edits"
BEFORE = "before the heads were turned"
PLANTED, NEW = "planted heads", "new form"


@dataclass(frozen=True)
class HeadEdits:
    """Do gated edits of heads learn more from few examples than LoRA, and find the right heads?"""

    model: str = "organism:base"
    """A checkpoint that answers the questions of the planted task: a folder, a hub id, or a shipped
    organism."""
    questions: Path | None = None
    """What to learn: JSON lines with prompt and answer (and group); default: the organism's people,
    asked in a form it was never taught. The planted task then has these questions too."""
    sizes: tuple[int, ...] = (50, 200)
    """Numbers of training questions."""
    seeds: int = 1
    """Draws of the training questions, and of the starts."""
    steps: int = 120
    """Optimizer steps of 8 questions, for every way of tuning; rounded up to whole epochs."""
    tried: int = 1
    """Rates tried for each way and task; the one with the least loss on dev is taken."""
    planted: int = 4
    """Heads that are turned around."""
    prices: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Of the gates, in nats for all heads. Every training tries all of them and takes the highest
    whose dev loss is within one standard error (over groups) of the least; then heads that dev
    does without, by the same rule, are left out."""
    shown: int = 8
    """Solved questions in a prompt."""
    dev: int = 48
    """Questions that choose the rate and the epoch."""
    test: int = 180
    """Questions that are reported on."""
    out: Path = Path("runs/head-edits")
    """The run folder; an interrupted run continues there."""
    full: bool = False
    """50, 100 and 200 questions, three seeds, three rates tried."""
    smoke: bool = False
    """A few steps and questions: that everything runs, in seconds."""


def run(config: HeadEdits) -> Run:
    """Run the study and write its folder: answers, heads, tables, figures, report.html."""
    config = _sized(config)
    tasks = _tasks(config)
    weights = {config.model: identity(config.model)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    bench = _Bench(config, tasks)
    harm = folder.table("harm", bench.harm)
    rates = _joined([_rates(folder, bench, *at) for at in itertools.product(tasks, METHODS)])
    chosen = rates.loc[rates.groupby(["task", "method"])["dev"].idxmin()]
    lr = {(r.task, r.method): float(r.lr) for r in chosen.itertuples()}
    plain = {t: folder.table(f"plain-{i}", partial(bench.plain, t)) for i, t in enumerate(tasks)}
    learned = [_one(folder, bench, lr, *at) for at in tqdm(list(_trainings(config, tasks)))]
    answers = _joined([*plain.values(), *(a for a, _ in learned)])
    tried = _joined([prices for _, prices in learned if len(prices)])
    summary = folder.table("summary", lambda: _summary(answers))
    against = folder.table("differences", lambda: _differences(answers))
    found = folder.table("found", lambda: _found(tried, harm))
    prices = folder.table("prices", lambda: _prices(tried, harm))
    verdict = _verdict(summary, against, found, prices)
    title = "Which heads to edit: gated edits beside LoRA, biases and examples"
    tables = (summary, against, found, prices, rates)
    sections = _sections(folder, config, tables, tried, harm)
    write_report(folder.path / "report.html", title, verdict, sections, folder.meta)
    folder.finish(verdict=verdict)
    return folder


def _sized(config: HeadEdits) -> HeadEdits:
    if config.smoke:
        return replace(
            config, sizes=(16,), seeds=1, steps=2, dev=8, test=24, planted=2, prices=(0.0,)
        )  # no price closes a gate in two steps
    if config.full:
        return replace(config, sizes=(50, 100, 200), seeds=max(3, config.seeds), tried=3)
    return config


def _tasks(config: HeadEdits) -> dict[str, Parts]:
    if config.questions is not None:
        parts = read_parts(config.questions, config.dev, config.test)
        tasks = {PLANTED: parts, NEW: parts}
    elif config.model.startswith(ORGANISM):
        tasks = {
            PLANTED: organism_parts("facts", config.dev, config.test),
            NEW: organism_parts("terse", config.dev, config.test),
        }
    else:
        raise InterpError("this model needs questions of its own: pass --questions FILE")
    if not config.sizes or min(config.sizes) < ROWS:
        raise InterpError(f"sizes={config.sizes}: a step takes {ROWS} questions, so give {ROWS}+")
    for parts in tasks.values():
        parts.drawn(max(config.sizes), 0)
    return tasks


def _trainings(config: HeadEdits, tasks: dict[str, Parts]) -> Iterator[tuple[str, str, int, int]]:
    for seed, size in itertools.product(range(config.seeds), config.sizes):
        yield from ((task, method, size, seed) for task in tasks for method in METHODS)


class _Bench:
    """The models and questions of one run; models are opened when first needed."""

    def __init__(self, config: HeadEdits, tasks: dict[str, Parts]) -> None:
        self.config, self.tasks = config, tasks
        self._models: dict[str, Model] = {}
        self._harm: list[dict[str, Any]] = []

    def model(self, task: str) -> Model:
        """As it is, or with planted heads."""
        if NEW not in self._models:
            self._models[NEW] = open_checkpoint(self.config.model)
        if task == PLANTED and PLANTED not in self._models:
            asked = self.tasks[PLANTED].drawn(min(48, len(self.tasks[PLANTED].pool)), 0)
            made = planted(self._models[NEW], asked, self.config.planted)
            self._models[PLANTED], self._harm = made
        return self._models[task]

    def harm(self) -> pd.DataFrame:
        """What turning each head alone costs, and which were planted."""
        import pandas as pd

        self.model(PLANTED)
        return pd.DataFrame(self._harm)

    def plan(self, task: str, size: int, seed: int, lr: float) -> Plan:
        """One training."""
        config, parts = self.config, self.tasks[task]
        return Plan(
            parts.drawn(size, seed), parts.dev, config.steps, lr, config.prices, seed
        )  # fmt: skip

    def rates(self, task: str, method: str) -> pd.DataFrame:
        """Dev loss of the rates tried, at the smallest size, first seed and highest price."""
        import pandas as pd

        size = min(self.config.sizes)
        rows = []
        for lr in RATES[method][: max(1, self.config.tried)]:
            dev = 0.0  # a single rate needs no choice
            if self.config.tried > 1:
                plan = replace(self.plan(task, size, 0, lr), prices=(max(self.config.prices),))
                try:
                    dev = METHODS[method](self.model(task), plan).dev
                except InterpError:  # a loss that is not finite
                    dev = float("inf")
            rows.append({"task": task, "method": method, "lr": lr, "dev": dev})
        return pd.DataFrame(rows)

    def plain(self, task: str) -> pd.DataFrame:
        """The model as it is, and with solved questions in the prompt."""
        config, parts, model = self.config, self.tasks[task], self.model(task)
        asked = [q.example for q in parts.test]
        parts_of = [_rows(model, encode(model, asked, end=True), parts.test, task, PLAIN, 0, 0, 0)]
        if task == PLANTED:
            whole = self.model(NEW)
            encoded = encode(whole, asked, end=True)
            parts_of.append(_rows(whole, encoded, parts.test, task, BEFORE, 0, 0, 0))
        for seed in range(config.seeds):
            shown = parts.drawn(min(config.shown, len(parts.pool)), seed)
            encoded = with_examples(model, parts.test, shown)
            parts_of.append(_rows(model, encoded, parts.test, task, SHOWN, 0, seed, 0))
        return _joined(parts_of)

    def learned(
        self, task: str, method: str, plan: Plan, size: int
    ) -> tuple[Learned, pd.DataFrame]:
        """One training, and its answers to the test questions."""
        found = METHODS[method](self.model(task), plan)
        test = self.tasks[task].test
        with found.use() as model:
            encoded = encode(model, [q.example for q in test], end=True)
            rows = _rows(model, encoded, test, task, method, size, plan.seed, found.numbers)
        return found, rows


def _rates(folder: Run, bench: _Bench, task: str, method: str) -> pd.DataFrame:
    slug = f"{list(bench.tasks).index(task)}-{method.replace(' ', '-')}"
    return folder.table(f"rates-{slug}", partial(bench.rates, task, method))


def _one(
    folder: Run, bench: _Bench, lr: dict[tuple[str, str], float],
    task: str, method: str, size: int, seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The answers of one training, and the prices it tried with the heads of each; both kept."""
    slug = f"{list(bench.tasks).index(task)}-{method.replace(' ', '-')}-{size}-{seed}"

    def compute() -> pd.DataFrame:
        plan = bench.plan(task, size, seed, lr[task, method])
        found, rows = bench.learned(task, method, plan, size)
        tried = _tried(found).assign(task=task, method=method, size=size, seed=seed)
        folder.table(f"tried-{slug}", lambda: tried)
        return rows

    answers = folder.table(f"answers-{slug}", compute)
    return answers, folder.table(f"tried-{slug}", lambda: _tried(None))


def _tried(found: Learned | None) -> pd.DataFrame:
    """A row for each price and head that it left open; head -1 where it left none.

    Of the price `chosen`, the heads `kept` are those that dev does not do without.
    """
    import pandas as pd

    rows = []
    path = (found.path or []) if found is not None else []
    at = dearest(path) if path else -1
    kept = set(found.heads or []) if found is not None else set()
    for place, priced in enumerate(path):
        for layer, head in priced.heads or [(-1, -1)]:
            rows.append(
                {"price": priced.price, "dev": priced.cost, "error": priced.error,
                 "chosen": place == at, "kept": place == at and (layer, head) in kept,
                 "layer": layer, "head": head}
            )  # fmt: skip
    kinds = {
        "price": "float64", "dev": "float64", "error": "float64", "chosen": "bool",
        "kept": "bool", "layer": "int64", "head": "int64",
    }  # fmt: skip
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def _rows(
    model: Model, encoded: Sequence[Any], asked: Sequence[Question], task: str, method: str,
    size: int, seed: int, numbers: int,
) -> pd.DataFrame:  # fmt: skip
    import pandas as pd

    right, nats = answered(model, encoded)
    return pd.DataFrame(
        {"task": task, "method": method, "size": size, "seed": seed, "numbers": numbers,
         "question": range(len(asked)), "group": [q.group for q in asked],
         "right": [float(r) for r in right], "nats": nats}
    )  # fmt: skip


def _summary(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each way and size; intervals over groups, the range over seeds beside them."""
    import pandas as pd

    rows = []
    for (task, method, size), part in answers.groupby(["task", "method", "size"], sort=False):
        found = cluster_mean(part["right"].tolist(), part["group"].tolist())
        seeds = part.groupby("seed")["right"].mean()
        rows.append(
            {"task": task, "method": method, "size": size, "trained": int(part["numbers"].max()),
             "accuracy": found.mean, "low": found.low, "high": found.high,
             "worst seed": seeds.min(), "best seed": seeds.max(), "nats": part["nats"].mean(),
             "seeds": len(seeds), "groups": found.clusters}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _found(tried: pd.DataFrame, harm: pd.DataFrame) -> pd.DataFrame:
    """Of the heads edited on the planted task, how many were planted, by size and seed."""
    import pandas as pd

    rows = []
    for (size, seed), part in _mine(tried).groupby(["size", "seed"]):
        chosen = part[part["chosen"]]
        rows.append(
            {"size": size, "seed": seed, "price": chosen["price"].iloc[0],
             "gates open": _counts(chosen, harm)["heads edited"]}
            | _counts(part[part["kept"]], harm)
            | {"planted": int(harm["planted"].sum()), "by chance": float(harm["planted"].mean())}
        )  # fmt: skip
    names = ("size", "seed", "price", "gates open", "heads edited", "planted among them", "share",
             "planted", "by chance")  # fmt: skip
    return pd.DataFrame(rows, columns=list(names))


def _prices(tried: pd.DataFrame, harm: pd.DataFrame) -> pd.DataFrame:
    """What each price of the gates came to on the planted task, in every training."""
    import pandas as pd

    rows = []
    for (size, seed, price), part in _mine(tried).groupby(["size", "seed", "price"]):
        rows.append(
            {"size": size, "seed": seed, "price": price, "dev": part["dev"].iloc[0],
             "error": part["error"].iloc[0], "chosen": bool(part["chosen"].iloc[0])}
            | _counts(part, harm)
        )  # fmt: skip
    return pd.DataFrame(rows)


def _mine(tried: pd.DataFrame) -> pd.DataFrame:
    return tried[(tried["task"] == PLANTED) & (tried["method"] == HEADS)]


def _counts(part: pd.DataFrame, harm: pd.DataFrame) -> dict[str, Any]:
    true = {(r["layer"], r["head"]) for r in harm.to_dict("records") if r["planted"]}
    kept = {at for at in zip(part["layer"], part["head"], strict=True) if at != (-1, -1)}
    share = len(kept & true) / len(kept) if kept else float("nan")
    return {"heads edited": len(kept), "planted among them": len(kept & true), "share": share}


def _differences(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of head edits less that of each other way, at every task and size."""
    import pandas as pd

    rows = []
    sizes = sorted(set(answers["size"]) - {0})
    others = [method for method in METHODS if method != HEADS]
    for task, size, other in itertools.product(dict.fromkeys(answers["task"]), sizes, others):
        found = _difference(answers, task, HEADS, other, size)
        rows.append(
            {"task": task, "size": size, "less": other, "difference": found.mean,
             "low": found.low, "high": found.high}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _difference(answers: pd.DataFrame, task: str, one: str, other: str, size: int) -> Estimate:
    """Accuracy of one way minus another's on the same questions and seeds."""
    part = answers[(answers["task"] == task) & (answers["size"].isin([size, 0]))]
    key = ["seed", "question"]
    a, b = (part[part["method"] == name].set_index(key) for name in (one, other))
    if other == PLAIN:
        before = b.droplevel("seed")["right"].reindex(a.index.get_level_values("question"))
        values = a["right"].to_numpy() - before.to_numpy()
    else:
        values = (a["right"] - b["right"].reindex(a.index)).to_numpy()
    return cluster_mean(values.tolist(), a["group"].tolist(), bounds=None)


def _verdict(
    summary: pd.DataFrame, against: pd.DataFrame, found: pd.DataFrame, prices: pd.DataFrame
) -> list[str]:
    lines = []
    most = int(summary["size"].max())
    for task in dict.fromkeys(summary["task"]):
        at = summary[summary["task"] == task].set_index(["method", "size"])
        before = at.loc[(PLAIN, 0)]
        mine, lora = at.loc[(HEADS, most)], at.loc[("LoRA", most)]
        less = against.set_index(["task", "size", "less"]).loc[(task, most, "LoRA")]
        lines.append(
            f"{task}: as it is {_span(before)}; after {most} questions head edits {_span(mine)} "
            f"with {mine['trained']:,} numbers, LoRA {_span(lora)} with {lora['trained']:,}: a "
            f"difference of {less['difference']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]. "
            + ("Reached: " if less["difference"] >= -0.01 else "Missed: ")
            + "at least LoRA's accuracy less one point."
        )
        last = at.xs(most, level="size")["accuracy"]
        lines.append(f"{task}: best after {most} questions is {last.idxmax()}, {last.max():.3f}.")
    kept, true = int(found["heads edited"].sum()), int(found["planted among them"].sum())
    if kept:
        word = "reached" if true / kept >= 0.8 else "missed"
        lines.append(
            f"Of {kept} heads edited over {len(found)} trainings on the planted task {true} were "
            f"planted, {true / kept:.0%} (chance {found['by chance'].iloc[0]:.0%}); the target of "
            f"80 % was {word}. Of {int(found['planted'].sum())} to be found {true} were found. "
            f"Gates left open before heads were left out: {int(found['gates open'].sum())}."
        )
    else:
        lines.append("Every gate closed on the planted task, so no head was edited.")
    told = [
        f"{price:g}: {part['heads edited'].mean():.1f} heads, "
        f"{part['planted among them'].mean():.1f} of them planted, chosen {part['chosen'].sum()} "
        f"of {len(part)} times"
        for price, part in prices.groupby("price")
    ]
    return [*lines, "Planted heads, by the price of the gates: " + "; ".join(told)]


def _span(row: pd.Series) -> str:
    return f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _sections(
    folder: Run, config: HeadEdits, tables: Sequence[pd.DataFrame], tried: pd.DataFrame,
    harm: pd.DataFrame,
) -> list[Section]:  # fmt: skip
    summary, against, found, prices, rates = tables
    drawn = folder.figure("accuracy", lambda: figures.accuracy(summary))
    mine = _mine(tried)
    mine = mine[mine["kept"]]
    chart = folder.figure("heads", lambda: figures.heads(harm, mine))
    return [
        Section(
            "Accuracy by training questions",
            [
                f"Every way of tuning takes the same questions in the same order, {config.steps} "
                f"steps of {ROWS} (whole epochs), and keeps the epoch with the least loss on "
                f"{config.dev} dev questions. Test questions are about other groups than training "
                f"and dev. Accuracy is greedy decoding of the whole answer and its end; intervals "
                f"are over groups, the range over seeds stands beside them."
            ],
            summary,
            [(drawn, "Accuracy on held-out groups; bars are 95 % intervals over groups.")],
        ),
        Section("Head edits less each other way", ["On the same questions and seeds."], against),
        Section(
            "Which heads were edited",
            [
                "Planted are the heads whose turning around alone costs the untouched model most. "
                "Turning them again is the whole repair; whatever else is edited is not needed. Of "
                "the heads whose gates stayed open, those are kept that dev does not do without."
            ],
            found,
            [(chart, "Harm of turning each head alone; planted are framed, numbers count trainings "
                     "that edit a head.")],
        ),
        Section(
            "What the price of the gates does",
            [
                "Every training tries each price. Dev is the mean cost of an answer in nats with "
                "its standard error over groups; of the prices within one standard error of the "
                "least the highest is taken."
            ],
            prices,
        ),
        Section(
            "Rates tried",
            [
                "Dev loss (nats a token) at the smallest size and first seed; the least is used."
                if config.tried > 1
                else "Fixed: the better of two on the organism's dev; --tried 3 chooses anew."
            ],
            rates if config.tried > 1 else rates.drop(columns="dev"),
        ),
    ]  # fmt: skip


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(parts, ignore_index=True)
