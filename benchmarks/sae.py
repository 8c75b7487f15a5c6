"""Training a topk SAE beside sparsify and sae-lens, each in an environment of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import interp
from benchmarks._measure import Contestant, Held, Timing
from benchmarks._report import Report, Section, row_of
from studies import organisms
from studies._problems import organism_texts

OURS, PLAIN = "interp", "interp without AuxK"
# What is compared with each peer: sae-lens has AuxK by default, as ours has, and sparsify has not.
PEERS = {"sparsify": (PLAIN, OURS), "sae-lens": (OURS,)}
ENVIRONMENT = "INTERP_SAE_PEERS"  # a python that can import both peers
TARGET = 1 / 1.5  # ours over a peer's
# d_sae, k, tokens a batch, steps
SIZES = ((1024, 32, 2048, 200), (4096, 32, 2048, 60))
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
HELD = 8192  # rows of dev, and of test
NOTES = f"""\
Activations of the shipped base at resid_post.3 (128 wide, first tokens left out), read once and
given to everybody as the same batches in the same order; each training is a process of its own
with one thread, in a random order every round. A rate means something else to each trainer, so
each one's is chosen first, with seed 0, by its FVU on {HELD} dev rows (below); rounds then have
other seeds and the FVU is that on {HELD} test rows, which nothing was chosen on. All use Adam, and
its rate rises over a twentieth of the steps, then falls as each trainer does. Ours is
`Learner.step` with AuxK, all of what `train_sae` does to a batch, and once more without AuxK.
sae-lens is its SAETrainer, with AuxK. sparsify is its SparseCoder with the steps of its
Trainer.fit, whose loop takes a model and not activations; without AuxK, its default. Peak growth
is by how much training lifted the process's memory over what it held with the activations loaded.
The target is judged only where ours is at most 2 % above the peer's FVU. Set
{ENVIRONMENT} to the python of an environment with
eai-sparsify and sae-lens; without it only ours runs."""
Found = dict[str, list[dict[str, Any]]]  # a training each, by trainer


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; rounds end when the time is spent."""
    report = Report("sae", NOTES)
    sizes = ((64, 4, 64, 3),) if quick else SIZES
    names = [OURS, PLAIN, *(PEERS if os.environ.get(ENVIRONMENT) else ())]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "activations.safetensors"
        save_file(_activations(512 if quick else HELD, 2048 if quick else 200_000), data)
        for size in sizes:
            begun = time.perf_counter()
            grid = {name: _train(name, data, size, 0, RATES) for name in names}
            left = seconds / len(sizes) - (time.perf_counter() - begun)
            best = {name: min(grid[name], key=lambda one: one["dev"])["lr"] for name in names}
            found = _rounds(best, data, size, 1 if quick else 5, left)
            report.sections.append(_section(size, found))
            report.notes += _choice(size, grid, best)
    return report


def _rounds(
    best: dict[str, float], data: Path, size: tuple[int, ...], most: int, seconds: float
) -> Found:
    begun = time.perf_counter()
    found: Found = {name: [] for name in best}
    for number in range(most):
        if number and (time.perf_counter() - begun) * (number + 1) / number > seconds:
            break
        for name in random.Random(number).sample(list(best), len(best)):
            found[name] += _train(name, data, size, 1 + number, (best[name],))
    return found


def _train(
    name: str, data: Path, size: tuple[int, ...], seed: int, rates: tuple[float, ...]
) -> list[dict[str, Any]]:
    ours = name in (OURS, PLAIN)
    python = sys.executable if ours else os.environ[ENVIRONMENT]
    root = Path(__file__).resolve().parents[1]
    script = str(root / "benchmarks" / "_sae_trainers.py")
    done = subprocess.run(
        [python, script, name, str(data), *map(str, (*size, seed, *rates))],
        capture_output=True, text=True, check=True,
        env=os.environ | ({"PYTHONPATH": str(root)} if ours else {}),
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _section(size: tuple[int, ...], found: Found) -> Section:
    wall = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    cpu = {name: [one["cpu"] for one in runs] for name, runs in found.items()}
    mean = {name: sum(one["test"] for one in runs) / len(runs) for name, runs in found.items()}
    everyone = [Contestant(name, _nothing) for name in found if name != OURS]
    stands = {name: name for name in found}
    for peer, mine in PEERS.items():
        for name in mine if peer in found else ():
            beside = f"{name}, beside {peer}"
            wall[beside], cpu[beside], stands[beside] = wall[name], cpu[name], name
            # Being faster counts only where the FVU reached is no worse, within 2 %.
            judged = (TARGET, TARGET) if mean[name] <= 1.02 * mean[peer] else None
            everyone.append(Contestant(beside, _nothing, target=judged, reference=peer))
    timing = Timing(wall, cpu)
    section = Section(_title(size), OURS, timing)
    for one in everyone:
        key = stands[one.name]
        median = sorted(cpu[key])[len(cpu[key]) // 2]
        rate = round(size[2] * size[3] / median)
        said = f"{one.name}: {rate:,} tokens a CPU second, FVU {mean[key]:.4f}"
        section.rows.append(
            row_of(one, timing, OURS) | {
                "contestant": said, "tokens_per_cpu_second": rate, "lr": found[key][0]["lr"],
                "fvu": [run["test"] for run in found[key]],
                "peak_growth_bytes": max(run["peak_growth_bytes"] for run in found[key]),
            }
        )  # fmt: skip
    return section


def _choice(size: tuple[int, ...], grid: Found, best: dict[str, float]) -> str:
    """FVU on dev by rate, as a table for the notes."""
    lines = [
        f"\n\nFVU on dev, {_title(size)}:\n",
        "| | " + " | ".join(f"{r:g}" for r in RATES) + " |",
    ]
    lines.append("|---" * (len(RATES) + 1) + "|")
    for name, runs in grid.items():
        cells = [f"{one['dev']:.4f}" + " (chosen)" * (one["lr"] == best[name]) for one in runs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(size: tuple[int, ...]) -> str:
    d_sae, k, batch, steps = size
    return f"{d_sae} features, k {k}, {steps} steps of {batch} tokens"


def _activations(held: int, count: int) -> dict[str, torch.Tensor]:
    """Rows to train on, and as many held out for dev as for test."""
    module, tokenizer = organisms.load("base")
    model = interp.load(module, tokenizer=tokenizer)
    rows: list[torch.Tensor] = []
    texts = organism_texts(max(200, count // 40), 0)
    for start in range(0, len(texts), 64):
        acts = interp.capture(model, texts[start : start + 64], "resid_post.3")
        mask = acts.mask.clone()
        mask[:, 0] = False
        rows.append(acts["resid_post.3"][mask])
        if sum(map(len, rows)) >= count + 2 * held:
            break
    everything = torch.cat(rows)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
    parts = everything[order].split([held, held, len(everything) - 2 * held])
    return dict(zip(("test", "dev", "train"), map(torch.Tensor.contiguous, parts), strict=True))


def _nothing() -> Held:
    return Held()
