"""Which checkpoints a who-forgets study looks at: runs of each way of training, step by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp import InterpError
from interp._errors import nearest
from studies._checkpoints import ORGANISM

BASE = "base"
FAMILIES = {
    "sft": ("sft",),
    "rl": ("rl",),
    "sft_rl": ("sft_rl",),
    "frozen": ("sft_midfrozen", "sft_qk"),
}


@dataclass(frozen=True)
class Checkpoint:
    """One state of one run.

    Args:
        method: "sft", "rl", "sft_rl", or the name of a partial training such as "sft_qk".
        run: the run's name, unique among all.
        seed: number of the run among those of its method; runs of one number are put side by side.
        step: optimizer steps, 0 where unknown.
        source: what opens it.
    """

    method: str
    run: str
    seed: int
    step: int
    source: str

    @property
    def name(self) -> str:
        """The run and the step."""
        return f"{self.run}@{self.step}" if self.step else self.run

    @property
    def slug(self) -> str:
        """A file name of its own."""
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in self.name)


def checkpoints(base: str, given: dict[str, Sequence[str]]) -> list[Checkpoint]:
    """The checkpoints of every run, in order; the shipped organisms where nothing is given.

    Args:
        base: what all started from.
        given: "sft", "rl", "sft_rl", "frozen" -> runs, each an organism ("organism:sft" for all its
            steps, "organism:sft@20" for one), a checkpoint folder, or a folder of `checkpoint-N`.

    Raises:
        InterpError: nothing given though the base is no organism, only partial trainings, or an
            unknown organism or step.
    """
    if not any(given.values()):
        if not base.startswith(ORGANISM):
            raise InterpError(
                "the base is no organism, so name what was trained from it: --sft FOLDER, --rl "
                "FOLDER (repeatable; a folder may hold checkpoint-N folders)"
            )
        given = _shipped()
    elif not any(given.get(kind) for kind in ("sft", "rl", "sft_rl")):
        raise InterpError("partial trainings are compared with SFT of all weights: name --sft too")
    found: list[Checkpoint] = []
    names: dict[str, int] = {}
    for kind, sources in given.items():
        runs: dict[str, int] = {}
        for source in sources:
            name = _run_name(source)
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name} ({names[name]})"
            method = kind if kind != "frozen" else name.partition("-seed")[0]
            seed = runs.setdefault(method, 0)
            runs[method] += 1
            found += [Checkpoint(method, name, seed, step, at) for step, at in _steps(source)]
    return found


def last_of(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The last checkpoint of every run."""
    return list({c.run: c for c in found}.values())  # a run is in the order of its steps


def _shipped() -> dict[str, Sequence[str]]:
    from studies import organisms

    return {
        kind: [
            ORGANISM + name
            for family in families
            for name in organisms.names()
            if name.partition("-seed")[0] == family
        ]
        for kind, families in FAMILIES.items()
    }


def _run_name(source: str) -> str:
    if source.startswith(ORGANISM):
        return source.removeprefix(ORGANISM).partition("@")[0]
    return Path(source).name or source


def _steps(source: str) -> list[tuple[int, str]]:
    """(step, what opens it) of a run, in order."""
    if source.startswith(ORGANISM):
        return _organism_steps(source)
    numbered = [
        (int(match[1]), str(path))
        for path in Path(source).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return sorted(numbered) or [(0, source)]


def _organism_steps(source: str) -> list[tuple[int, str]]:
    from studies import organisms

    name, at, step = source.removeprefix(ORGANISM).partition("@")
    if name not in organisms.names():
        raise InterpError(f"no organism {name!r}; {nearest(name, organisms.names())}")
    along = organisms.steps(name)
    if at and step not in map(str, along):
        there = ", ".join(map(str, along)) or "none, only its last"
        raise InterpError(f"no checkpoint {step} of {name!r}; there are {there}")
    chosen = [int(step)] if at else along
    return [(n, f"{ORGANISM}{name}@{n}") for n in chosen] or [(0, source)]
