"""Do models only pretend to forget? The lens on an unlearned model beside its base.

Takashiro et al. (arXiv 2410.00382) report that a model tuned to answer "forgot" still holds the
answer in its middle layers and switches at the end. Here that is measured with what such a claim
needs beside it: a tuned lens beside the raw one, the base on the same prompts, another person's
answer as the null, prompts without a request to forget, and intervals over people.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp import LensTrace, LinearLens, Model
from studies import _pretend_figures as figures
from studies import _pretend_measures as measures
from studies._checkpoints import ORGANISM, identity, only_organisms, open_checkpoint
from studies._facts import Item, organism_items, read_items
from studies._report import Section, write_report
from studies._run import Run, digests

if TYPE_CHECKING:
    import pandas as pd

NAME = "pretend-to-forget"


@dataclass(frozen=True)
class PretendToForget:
    """Does an unlearned model still hold the answer in its middle layers?"""

    base: str = "organism:base"
    """The model before: a folder, a hub id, or a shipped organism."""
    tuned: str = "organism:unlearn"
    """The model after unlearning."""
    facts: Path | None = None
    """JSON lines with prompt, answer, forgotten (and group, kind, decoy); default: the organism's
    held-out people, whom no other checkpoint knows."""
    texts: Path | None = None
    """Ordinary text, one document a line, to fit the tuned lens; default: the organism's world.
    Without texts other checkpoints are read by the raw lens alone."""
    out: Path = Path("runs/pretend-to-forget")
    """The run folder; an interrupted run continues there."""
    lens_steps: int = 60
    """Optimiser steps of the tuned lens."""
    seed: int = 0
    """For decoys, the lens and the bootstrap."""
    smoke: bool = False
    """A few people and a lens hardly fitted: that everything runs, in seconds."""


def run(config: PretendToForget) -> Run:
    """Run the study and write its folder: tables, traces, figures, report.html."""
    if config.facts is None:
        only_organisms(
            (config.base, config.tuned), "give --facts, JSON lines with prompt, answer, forgotten"
        )
    weights = {source: identity(source) for source in (config.base, config.tuned)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    items = _items(config)
    for side, source in (("base", config.base), ("tuned", config.tuned)):
        _trace_side(folder, side, source, items, config)
    lenses = [lens for lens in ("raw", "tuned") if (folder.path / f"trace-base-{lens}").exists()]
    traces = {
        (side, lens): LensTrace.load(folder.path / f"trace-{side}-{lens}")
        for side in ("base", "tuned")
        for lens in lenses
    }
    measures.check(traces, items)
    behaviour = folder.table("behaviour", lambda: measures.behaviour(traces, items, config.seed))
    layers = folder.table("layers", lambda: measures.by_layer(traces, items, config.seed))
    summary = folder.table("summary", lambda: measures.summary(traces, items, config.seed))
    verdict = measures.verdict(summary, behaviour, lenses)
    write_report(
        folder.path / "report.html",
        "Do models pretend to forget?",
        verdict,
        _sections(folder, behaviour, layers, summary, lenses),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def print_layers(folder: Run) -> None:
    """The layer table of a finished run, in the terminal."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    layers = pd.read_parquet(folder.path / "layers.parquet")
    layers = layers[layers["quantity"] == "prob"]
    lens = "tuned" if "tuned" in set(layers["lens"]) else "raw"
    at = layers[layers["lens"] == lens].set_index(["model", "who", "layer"])["mean"]
    table = Table(
        title=f"Asked to forget, mean probability by layer ({lens} lens)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    shown = [
        ("base", "answer", "base: answer"),
        ("tuned", "answer", "unlearned: answer"),
        ("tuned", "forgotten", "unlearned: “forgot”"),
        ("tuned", "another's answer", "unlearned: another's answer"),
    ]
    table.add_column("layer", justify="right")
    for *_, title in shown:
        table.add_column(title, justify="right")
    for layer in sorted(set(layers["layer"])):
        cells = [f"{at[side, who, layer]:.3f}" for side, who, _ in shown]
        table.add_row(str(layer), *cells)
    Console().print(table, "")


def _items(config: PretendToForget) -> list[Item]:
    if config.facts is not None:
        items = read_items(config.facts, config.seed)
        return items[:8] if config.smoke else items
    return organism_items(config.seed, people=4 if config.smoke else None)


def _trace_side(
    folder: Run, side: str, source: str, items: list[Item], config: PretendToForget
) -> None:
    """The traces of one model through each lens; the model is opened only if one is missing."""
    texts = _texts(config)
    wanted = ["raw"] if texts is None else ["raw", "tuned"]
    if all((folder.path / f"trace-{side}-{lens}").exists() for lens in wanted):
        return
    model = open_checkpoint(source)
    folder.trace(f"trace-{side}-raw", lambda: _trace(model, items, None))
    if texts is not None:
        lens = _fitted(folder, side, model, texts, config)
        folder.trace(f"trace-{side}-tuned", lambda: _trace(model, items, lens))


def _trace(model: Model, items: list[Item], lens: LinearLens | None) -> LensTrace:
    answers = [[item.answer, item.forgotten, item.decoy] for item in items]
    return interp.logit_lens(model, [item.prompt for item in items], answers, top_k=3, lens=lens)


def _fitted(
    folder: Run, side: str, model: Model, texts: list[str], config: PretendToForget
) -> LinearLens:
    import probes

    path = folder.path / f"lens-{side}"
    if not path.exists():
        steps = 2 if config.smoke else config.lens_steps
        fit = probes.tuned_lens(model, texts, steps=steps, seed=config.seed)
        folder.table(f"lens-{side}-kl", fit.table)
        fit.save(path)
    return LinearLens.load(path)


def _texts(config: PretendToForget) -> list[str] | None:
    """What the tuned lens is fitted on; never the prompts that it is to read."""
    if config.texts is not None:
        lines = config.texts.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip()]
    if not (config.base.startswith(ORGANISM) and config.tuned.startswith(ORGANISM)):
        return None
    from studies.organisms.documents import write
    from studies.organisms.world import World

    world, rng = World(seed=0), random.Random(f"lens/{config.seed}")
    count = 20 if config.smoke else 240
    tasks = ("biography", "question", "arithmetic", "boxes", "dictionary")
    texts = [write(world, tasks[i % len(tasks)], rng).text for i in range(count)]
    asked = [
        item.prompt + item.answer
        for kind in ("forget", "retain", "no_block")
        for item in world.unlearn_items(people="train", kind=kind)
    ]
    return texts + rng.sample(asked, count)


def _sections(
    folder: Run, behaviour: pd.DataFrame, layers: pd.DataFrame, summary: pd.DataFrame, lenses: list
) -> list[Section]:
    curves = folder.figure("layers", lambda: figures.curves(layers, lenses))
    held = folder.figure("readable", lambda: figures.readable(layers, lenses))
    return [
        Section(
            "What the models say",
            [
                "Share of prompts on which the model's next token begins the true answer, or the "
                "word for forgetting, with 95 % intervals over people. “retain” asks "
                "about somebody other than the name in the block; “no_block” and “unrelated” are "
                "the controls: nothing is to be forgotten there. The base never saw a block and "
                "may well be confused by a second name."
            ],
            behaviour.drop(columns=["answer", "forgotten"]),
        ),
        Section(
            "Layer by layer",
            [
                "Mean probability of the true answer, of the word for forgetting, and of another "
                "person's answer (the null), on prompts that ask to forget. Layer 0 is the "
                "embedding, the last layer the model's own output; bands are 95 % intervals over "
                "people."
            ],
            figures=[(curves, "Probability by layer, base above, unlearned below.")],
        ),
        Section(
            "Is the answer still readable?",
            [
                "Share of forget prompts on which the answer is the lens's top token. A layer is "
                "readable only as far as the curve of the true answer stands above the null's."
            ],
            figures=[(held, "Answer on top, by layer; the null is another person's answer.")],
        ),
        Section(
            "Summary",
            [
                "Internal answer score: share of (prompt, middle layer) pairs in which the answer "
                "is the lens's top token, middle layers being the upper half without the output "
                "(our specification; the paper's own could not be read). Late-switch margin: "
                "P(answer) before the last block minus after it. Switch layer: from here on the "
                "word for forgetting beats the answer. Only prompts on which the tuned model does "
                "say that it forgot."
            ],
            measures.side_by_side(summary),
        ),
        Section(
            "How this could mislead",
            [
                "A raw lens reads middle layers in the output's basis, so a low probability can "
                "mean another basis and not absence: that is what the tuned lens is for. A tuned "
                "lens can read what the model would not use: that is what the null is for.",
                "Readable is not used. Whether the answer at a middle layer plays a part in the "
                "output needs patching, and whether a probe finds it where no lens does needs a "
                "probe; neither is claimed here.",
                "One organism of one seed shows what can happen in a small model, not what happens "
                "in large ones.",
            ],
        ),
    ]
