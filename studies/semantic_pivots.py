"""Does a translation that was never taught go through a third language's word?

After "semantic pivots" (arXiv 2505.16385), whose metrics could not be read: word-level translation,
layer by layer, in a model that was taught Vel-Plain and Plain-Ost for every concept but Vel-Ost for
some only; beside it a model in which nothing links the held-out words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import probes
from interp import InterpError, Model
from probes import Cooccurrence
from studies import _pivot_causes as causes
from studies import _pivot_figures as figures
from studies import _pivot_measures as measures
from studies._checkpoints import ORGANISM, identity, open_checkpoint
from studies._pivot_verdict import headline, verdict_of
from studies._report import Section, write_report
from studies._run import Run, digests
from studies._word_pairs import WordPair, organism_pairs, read_pairs

if TYPE_CHECKING:
    import pandas as pd

NAME = "semantic-pivots"
ANCHORED, CONTROL = "organism:dictionary", "organism:dictionary_no_anchor"


@dataclass(frozen=True)
class SemanticPivots:
    """Does a translation that was never taught go through a third language's word?"""

    model: str = ANCHORED
    """A folder, a hub id or an organism."""
    control: str | None = None
    """A model in which nothing links the languages; default: the organism's, for the organism."""
    pairs: Path | None = None
    """JSON lines with prompt, target, source, pivots (and group, split, direction); default: the
    organisms' dictionary."""
    texts: Path | None = None
    """What the model was trained on, one document a line, for co-occurrence; default: the
    organism's own documents. Without texts there is no co-occurrence score."""
    out: Path = Path("runs/semantic-pivots")
    """The run folder; an interrupted run continues there."""
    threshold: float = 0.1
    """A translation is labelled as pivoting where its pivot score is above this."""
    documents: int = 4000
    """How many documents of an organism are counted."""
    seed: int = 0
    """For controls and the bootstrap."""
    smoke: bool = False
    """A few pairs and documents: that everything runs, in seconds."""


def run(config: SemanticPivots) -> Run:
    """Run the study and write its folder: tables, traces, figures, report.html."""
    models = _models(config)
    weights = {source: identity(source) for source in models.values()}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    pairs = _pairs(config)
    parts = [_measured(folder, name, source, pairs, config) for name, source in models.items()]
    rows, layers, changes = (_stacked(tables, models) for tables in zip(*parts, strict=True))
    found = folder.table("summary", lambda: measures.summary(rows, config.seed))
    effects = folder.table("effects", lambda: causes.summary(changes, config.seed))
    verdict = verdict_of(found, effects, list(models))
    write_report(
        folder.path / "report.html",
        "Does a translation that was never taught go through a third language's word?",
        verdict,
        _sections(folder, found, layers, effects, config),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def _models(config: SemanticPivots) -> dict[str, str]:
    control = config.control
    if control is None and config.model == ANCHORED and config.pairs is None:
        control = CONTROL
    models = {_short(config.model): config.model}
    if control is not None:
        if _short(control) in models:
            raise InterpError(f"--control {control!r} is the model itself; give another or none")
        models[_short(control)] = control
    return models


def _short(source: str) -> str:
    return source.removeprefix(ORGANISM) if source.startswith(ORGANISM) else Path(source).name


def _pairs(config: SemanticPivots) -> list[WordPair]:
    if config.pairs is not None:
        pairs = read_pairs(config.pairs)
        return pairs[:12] if config.smoke else pairs
    if not all(source.startswith(ORGANISM) for source in _models(config).values()):
        raise InterpError(
            "the organisms' dictionary is in no other model; give --pairs, JSON lines with prompt, "
            "target, source and pivots"
        )
    return organism_pairs(per_split=4 if config.smoke else None)


def _measured(
    folder: Run, name: str, source: str, pairs: list[WordPair], config: SemanticPivots
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of one model: its pairs, its layers, its interventions."""
    kept: dict[str, Any] = {}

    def opened() -> tuple[Model, Cooccurrence | None, measures.Asked]:
        if not kept:
            model = open_checkpoint(source)
            corpus = _corpus(model, source, pairs, config)
            kept["all"] = model, corpus, measures.asked_of(model, pairs, config.seed, corpus)
        return kept["all"]

    def compute_rows() -> pd.DataFrame:
        model, corpus, asked = opened()
        trace = folder.trace(f"trace-{name}", lambda: measures.traced(model, pairs, asked))
        return measures.by_pair(trace, pairs, asked, corpus, config.threshold)

    def compute_layers() -> pd.DataFrame:
        model, _, asked = opened()
        trace = folder.trace(f"trace-{name}", lambda: measures.traced(model, pairs, asked))
        return measures.profile(trace, pairs, asked, config.seed)

    def compute_effects() -> pd.DataFrame:
        model, _, asked = opened()
        return causes.effects(model, pairs, asked, config.seed)

    return (
        folder.table(f"pairs-{name}", compute_rows),
        folder.table(f"layers-{name}", compute_layers),
        folder.table(f"effects-{name}", compute_effects),
    )


def _stacked(tables: tuple[pd.DataFrame, ...], models: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    named = [table.assign(model=model) for model, table in zip(models, tables, strict=True)]
    return pd.concat(named, ignore_index=True)


def _corpus(
    model: Model, source: str, pairs: list[WordPair], config: SemanticPivots
) -> Cooccurrence | None:
    """Counts of the pairs' words in what the model was trained on."""
    texts = _texts(source, config)
    if not texts:
        return None
    words = sorted(set(measures.word_tokens(model, pairs).values()))
    documents = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return probes.cooccurrence(documents, words)


def _texts(source: str, config: SemanticPivots) -> list[str]:
    if config.texts is not None:
        lines = config.texts.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip()]
    if not source.startswith(ORGANISM) or config.pairs is not None:
        return []
    from studies.organisms import translating
    from studies.organisms.documents import write
    from studies.organisms.world import World

    count, world = 200 if config.smoke else config.documents, World(seed=0)
    name = _short(source).partition("@")[0].partition("-seed")[0]
    if name in translating.FAMILIES:
        linked = translating.FAMILIES[name]
        return translating.texts(world, linked, count, seed=config.seed)
    rng = random.Random(f"texts/{config.seed}")
    return [write(world, "dictionary", rng).text for _ in range(count)]


def _sections(
    folder: Run, found: pd.DataFrame, layers: pd.DataFrame, effects: pd.DataFrame,
    config: SemanticPivots,
) -> list[Section]:  # fmt: skip
    profiles = folder.figure("layers", lambda: figures.profiles(layers))
    main = effects[effects["model"] == _short(config.model)]
    changed = folder.figure("effects", lambda: figures.causes(main))
    return [
        Section(
            "What is said in the end",
            [
                "By model and kind of pair, with 95 % intervals over concepts. probability: of the "
                "target, the continuous accuracy; its null is the translation of another word of "
                "the same language and kind.",
            ],
            headline(found, ("accuracy", "probability", "reciprocal_rank")),
        ),
        Section(
            "Layer by layer",
            [
                "Mean probability by the logit lens at the end of the prompt. Grey: another "
                "pair's target, and other pairs' pivots matched in frequency."
            ],
            figures=[(profiles, "Probability by layer, with 95 % intervals over concepts.")],
        ),
        Section(
            "Pivot or co-occurrence?",
            [
                "pivot: the largest probability of the pivot, less its frequency in the corpus, in "
                "a layer before the first that has the target on top. association: the largest "
                "rank correlation, before that layer, of the probabilities of all other words with "
                "their PMI with the source. Nulls: other pairs' pivots; another word's PMI. A "
                f"translation is a pivot's above {config.threshold}, else co-occurrence's above "
                "0.3, else direct. All of this is our specification: the paper's could not be read."
            ],
            headline(found, ("pivot", "association", "is_pivot", "is_cooccurrence", "is_direct")),
        ),
        Section(
            "Is it used?",
            [
                "The pivot's direction (what its logit reads, less what the target's reads) is "
                "taken out of the stream at all positions, or what lies along it is put along "
                "another pair's pivot. If the translation goes through it, the target loses more "
                "than when another pivot's direction is taken out or the stream is changed as much "
                "in a random direction, and the exchange favours that other pair's target more "
                "than an exchange for a third pivot. In nats."
            ],
            headline(
                main[main["site"] == causes.EVERYWHERE].assign(
                    quantity=lambda t: t["what"] + ", " + t["condition"]
                )
            ),
            figures=[(changed, "By site; “everywhere” is all of them at once.")],
        ),
        Section(
            "How this could mislead",
            [
                "A lens reads the pivot where its word's direction is; where languages share one "
                "direction for a concept, it reads all of them there, and the pivot's probability "
                "says that the concept is there, not that its Plain word is thought of. Compare it "
                "for pairs that were taught outright, and in the control, which cannot translate. "
                "The ablation takes out only what the pivot does not share with the target.",
                "Words of several tokens are read by their first one, so words that begin alike "
                "are one word here.",
                "The raw lens favours frequent words in early layers; that is why unigram "
                "frequencies are taken off and random words stand beside.",
            ],
        ),
    ]
