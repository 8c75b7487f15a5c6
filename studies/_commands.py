"""What the commands take. Nothing heavy is imported here: `interp --help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from studies._catalogue import QUESTIONS


@dataclass(frozen=True)
class Trace:
    """What would each layer answer? The logit lens on one prompt."""

    model: tyro.conf.Positional[str]
    """A folder, a hub id, or a shipped organism such as organism:base."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])]
    """The text to read; quote it."""
    answer: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(aliases=["-a"], metavar="TEXT")
    ] = ()
    """An answer to follow, with its leading space: " Paris"; may be repeated. Default: the
    model's own."""
    out: Path = Path("runs/trace")
    """Where trace.png, trace.html and the record go."""
    top_k: int = 5
    """Top tokens kept for each layer and position."""


@dataclass(frozen=True)
class Diff:
    """What changed in the weights? Two or more checkpoints, read from disk."""

    base: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BASE")]
    """The checkpoint before: a folder, a hub id, or a shipped organism such as organism:base."""
    tuned: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TUNED [TUNED ...]")
    ]
    """One or more checkpoints after it: the same, LoRA adapter folders included."""
    metrics: Literal["cheap", "spectral", "overlap", "all"] = "cheap"
    """How much to measure: one pass over the files, or decompositions and masks with nulls too."""
    out: Path = Path("runs/diff")
    """Where report.html, the record, the figures and table.csv go."""
    workers: int = 1
    """Processes; the result does not depend on it."""


@dataclass(frozen=True)
class Bake:
    """Fold an edit into the weights: a plain checkpoint, verified, with a model card."""

    model: tyro.conf.Positional[str]
    """A folder, a hub id, or a shipped organism such as organism:base."""
    edit: tyro.conf.Positional[Path]
    """The folder of a saved edit."""
    out: Path
    """The new checkpoint's folder; nothing may be there yet."""
    verify: bool = True
    """Compare the logits with the edited model's: loads the base, then the result."""
    transfer: bool = False
    """Allow another model of the same shapes than the one the edit was made on."""
    untie: bool = False
    """Store a tied embedding and head apart, where a change of the embedding needs it."""


# A subcommand a study, for its help alone: `interp study NAME` reads the study's own configuration.
_Chosen: Any = reduce(
    or_,
    (
        Annotated[
            make_dataclass(name, (), frozen=True, namespace={"__doc__": question}),
            tyro.conf.subcommand(name, description=question),
        ]
        for name, question in QUESTIONS.items()
    ),
)


@dataclass(frozen=True)
class Study:
    """Answer one question, with its controls, into a run folder with a report."""

    chosen: _Chosen
    """Which question; `interp study NAME --help` shows its own options."""


@dataclass(frozen=True)
class Demo:
    """The main job on the shipped organisms, in about a minute: do models pretend to forget?"""

    out: Path = Path("runs/demo")
    """Where the report goes."""
    smoke: bool = False
    """A few people only, in seconds."""


Command = (
    Annotated[Trace, tyro.conf.subcommand("trace")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Bake, tyro.conf.subcommand("bake")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)
