"""Where do models forget? Each fact a tuned model lost, traced through its layers.

Behaviour, lens, probes and patching between the checkpoints are set beside each other for every
fact, and give it a verdict: kept, hidden late, hidden early, erased. This extends the
pretend-to-forget study (arXiv 2410.00382), which reads by lenses alone, to any two checkpoints,
and asks of forgetting by random labels what arXiv 2409.02228 asks: does it reach people and
attributes that were not trained on, and do probes survive?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import probes
from interp import InterpError
from probes import Forgetting
from studies import _where_figures as figures
from studies import _where_measures as measures
from studies._checkpoints import ORGANISM, identity, only_organisms, open_checkpoint
from studies._report import Section, write_report
from studies._run import Run, digests
from studies._where_facts import Facts, organism_facts, read_facts

if TYPE_CHECKING:
    import pandas as pd

NAME = "where-it-forgets"
ORGANISMS = ("organism:unlearn", "organism:sft", "organism:rl", "organism:random_labels")


@dataclass(frozen=True)
class WhereItForgets:
    """Which facts did a tuned model lose, and in which layers does it still hold them?"""

    base: str = "organism:base"
    """The model before: a folder, a hub id, or a shipped organism."""
    tuned: tuple[str, ...] = ORGANISMS
    """The models after: one or several."""
    facts: Path | None = None
    """JSON lines with prompt, answer, entity (and attribute, set, train), asked of every tuned
    model; default: what fits each organism."""
    probe: bool = True
    """Whether to train probes; they need several facts about each answer of an attribute."""
    batch_size: int = 64
    """Prompts a forward."""
    out: Path = Path("runs/where-it-forgets")
    """The run folder; an interrupted run continues there."""
    seed: int = 0
    """For decoys, folds, shuffled labels, the untrained model and the bootstrap."""
    smoke: bool = False
    """A few people and attributes: that everything runs, in seconds."""


def run(config: WhereItForgets) -> Run:
    """Run the study and write its folder: records, tables, figures, report.html."""
    _check(config)
    weights = {source: identity(source) for source in (config.base, *config.tuned)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    records = {_short(s): (_record(folder, s, config), _facts(s, config)) for s in config.tuned}
    behaviour = folder.table("behaviour", lambda: measures.behaviour(records, config.seed))
    shares = folder.table("shares", lambda: measures.shares(records, config.seed))
    layers = folder.table("layers", lambda: measures.layers(records, config.seed))
    survival = folder.table("survival", lambda: measures.survival(records, config.seed))
    folder.table("verdicts", lambda: measures.verdicts(records))
    verdict = measures.verdict(behaviour, shares, survival)
    write_report(
        folder.path / "report.html",
        "Where do models forget?",
        verdict,
        _sections(folder, behaviour, shares, layers, survival),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def _check(config: WhereItForgets) -> None:
    names = [_short(source) for source in config.tuned]
    if not names or len(set(names)) < len(names):
        raise InterpError(
            f"tuned: {', '.join(config.tuned) or 'none'}; give one checkpoint or several, whose "
            f"last names differ"
        )
    if config.facts is None:
        only_organisms(
            (config.base, *config.tuned),
            "give --facts, JSON lines with prompt, answer, entity and attribute",
        )


def _short(source: str) -> str:
    """A checkpoint's name in tables and file names."""
    return Path(source.removeprefix(ORGANISM)).name.replace("@", "-step")


def _facts(source: str, config: WhereItForgets) -> Facts:
    if config.facts is not None:
        return read_facts(config.facts, smoke=config.smoke)
    family = source.removeprefix(ORGANISM).partition("@")[0].partition("-seed")[0]
    return organism_facts(family, smoke=config.smoke)


def _record(folder: Run, source: str, config: WhereItForgets) -> Forgetting:
    """The record of one tuned model; both models are opened only if it is not there yet."""
    path = folder.path / f"forgetting-{_short(source)}"
    if not path.exists():
        facts = _facts(source, config)
        found = probes.forgetting(
            open_checkpoint(config.base),
            open_checkpoint(source),
            facts.judged,
            train=facts.train,
            probe="ridge" if config.probe else None,
            folds=3 if config.smoke else 5,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        found.save(path)
    return Forgetting.load(path)


def _sections(
    folder: Run,
    behaviour: pd.DataFrame,
    shares: pd.DataFrame,
    layers: pd.DataFrame,
    survival: pd.DataFrame,
) -> list[Section]:
    bars = folder.figure("shares", lambda: figures.shares(shares))
    profiles = folder.figure("layers", lambda: figures.profiles(layers))
    return [
        Section(
            "What is still answered",
            [
                "Share of facts whose answer's first token is on top, in the base and after. Gap: "
                "accuracy after, above chance (one over the set's answers); ratio: the share of "
                "what was above chance that is lost (both after arXiv 2409.02228). Negative flips "
                "were right and are wrong. Intervals are over entities."
            ],
            measures.reading_table(behaviour, ("before", "after", "gap", "ratio",
                                               "negative_flips", "positive_flips"),
                                   ("model", "set", "items"), ("chance", "says")),
        ),
        Section(
            "Verdicts",
            [
                "Of the facts that the base answers: kept, or lost, and then in how deep a layer "
                "the tuned model still holds them. The hollow marks are the decoys of the lost "
                "facts, judged by the same rule: what chance gives.",
                "Patching lends the base's upper blocks, so it also finds facts that the tuned "
                "model's own upper blocks may no longer know: the second rows leave it out.",
            ],
            measures.verdict_table(shares),
            [(bars, "Share of each verdict, of the facts the base answers; 95 % intervals.")],
        ),
        Section(
            "Layer by layer",
            [
                "How often each reading has the answer on top: the lens of the base and of the "
                "tuned model, a probe of the tuned stream with its two controls, the base going on "
                "from the tuned model's whole stream, and the last position's stream exchanged "
                "both ways. Restoring from another fact's prompt is the control of restoring. "
                "Layer 0 is the embedding."
            ],
            figures=[(profiles, "Share of facts with the answer on top, by layer and reading.")],
        ),
        Section(
            "Do probes survive?",
            [
                "Accuracy of the probe among the attribute's answers, at the layer where the "
                "base's is best, on all facts that the base answers and on the lost ones. Change "
                "is paired, tuned minus base."
            ],
            measures.reading_table(survival, ("base", "tuned", "change", "shuffled", "untrained"),
                                   ("model", "set", "of", "layer", "facts")),
        ),
        Section(
            "How this could mislead",
            [
                "Hidden is not known: a probe or the base's blocks may read what the tuned model "
                "has no more use for. Hidden early rests on the base's upper blocks most of all: "
                "where training left the first blocks alone, it holds by construction.",
                "At the last position the lens is itself a linear readout, and late in the model "
                "the best one; a probe adds something where the answer is written in another "
                "direction, and has fewer examples than the unembedding had.",
                "Erased means that none of these readings finds it. A better one might.",
                "One training seed of each organism. The facts that a model lost are not drawn at "
                "random from all facts.",
            ],
        ),
    ]  # fmt: skip
