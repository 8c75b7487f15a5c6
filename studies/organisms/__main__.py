"""`python -m studies.organisms train base|unlearn`, `python -m studies.organisms evaluate NAME`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from studies import organisms
from studies.organisms import base, card, evaluate, tokenizer, unlearn
from studies.organisms.base import BaseConfig
from studies.organisms.unlearn import UnlearnConfig
from studies.organisms.world import World

Name = Literal["base", "unlearn"]


@dataclass(frozen=True)
class Train:
    """Train an organism and write its folder: weights, tokenizer, metrics.json and model card."""

    name: tyro.conf.Positional[Name]
    out: Path | None = None
    """Where to; without it, the shipped folder (for a smoke run, a temporary one)."""
    smoke: bool = False
    """A few steps and small evaluations, to see that everything runs."""
    base: BaseConfig = field(default_factory=BaseConfig)
    unlearn: UnlearnConfig = field(default_factory=UnlearnConfig)


@dataclass(frozen=True)
class Evaluate:
    """Print an organism's scores, measured now."""

    name: tyro.conf.Positional[Name]
    n: int = 500


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
)


def train(command: Train) -> Path:
    """Runs one training and returns the folder written."""
    out = command.out or (
        Path(tempfile.mkdtemp()) if command.smoke else organisms.path(command.name)
    )
    out.mkdir(parents=True, exist_ok=True)
    if command.name == "base":
        config = replace(command.base, steps=3, layers=2) if command.smoke else command.base
        net, run = base.train(config, out)
        net.bfloat16().save_pretrained(out)
        tokenizer.build().save_pretrained(out)
        (out / "state.pt").unlink(missing_ok=True)
        net, tok = organisms.load_plain(out)  # what is measured is what is shipped
        scores = evaluate.evaluate_base(
            net, tok, World(config.seed), n=20 if command.smoke else 500
        )
    else:
        tuning = replace(command.unlearn, steps=3) if command.smoke else command.unlearn
        run = unlearn.train(tuning, out)
        net, tok = organisms.load_adapted(organisms.path("base"), out)
        scores = evaluate.evaluate_unlearned(net, tok, World(tuning.seed))
        if not command.smoke:
            scores |= {
                f"base tasks: {k}": v
                for k, v in evaluate.evaluate_base(net, tok, World(tuning.seed)).items()
            }
    card.write(out, command.name, run, scores)
    return out


def main() -> None:
    """Parses the command line and runs what it asks for."""
    command = tyro.cli(Command)
    torch.set_num_threads(1)  # more threads beside another job are many times slower
    if isinstance(command, Train):
        print(train(command))
        return
    net, tok = organisms.load(command.name)
    scores = {} if command.name == "base" else evaluate.evaluate_unlearned(net, tok, World())
    print(json.dumps(scores | evaluate.evaluate_base(net, tok, World(), command.n), indent=1))


if __name__ == "__main__":
    main()
