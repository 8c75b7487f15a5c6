"""`interp study`, `interp demo`: one question answered into a run folder, its verdict printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import tyro

from studies._catalogue import study
from studies._commands import Demo
from studies._run import Run


def run(name: str, given: Sequence[str] = ()) -> None:
    """Read a study's own options, run it, print what it found."""
    configuration, answer = study(name)
    _answered(answer, tyro.cli(configuration, prog=f"interp study {name}", args=given))


def demo(config: Demo) -> None:
    """The pretend-to-forget study on the shipped organisms, with its layers in the terminal."""
    from studies import pretend_to_forget as main

    print("Do models pretend to forget? A small model that was taught to say “forgot”, beside")
    print("its base, layer by layer. Both were trained here, so we know what was planted.\n")
    torch.set_num_threads(1)  # models this small only lose by waiting for a second thread
    asked = main.PretendToForget(out=apart(config).out, smoke=config.smoke)
    _answered(main.run, asked, show=main.print_layers)


def apart(config: Any) -> Any:
    """The configuration with a smoke run's folder beside the real run's, where none was named.

    `runs/head-edits` becomes `runs/head-edits-smoke`: else the smoke run would stand in the way.
    """
    out = type(config).__dataclass_fields__["out"].default
    if not config.smoke or config.out != out:
        return config
    return replace(config, out=out.with_name(f"{out.name}-smoke"))


def _answered(
    answer: Callable[[Any], Run], config: Any, show: Callable[[Run], None] | None = None
) -> None:
    started = time.perf_counter()
    folder = answer(apart(config))
    print()
    if show is not None:
        show(folder)
    for line in folder.read_meta()["facts"]["verdict"]:
        print(f"- {line}")
    print(f"\n{time.perf_counter() - started:.0f} s. Report: {folder.path / 'report.html'}")
