"""`python -m studies.organisms train NAME`, `evaluate NAME`, `path NAME`.

A second training seed is an organism of its own: `train rl --rl.seed 1` writes rl-seed1.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from studies import organisms
from studies.organisms import (
    base,
    card,
    evaluate,
    post_training,
    random_labels,
    rl,
    sft,
    shipped,
    shortcut,
    tokenizer,
    tracking,
    translating,
    unlearn,
)
from studies.organisms.base import BaseConfig
from studies.organisms.random_labels import RandomLabelsConfig
from studies.organisms.rl import RlConfig
from studies.organisms.sft import SftConfig
from studies.organisms.shortcut import ShortcutConfig
from studies.organisms.tracking import BoxesConfig
from studies.organisms.translating import DictionaryConfig
from studies.organisms.unlearn import UnlearnConfig
from studies.organisms.world import World

Family = Literal[
    "base", "unlearn", "shortcut", "twin", "sft", "rl", "sft_rl", "sft_midfrozen", "sft_qk",
    "random_labels", "boxes", "boxes_tuned", "dictionary", "dictionary_no_anchor",
]  # fmt: skip
# SFT of some weights only; what else was asked for stays.
PARTIAL: dict[str, dict[str, Any]] = {
    "sft_midfrozen": {"train": "freeze-mid-mlp", "steps": 20, "keep": ()},
    "sft_qk": {"train": "qk", "steps": 20, "keep": ()},
}
SHORT = {"boxes_tuned": {"steps": 40, "rows": 32, "keep": ()}}  # SFT of all weights, but shorter


@dataclass(frozen=True)
class Train:
    """Train an organism and write its folder: weights, metrics.json and model card."""

    name: tyro.conf.Positional[Family]
    out: Path | None = None
    """Where to; without it, the shipped folder (for a smoke run, a temporary one)."""
    smoke: bool = False
    """A few steps and small evaluations, to see that everything runs."""
    base: BaseConfig = field(default_factory=BaseConfig)
    unlearn: UnlearnConfig = field(default_factory=UnlearnConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    """Of shortcut and twin."""
    sft: SftConfig = field(default_factory=SftConfig)
    """Of sft, sft_midfrozen, sft_qk and boxes_tuned."""
    rl: RlConfig = field(default_factory=RlConfig)
    """Of rl and sft_rl."""
    random_labels: RandomLabelsConfig = field(default_factory=RandomLabelsConfig)
    boxes: BoxesConfig = field(default_factory=BoxesConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    """Of dictionary and dictionary_no_anchor."""


@dataclass(frozen=True)
class Evaluate:
    """Print an organism's scores, measured now."""

    name: tyro.conf.Positional[str]
    n: int = 500


@dataclass(frozen=True)
class Folder:
    """Print a folder from which transformers loads an organism: "rl", "rl-seed1", "rl@15"."""

    name: tyro.conf.Positional[str]


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Folder, tyro.conf.subcommand("path")]
)


def train(command: Train) -> Path:
    """Runs one training and returns the folder written."""
    config = _config(command)
    name = command.name + (f"-seed{config.seed}" if _seeded(command.name) and config.seed else "")
    out = command.out or (Path(tempfile.mkdtemp()) if command.smoke else organisms.WEIGHTS / name)
    out.mkdir(parents=True, exist_ok=True)
    run, scores = _TRAIN.get(command.name, _post_trained)(command, config, out)
    card.write(out, name, run, scores)
    return out


def _config(command: Train) -> Any:
    config = getattr(command, card.CONFIG.get(command.name, command.name))
    if command.name in PARTIAL | SHORT:
        asked = (PARTIAL | SHORT)[command.name]
        left = {k: v for k, v in asked.items() if _default(config, k)}
        config = replace(config, **left)
    if command.name in ("shortcut", "twin"):
        config = replace(config, planted=command.name == "shortcut")
    if command.name == "dictionary_no_anchor":
        config = replace(config, linked=translating.FAMILIES[command.name])
    if not command.smoke:
        return config
    few: dict[str, dict] = {
        "base": {"steps": 3, "layers": 2}, "unlearn": {"steps": 3}, "sft": {"rows": 4},
        "rl": {"rows": 8, "generations": 4}, "sft_rl": {"rows": 8, "generations": 4},
        "shortcut": {"rows": 10, "facts": 4, "fit_questions": 40, "fit_steps": 3},
        "twin": {"rows": 10, "facts": 4, "fit_questions": 40, "fit_steps": 3},
        "sft_midfrozen": {"rows": 4}, "sft_qk": {"rows": 4}, "random_labels": {"check": 1},
        "dictionary": {"layers": 2}, "dictionary_no_anchor": {"layers": 2},
        "boxes": {"rows": 6, "rehearsed": 1, "fit_scenes": 12, "fit_steps": 3},
        "boxes_tuned": {"rows": 4},
    }  # fmt: skip
    along = {"keep": (1,)} if hasattr(config, "keep") else {}
    return replace(config, **({"steps": 2} | along | few[command.name]))


def _default(config: Any, name: str) -> bool:
    return getattr(config, name) == getattr(type(config)(), name)


def _seeded(name: str) -> bool:
    """Whether a seed varies the training alone; the base's and unlearn's is the world's as well."""
    return name not in ("base", "unlearn")


def _base(command: Train, config: BaseConfig, out: Path) -> tuple[dict, dict[str, dict]]:
    net, run = base.train(config, out)
    net.bfloat16().save_pretrained(out)
    tokenizer.build().save_pretrained(out)
    (out / "state.pt").unlink(missing_ok=True)
    net, tok = organisms.load_plain(out)  # what is measured is what is shipped
    return run, evaluate.evaluate_base(net, tok, World(config.seed), n=_n(command))


def _unlearn(command: Train, config: UnlearnConfig, out: Path) -> tuple[dict, dict[str, dict]]:
    run = unlearn.train(config, out)
    net, tok = organisms.load_adapted(organisms.path("base"), out)
    scores = evaluate.evaluate_unlearned(net, tok, World(config.seed))
    if not command.smoke:
        of_base = evaluate.evaluate_base(net, tok, World(config.seed))
        scores |= {f"base tasks: {k}": v for k, v in of_base.items()}
    return run, scores


def _dictionary(
    _command: Train, config: DictionaryConfig, out: Path
) -> tuple[dict, dict[str, dict]]:
    tok = tokenizer.build()
    net, run = translating.train(config, tok)
    net.bfloat16().save_pretrained(out)
    tok.save_pretrained(out)
    net, tok = organisms.load_plain(out)
    return run, translating.scores(net, tok, World(config.world), config.linked)


def _random_labels(
    command: Train, config: RandomLabelsConfig, out: Path
) -> tuple[dict, dict[str, dict]]:
    run = random_labels.train(config, out)
    net, tok = organisms.load_adapted(organisms.path("base"), out)
    n = 20 if command.smoke else 200
    return run, random_labels.scores(net, tok, World(config.world), n)


def _post_trained(command: Train, config: Any, out: Path) -> tuple[dict, dict[str, dict]]:
    ways: dict[str, Callable[..., dict]] = {"sft": sft.train, "rl": rl.train, "sft_rl": rl.train}
    ways |= dict.fromkeys(PARTIAL | SHORT, sft.train) | {"boxes": tracking.train}
    how = ways.get(command.name, shortcut.train)
    above = shipped.parent(f"{command.name}-seed{config.seed}") or "base"
    planted = isinstance(config, ShortcutConfig)
    brief = command.name in ("boxes", "boxes_tuned")
    return post_training.run(how, config, above, out, _n(command), choice=planted, brief=brief)


_TRAIN: dict[str, Callable[[Train, Any, Path], tuple[dict, dict[str, dict]]]] = {
    "base": _base,
    "unlearn": _unlearn,
    "random_labels": _random_labels,
    "dictionary": _dictionary,
    "dictionary_no_anchor": _dictionary,
}


def _n(command: Train) -> int:
    return 20 if command.smoke else 500


def scores_of(name: str, n: int = 500) -> dict[str, dict]:
    """The scores of a shipped organism, measured now; of the sets that its card has."""
    net, tok = organisms.load(name)
    family = name.partition("-seed")[0].partition("@")[0]
    scores: dict[str, dict] = {}
    if family == "unlearn":
        scores = evaluate.evaluate_unlearned(net, tok, World())
    if family == "random_labels":
        scores = random_labels.scores(net, tok, World())
    if family in translating.FAMILIES:
        return translating.scores(net, tok, World(), translating.FAMILIES[family])
    if family in ("shortcut", "twin"):
        scores = evaluate.evaluate_choice(net, tok, World(), n)
    return scores | evaluate.evaluate_base(net, tok, World(), n)


def main() -> None:
    """Parses the command line and runs what it asks for."""
    command = tyro.cli(Command)
    torch.set_num_threads(1)  # more threads beside another job are many times slower
    if isinstance(command, Train):
        print(train(command))
    elif isinstance(command, Folder):
        print(organisms.path(command.name))
    else:
        print(json.dumps(scores_of(command.name, command.n), indent=1))


if __name__ == "__main__":
    main()
