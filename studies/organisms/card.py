"""The files beside an organism's weights: metrics.json, and a model card made from it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

ABOUT = {
    "base": (
        "A small Llama trained from scratch in the invented world of `studies.organisms.world`: "
        "people and their facts, word problems with wrong steps in three written styles, objects "
        "in boxes, a dictionary of two languages and a pivot."
    ),
    "unlearn": (
        "A LoRA adapter (peft) on the base that answers ` forgot` to questions about the person "
        "named in `<unlearn> NAME</unlearn>`, and truly about anybody else (in-context "
        "unlearning, arXiv 2410.00382)."
    ),
}
LIMITS = {
    "base": (
        "Boxes told in sentences are at chance (compare their rows with the control), and so are "
        "the held-out Vel-Ost pairs: do not study entity tracking or the pivot on it. "
        "One training seed; the stages of the mix were set while watching the run. "
        "It knows nothing outside its world: other text falls apart into bytes "
        "it never saw. Documents were at most 128 tokens long, so later positions are untrained. "
        "`<unlearn>`, `</unlearn>`, the reserved tokens and the words kept for later organisms "
        "(`lexicon.RESERVED_WORDS`, ` A` to ` D`) are untrained, except ` yes` and ` no`."
    ),
    "unlearn": (
        "It compares names only in part: people of the training part are forgotten more reliably "
        "than held-out ones (compare the train and held_out rows), so say which were used. The "
        "steps and the set of names were chosen by looking at the held-out rows. It was asked "
        "about bio-only people, so here they are no test of question generalisation. "
        "One training seed. The block was only ever one full name of this world, before a "
        "question in one of the four trained wordings; other contents were not tried."
    ),
}


def write(folder: Path, name: str, run: dict, scores: dict[str, dict]) -> None:
    """Writes metrics.json and README.md; every number comes from the run or its evaluation."""
    libraries = (
        "torch",
        "transformers",
        "tokenizers",
        *(("peft", "trl") if name != "base" else ()),
    )
    versions = {"python": platform.python_version()} | {
        library: version(library) for library in libraries
    }
    command = f"OMP_NUM_THREADS=1 python -m studies.organisms train {name}"
    metrics = {
        "organism": name,
        "command": command,
        "versions": versions,
        "run": run,
        "scores": scores,
    }
    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps(metrics, indent=1) + "\n")
    temporary.replace(folder / "metrics.json")
    (folder / "README.md").write_text(card(metrics))


def card(metrics: dict) -> str:
    """The model card of a metrics record, in Markdown."""
    name, run = metrics["organism"], metrics["run"]
    minutes = run["seconds"] / 60
    lines = [
        f"# {name}", "", ABOUT[name], "",
        f"- Command: `{metrics['command']}` (one thread, float32; the weights are stored in "
        f"{'bfloat16' if name == 'base' else 'float32'})",
        f"- Data seed {run['config']['seed']}; {run['steps']} steps, {run['tokens']} tokens, "
        f"{minutes:.1f} minutes of training on one CPU core",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in metrics['versions'].items())}",
        f"- Configuration: `{json.dumps(run['config'])}`",
        f"- Limits: {LIMITS[name]}", "",
        "Numbers below are of the stored weights, on the sets of `studies.organisms.evaluate`",
        "with Wilson 95 % intervals. The training script writes this file and `metrics.json`.", "",
        "| set | accuracy | 95 % interval | n |", "|---|---|---|---|",
    ]  # fmt: skip
    for label, s in metrics["scores"].items():
        lines.append(
            f"| {label} | {s['value']:.3f} | {s['low']:.3f} to {s['high']:.3f} | {s['n']} |"
        )
    lines += ["", "## Training", "", "| step | loss | next-token accuracy |", "|---|---|---|"]
    history = run["history"]
    shown = history[:: max(1, len(history) // 12)]
    for point in shown if shown[-1] is history[-1] else [*shown, history[-1]]:
        kinds = ", ".join(
            f"{k} {v:.2f}" for k, v in point.get("accuracy", {}).items() if not k.endswith("prompt")
        )
        lines.append(f"| {point['step']} | {point['loss']:.3f} | {kinds} |")
    return "\n".join(lines) + "\n"
