"""Does RL leave a vector that carries its ability to another model? Task arithmetic with controls.

"Reasoning Vectors" (arXiv 2509.01363) subtract an SFT model from an RL model of the same start and
add the difference to a third. Here the vector stands beside what it must beat: noise of the same
norm in every tensor, its own sign flip, the vector of SFT, the loss on the straight line, and what
bfloat16 leaves of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from interp._estimate import Estimate
from probes import LossBarrier
from studies import _reasoning_figures as figures
from studies import _reasoning_measures as measures
from studies._checkpoints import ORGANISM, identity
from studies._reasoning_bench import Bench
from studies._reasoning_measures import MAIN, Condition
from studies._report import Section, write_report
from studies._run import Run, digests

if TYPE_CHECKING:
    import pandas as pd

NAME = "reasoning-vectors"
STORED = (0.1, 0.25, 0.5, 1.0)  # of each vector, as bfloat16 would keep it
LINES = {"sft": "SFT to RL", "target": "target to target + (rl − sft)"}


@dataclass(frozen=True)
class ReasoningVectors:
    """Does the difference of an RL and an SFT model carry RL's ability to another model?"""

    base: str = "organism:base"
    """The checkpoint that both started from: a folder, a hub id, or a shipped organism."""
    sft: str = "organism:sft"
    """After supervised fine-tuning."""
    rl: str = "organism:rl"
    """After reinforcement learning."""
    target: str | None = None
    """What the vectors are added to; default: the organism that unlearned, or else the base."""
    problems: Path | None = None
    """JSON lines with prompt and answer (and solution, group); default: the organisms'."""
    texts: Path | None = None
    """Ordinary text, a document a line, on which the loss should stay; default: the organisms'."""
    out: Path = Path("runs/reasoning-vectors")
    """The run folder; an interrupted run continues there."""
    count: int = 100
    """Problems, and texts."""
    samples: int = 2
    """Completions of each problem."""
    temperature: float = 1.0
    """Of the completions; 0 decodes greedily."""
    max_new_tokens: int = 40
    """Of a completion."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.25)
    """How much of each vector is added, beside 1 (which decides) and -1 (the sign flip)."""
    draws: int = 5
    """Of noise of the same norm."""
    allow_distant: bool = False
    """Go on although configs, tokens or weights say that these are not states of one model."""
    seed: int = 0
    """Of problems, samples, noise and intervals."""
    smoke: bool = False
    """A few problems, that everything runs, in seconds."""

    @property
    def receiver(self) -> str:
        """The target's name."""
        if self.target is not None:
            return self.target
        return "organism:unlearn" if self.base.startswith(ORGANISM) else self.base


def run(config: ReasoningVectors) -> Run:
    """Run the study and write its folder: answers, tables, figures, report.html."""
    models = {"base": config.base, "sft": config.sft, "rl": config.rl, "target": config.receiver}
    weights = {source: identity(source) for source in models.values()}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    bench = Bench(config, models)
    relations = folder.table("relations", bench.relations)
    answers = _answers(folder, bench)
    effects = folder.table("effects", lambda: measures.effects(answers, config.seed))
    known = folder.table("models", lambda: _models(answers, models, config.seed))
    stored = folder.table("stored", lambda: bench.stored(STORED))
    lines = _lines(folder, bench)
    verdict = _verdict(answers, effects, known, stored, lines, config)
    write_report(
        folder.path / "report.html",
        "Does RL leave a vector that carries its ability elsewhere?",
        verdict,
        _sections(folder, config, known, effects, relations, stored, lines),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def _answers(folder: Run, bench: Bench) -> pd.DataFrame:
    """Every condition measured, each kept in a file of its own."""
    import pandas as pd

    (folder.path / "answers").mkdir(exist_ok=True)
    parts = []
    for role in bench.models:
        slug = Condition(role, "model", 0.0).slug
        parts.append(folder.table(f"answers/{slug}", partial(bench.model, role)))
    for condition, edit in tqdm(list(bench.conditions()), desc="conditions", delay=2):
        name = f"answers/{condition.slug}"
        parts.append(folder.table(name, partial(bench.added, condition, edit)))
    return pd.concat(parts, ignore_index=True)


def _models(answers: pd.DataFrame, models: dict[str, str], seed: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for role, source in models.items():
        here = measures.select(answers, role, "model", 0.0)
        found = measures.accuracy(here, seed)
        row = {"model": role, "checkpoint": source, "accuracy": found.mean}
        row |= {"accuracy_low": found.low, "accuracy_high": found.high}
        rows.append({**row, "text_loss": measures.text_loss(here)})
    return pd.DataFrame(rows)


def _lines(folder: Run, bench: Bench) -> dict[str, LossBarrier]:
    """Loss along the lines between the donors, and from the target with the vector, by title."""
    found = {}
    for start, title in LINES.items():
        for what in ("solutions", "other texts"):
            path = folder.path / f"line-{start}-{what.split()[0]}"
            if what == "solutions" or bench.task.texts:
                if not path.exists():
                    bench.line(start, what).save(path)
                found[f"{title}: {what}"] = LossBarrier.load(path)
    return found


def _verdict(
    answers: pd.DataFrame,
    effects: pd.DataFrame,
    known: pd.DataFrame,
    stored: pd.DataFrame,
    lines: dict[str, LossBarrier],
    config: ReasoningVectors,
) -> list[str]:
    """What was found, a sentence a line, each with its control."""
    at = effects[effects["draw"] == 0].set_index(["vector", "control", "alpha"])
    sentences = [_alone(known)]
    for vector in (MAIN, "rl - base"):
        found = measures.outcome(answers, vector, config.seed)
        trivial = vector == "rl - base" and config.receiver == config.base
        note = " (this is the RL model itself, so no transfer)" if trivial else ""
        sentences.append(
            f"“{_name(vector)} carries RL's ability to the target” "
            f"{found}{note}: the whole vector changes the share "
            f"of samples solved by {_points(found.gain)} points over the target as it is, and by "
            f"{_points(found.over_noise)} over noise of its norm (mean of the draws; one more draw "
            f"would solve {_share(found.noise)})."
        )
    flip, sft = at.loc[(MAIN, "", -1.0)], at.loc[("sft - base", "", 1.0)]
    sentences += [
        f"Sign-flipped, {_name(MAIN)} changes it by {_row(flip, 'gain')} points; SFT's own vector, "
        f"added whole, by {_row(sft, 'gain')}.",
        *_greedy(answers, config.seed),
        _barriers(lines),
        _bfloat16(stored),
        "Rule: held where, at α = 1, the gain over the target and the gain over noise are above "
        "zero by their 95 % intervals over problems, and the vector solves more than the 95 % "
        "prediction interval of one more draw of noise. α was not chosen by looking.",
    ]
    return sentences


def _alone(known: pd.DataFrame) -> str:
    """Who can do the task, without which no difference of two of them means anything."""
    at = known.set_index("model")["accuracy"]
    line = f"Alone the models solve: {', '.join(f'{name} {at[name]:.2f}' for name in at.index)}."
    if at["sft"] >= at["rl"]:
        line += (
            f" SFT solves no less than RL here, so {_name(MAIN)} may take away more of the task "
            f"than it gives: compare donors of equal accuracy."
        )
    return line


def _greedy(answers: pd.DataFrame, seed: int) -> list[str]:
    """Whether anything is left of a gain once the target, too, takes its likeliest tokens."""
    rows = {
        name: measures.select(answers, name, "greedy", 0.0 if name == "target" else 1.0)
        for name in ("target", MAIN)
    }
    if not all(len(each) for each in rows.values()):
        return []
    alone, found = (measures.accuracy(each, seed) for each in rows.values())
    gain = measures.difference(rows[MAIN], [rows["target"]], seed)
    return [
        f"Decoded greedily the target solves {alone} as it is and {found} with {_name(MAIN)} "
        f"({_points(gain)} points). A gain that is there only when sampling is a sharper "
        f"distribution, not a new ability."
    ]


def _barriers(lines: dict[str, LossBarrier]) -> str:
    found = [
        f"{title} {e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"
        for title, e in ((title, line.estimate()) for title, line in lines.items())
    ]
    return f"Loss barrier on the straight line, nats a token (0 or less: none): {_list(found)}"


def _bfloat16(stored: pd.DataFrame) -> str:
    rows = stored[stored["vector"] == MAIN]
    parts = [
        f"α = {row.alpha:g}: norm × {row.norm_ratio:.2f}, cosine {row.cosine:.2f}, "
        f"{row.unmoved:.0%} of the weights stay"
        for row in rows.itertuples()
    ]
    return f"What bfloat16 would leave of {_name(MAIN)} on the target: {_list(parts)}"


def _sections(
    folder: Run,
    config: ReasoningVectors,
    known: pd.DataFrame,
    effects: pd.DataFrame,
    relations: pd.DataFrame,
    stored: pd.DataFrame,
    lines: dict[str, LossBarrier],
) -> list[Section]:
    sweep = folder.figure("sweep", lambda: figures.sweep(effects, known))
    barrier = folder.figure("barriers", lambda: figures.barriers(lines))
    kept = folder.figure("stored", lambda: figures.stored(stored))
    how = "greedily" if config.temperature == 0 else f"sampled at T = {config.temperature:g}"
    return [
        Section(
            "The four models",
            [
                f"Share of completions ({how}) that solve their problem, with 95 % intervals over "
                f"problems, and the loss on other texts in nats a token. The target is "
                f"{config.receiver}."
            ],
            _readable(known, ["model", "checkpoint"], ["accuracy"], ["text_loss"]),
        ),
        Section(
            "Target plus α times a vector",
            [
                "All arithmetic is in float32. The decision is at α = 1; the other α show the "
                "course and were not chosen from. Noise has, tensor by tensor, the norm of the "
                "vector. A vector that solves more than noise does, and whose sign flip solves "
                "less, points in a direction that matters to the task; the loss on other texts "
                "says what it costs. Rows decoded greedily are compared with the target decoded "
                "greedily."
            ],
            _readable(
                effects,
                ["vector", "control", "alpha", "draw"],
                ["accuracy", "gain", "over_noise"],
                ["text_loss"],
            ),
            [(sweep, "α = 0 is the target as it is; bars are 95 % intervals over problems.")],
        ),
        Section(
            "Loss on the straight line",
            [
                "Linear mode connectivity is what lets a part of a vector be added. Barrier: the "
                "largest loss between the ends minus the larger loss of the ends."
            ],
            figures=[(barrier, "Loss along the line; dashed: the larger end.")],
        ),
        Section(
            "What bfloat16 would leave",
            [
                "The target cast to bfloat16, α times the vector added in float32, the sum rounded "
                "back: norm and direction of what is realised. A sweep over α of models stored in "
                "bfloat16 does not sweep what it says."
            ],
            stored[["vector", "alpha", "norm_ratio", "cosine", "unmoved"]],
            [(kept, "By α; 1 is what was asked for.")],
        ),
        Section(
            "Do these models belong together?",
            [
                "Cosine of the weights and relative distance, from 16 rows of each matrix. Config, "
                "tokens and shapes were compared before anything was added."
            ],
            relations,
        ),
        Section("How this could mislead", _confounds(config)),
    ]


def _confounds(config: ReasoningVectors) -> list[str]:
    return [
        "RL minus SFT holds everything that the two trainings did differently: style, steps and "
        "learning rate, and minus what SFT taught. It is not “reasoning” by itself; compare it "
        "with RL minus base and SFT minus base.",
        f"Intervals are over problems, for one triple of checkpoints; they say nothing about "
        f"another training seed. {config.draws} draws of noise bound what noise does only "
        f"roughly.",
        "Isotropic noise is a weak rival: nearly any trained change differs from it. The sign flip "
        "and SFT's own vector are the stronger ones.",
        "A gain on sampled completions can come from a sharper distribution alone, which is much "
        "of what RL does: that is what the rows decoded greedily are for.",
    ]


def _readable(
    table: pd.DataFrame, keys: list[str], quantities: list[str], plain: list[str]
) -> pd.DataFrame:
    """Keys, quantities with their intervals as text, and other columns."""
    shown = table[keys].copy()
    for name in quantities:
        columns = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        shown[name.replace("_", " ")] = [
            "–" if mean != mean else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            for mean, low, high in columns
        ]
    for name in plain:
        shown[name.replace("_", " ")] = table[name]
    return shown


def _name(vector: str) -> str:
    return vector.replace("-", "−")


def _points(found: Estimate) -> str:
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _row(row: pd.Series, name: str) -> str:
    return _points(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], 0, 0))


def _share(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.2f} to {limits[1]:.2f}"


def _list(parts: Iterable[str]) -> str:
    return "; ".join(parts) + "."
