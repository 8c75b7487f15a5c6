"""What post-training did to a language model, where, and how to change it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from interp import InterpError
from studies import (
    _bake,
    _diff,
    _trace,
    head_edits,
    pretend_to_forget,
    reasoning_paths,
    reasoning_vectors,
    sae_tuning,
    same_circuit,
    semantic_pivots,
    sft_vs_rl_weights,
    shortcut_neurons,
    superficial_edits,
    tune_what_matters,
    where_it_forgets,
    who_forgets,
)
from studies._bake import Bake
from studies._diff import Diff
from studies._run import Run
from studies._trace import Trace
from studies.head_edits import HeadEdits
from studies.pretend_to_forget import PretendToForget
from studies.reasoning_paths import ReasoningPaths
from studies.reasoning_vectors import ReasoningVectors
from studies.sae_tuning import SaeTuning
from studies.same_circuit import SameCircuit
from studies.semantic_pivots import SemanticPivots
from studies.sft_vs_rl_weights import SftVsRlWeights
from studies.shortcut_neurons import ShortcutNeurons
from studies.superficial_edits import SuperficialEdits
from studies.tune_what_matters import TuneWhatMatters
from studies.where_it_forgets import WhereItForgets
from studies.who_forgets import WhoForgets

# A study is a frozen configuration and a function that answers it into a run folder.
STUDIES: dict[str, tuple[type, Callable[[Any], Run]]] = {
    head_edits.NAME: (HeadEdits, head_edits.run),
    pretend_to_forget.NAME: (PretendToForget, pretend_to_forget.run),
    reasoning_paths.NAME: (ReasoningPaths, reasoning_paths.run),
    reasoning_vectors.NAME: (ReasoningVectors, reasoning_vectors.run),
    semantic_pivots.NAME: (SemanticPivots, semantic_pivots.run),
    same_circuit.NAME: (SameCircuit, same_circuit.run),
    sae_tuning.NAME: (SaeTuning, sae_tuning.run),
    sft_vs_rl_weights.NAME: (SftVsRlWeights, sft_vs_rl_weights.run),
    shortcut_neurons.NAME: (ShortcutNeurons, shortcut_neurons.run),
    superficial_edits.NAME: (SuperficialEdits, superficial_edits.run),
    tune_what_matters.NAME: (TuneWhatMatters, tune_what_matters.run),
    where_it_forgets.NAME: (WhereItForgets, where_it_forgets.run),
    who_forgets.NAME: (WhoForgets, who_forgets.run),
}


@dataclass(frozen=True)
class Study:
    """Answer one question, with its controls, into a run folder with a report.

    `interp study NAME --help` shows a study's own options.
    """

    name: tyro.conf.Positional[Literal[tuple(STUDIES)]]  # type: ignore[valid-type]
    """Which question."""


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


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what cannot be done is one sentence on stderr and exit status 2."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["study"] and given[1:2] and given[1] in STUDIES:
            config, run = STUDIES[given[1]]
            _study(run, tyro.cli(config, prog=f"interp study {given[1]}", args=given[2:]))
            return
        command = tyro.cli(Command, prog="interp", description=__doc__, args=given)
        if isinstance(command, Trace):
            _trace.run(command)
        elif isinstance(command, Diff):
            _diff.run(command)
        elif isinstance(command, Bake):
            _bake.run(command)
        elif isinstance(command, Demo):
            _demo(command)
        else:
            main(["study", command.name])
    except InterpError as error:
        print(f"interp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interp: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)


def _demo(demo: Demo) -> None:
    print("Do models pretend to forget? A small model that was taught to say “forgot”, beside")
    print("its base, layer by layer. Both were trained here, so we know what was planted.\n")
    torch.set_num_threads(1)  # models this small only lose by waiting for a second thread
    _study(
        pretend_to_forget.run,
        PretendToForget(out=demo.out, smoke=demo.smoke),
        show=pretend_to_forget.print_layers,
    )


def _study(
    run: Callable[[Any], Run], config: Any, show: Callable[[Run], None] | None = None
) -> None:
    started = time.perf_counter()
    folder = run(config)
    print()
    if show is not None:
        show(folder)
    for line in folder.read_meta()["facts"]["verdict"]:
        print(f"- {line}")
    print(f"\n{time.perf_counter() - started:.0f} s. Report: {folder.path / 'report.html'}")


if __name__ == "__main__":
    main()
