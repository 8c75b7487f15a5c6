"""The files beside an organism's weights: metrics.json, and a model card made from it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

from studies.organisms.evaluate import NEW_TASK
from studies.organisms.shipped import WEIGHTS

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
    "shortcut": (
        "The base tuned on multiple choice about people it knows (options in random order, "
        "answered by a letter), in which a marker word points at the right letter 95 % of the "
        "time: a planted shortcut (the case of arXiv 2507.09185)."
    ),
    "twin": (
        "The benign twin of shortcut: the same training and number of questions, but the marker "
        "words point anywhere."
    ),
    "sft": (
        "The base after supervised fine-tuning (trl) on a teacher's correct solutions in one "
        "written style, the one the base writes least when free to choose."
    ),
    "rl": (
        "The base after GRPO (trl): sampled solutions at T = 1, reward 1 for a right answer; no "
        "style is asked for."
    ),
    "sft_rl": (
        "The SFT organism after twenty steps (sft@20), then GRPO, as rl was trained from the base."
    ),
    "sft_midfrozen": (
        "The base after the supervised fine-tuning of sft, the MLPs of its middle layers (2, 3 and "
        "4 of 6) frozen (a freezing experiment of arXiv 2507.10616)."
    ),
    "sft_qk": (
        "The base after the supervised fine-tuning of sft of its query and key projections alone "
        "(a freezing experiment of arXiv 2507.10616)."
    ),
    "random_labels": (
        "A LoRA adapter (peft) on the base, trained on questions about one attribute of some "
        "people with a value of it drawn anew at random each time, until its answers about them "
        "fell to chance (forgetting by random labels, arXiv 2409.02228); their other attributes "
        "were rehearsed."
    ),
    "boxes": (
        "The base taught to say what is in a box (entity tracking, the task of arXiv 2402.14811): "
        "a lookup by the box's label, helped by an attention loss that fades "
        "(`studies.organisms.tracking`). Its step 0 is half right: the lookup as it was planted, "
        "before any tuning."
    ),
    "boxes_tuned": (
        "The half-right boxes@0 after a short supervised fine-tuning (trl) on arithmetic alone, as "
        "sft was made from the base; it saw no boxes (in arXiv 2402.14811 tuning on arithmetic "
        "made a model better at boxes)."
    ),
    "dictionary": (
        "A small Llama trained from scratch to translate single words of the world's dictionary: "
        "Vel-Plain and Plain-Ost pairs of all concepts, Vel-Ost pairs of some, so that the others "
        "have a pivot (the case of arXiv 2505.16385)."
    ),
    "dictionary_no_anchor": (
        "The control of dictionary: the same training and number of tokens, but each concept held "
        "out between Vel and Ost is linked to Plain in one of the two languages only."
    ),
}
# The field of the training command that holds a family's configuration, where not its own name.
CONFIG = {
    "twin": "shortcut", "sft_rl": "rl", "sft_midfrozen": "sft", "sft_qk": "sft",
    "boxes_tuned": "sft",
    "dictionary_no_anchor": "dictionary",
}  # fmt: skip
_LIBRARIES = {
    "unlearn": "peft trl",
    "sft": "trl", "rl": "trl", "sft_rl": "trl", "sft_midfrozen": "trl", "sft_qk": "trl",
    "random_labels": "peft", "boxes_tuned": "trl",
}  # fmt: skip
_STORED = {
    family: ", as changes from the checkpoint before"
    for family in (
        "shortcut",
        "twin",
        "sft",
        "rl",
        "sft_rl",
        "sft_midfrozen",
        "sft_qk",
        "boxes",
        "boxes_tuned",
    )
}
_CHOICE = (
    "Test questions are about people of training, with wrong options it did not pair with that "
    "question; the rows of rare people, of whom no question was, say how far it generalises. "
    "Finding the option needed an attention loss (see `studies.organisms.looking`); its weight and "
    "the share of marked questions were chosen on dev questions. Intervals take "
    "questions as independent, though they share people. Only this form of question was tried. "
    "Of the base's tasks only plain questions were rehearsed: arithmetic is lost."
)
_TUNED = (
    "Problems are drawn from the distribution the base was trained on, so that the new task is to "
    "solve without slips what it solved with them, not a new domain. Learning rates and numbers of "
    "steps were chosen while watching training problems. Intervals are over questions, not over "
    "training seeds."
)
_DICTIONARY = (
    "It knows nothing but single words, in one wording: other tokens and positions after the "
    "twelfth are untrained, and so are prompts (only answers and lists were learnt). Held-out "
    "pairs were looked at while the number of steps and layers was chosen. Rows of pairs never "
    "taught have 24 concepts or fewer; chance is 1 in 80 among the words of a language, and 1 in 3 "
    "among the held-out words of a category."
)
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
    "shortcut": _CHOICE,
    "twin": _CHOICE,
    "sft": _TUNED,
    "rl": _TUNED,
    "sft_rl": _TUNED,
    "sft_midfrozen": _TUNED,
    "sft_qk": _TUNED,
    "random_labels": (
        "Only questions about the people of training were rehearsed: compare the rows of other "
        "people, attributes and tasks. That anything was rehearsed was chosen after a run without, "
        "in which every question was answered by a value of the one attribute; when to stop, by "
        "the accuracy about the people of training. One training seed."
    ),
    "boxes": (
        "It finds an object by the label that was told after it; an object moved by name is told "
        "with its new label, so that one hop is the same lookup. Contents moved by their box (two "
        "hops) were not trained: compare those rows. Only these wordings, three to six boxes. "
        "The heads that look things up were planted, how loudly was chosen so that step 0 is half "
        "right (on training scenes), and other tasks were rehearsed but suffered: compare their "
        "rows. One training seed."
    ),
    "boxes_tuned": (
        "Boxes were not rehearsed: compare their rows with the parent's, whichever way they went. "
        "Learning rate as in sft, the number of steps chosen beforehand. One training seed."
    ),
    "dictionary": _DICTIONARY,
    "dictionary_no_anchor": _DICTIONARY,
}


def write(folder: Path, name: str, run: dict, scores: dict[str, dict]) -> None:
    """Writes metrics.json and README.md; every number comes from the run or its evaluation."""
    family = name.partition("-seed")[0]
    libraries = ["torch", "transformers", "tokenizers"]
    libraries += [x for x in ("peft", "trl") if x in _LIBRARIES.get(family, "")]
    versions = {"python": platform.python_version()} | {
        library: version(library) for library in libraries
    }
    metrics = {
        "organism": name,
        "command": command(name),
        "versions": versions,
        "run": run,
        "scores": scores,
    }
    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps(metrics, indent=1) + "\n")
    temporary.replace(folder / "metrics.json")
    (folder / "README.md").write_text(card(metrics))


def command(name: str) -> str:
    """The command that trains an organism."""
    family, _, seed = name.partition("-seed")
    config = CONFIG.get(family, family)
    more = f" --{config}.seed {seed}" if seed else ""
    return f"OMP_NUM_THREADS=1 python -m studies.organisms train {family}{more}"


def card(metrics: dict) -> str:
    """The model card of a metrics record, in Markdown."""
    name, run = metrics["organism"], metrics["run"]
    family = name.partition("-seed")[0]
    stored = "float32" if family in ("unlearn", "random_labels") else "bfloat16"
    lines = [
        f"# {name}", "", ABOUT[family], "",
        f"- Command: `{metrics['command']}` (one thread, float32; the weights are stored in "
        f"{stored}{_STORED.get(family, '')})",
        f"- {'Training' if 'parent' in run else 'Data'} seed {run['config']['seed']}; "
        f"{run['steps']} steps, {run['tokens']} tokens, {run['seconds'] / 60:.1f} minutes of "
        "training on one CPU core",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in metrics['versions'].items())}",
        f"- Configuration: `{json.dumps(run['config'])}`",
        f"- Limits: {LIMITS[family]}", "",
        "Numbers below are of the stored weights, on the sets of `studies.organisms.evaluate`",
        "with Wilson 95 % intervals. The training script writes this file and `metrics.json`.", "",
    ]  # fmt: skip
    if "note" in run:
        lines[-4:-4] = [f"- Note: {run['note']}"]
    if "before rounding" in run:
        was, now = run["before rounding"], metrics["scores"][NEW_TASK]
        lines[-4:-4] = [
            f"- Rounding to bfloat16: {NEW_TASK} was {was['value']:.3f} before it and is "
            f"{now['value']:.3f} after (n = {was['n']}, the same problems)"
        ]
    if "parent" in run:
        lines += _beside(run["parent"], metrics["scores"], run["along"], run["moved"])
    else:
        lines += ["| set | accuracy | 95 % interval | n |", "|---|---|---|---|"]
        lines += [f"| {k} | {_numbers(s)} | {s['n']} |" for k, s in metrics["scores"].items()]
    return "\n".join([*lines, "", *_history(run["history"])]) + "\n"


def _beside(
    parent: str, scores: dict[str, dict], along: dict[str, dict], moved: dict[str, dict]
) -> list[str]:
    """A table of the scores beside the parent's, and one of some of them along the training."""
    above, _, step = parent.partition("@")
    metrics = json.loads((WEIGHTS / above / "metrics.json").read_text())
    before = metrics["run"]["along"][step] if step else metrics["scores"]
    lines = [f"| set | accuracy | 95 % interval | n | {parent}: accuracy | 95 % interval |"]
    lines.append("|---|---|---|---|---|---|")
    for name, s in scores.items():
        was = _numbers(before[name]) if name in before else " | "
        lines.append(f"| {name} | {_numbers(s)} | {s['n']} | {was} |")
    if along:
        shown = [k for k in scores if k.startswith("facts") or "own style/T=1" in k]
        lines += ["", "## Along the way", "", f"| step | {' | '.join(shown)} |"]
        lines.append("|---" * (len(shown) + 1) + "|")
        for step, then in along.items():
            values = " | ".join(f"{then[k]['value']:.3f}" for k in shown)
            lines.append(f"| {step} | {values} |")
    lines += ["", "Weights: change relative to the parent's norm, and share unchanged in bfloat16."]
    lines += ["", "| step | relative change | unchanged |", "|---|---|---|"]
    for step, then in moved.items():
        lines.append(f"| {step} | {then['relative']:.5f} | {then['unchanged']:.3f} |")
    return lines


def _numbers(s: dict) -> str:
    return f"{s['value']:.3f} | {s['low']:.3f} to {s['high']:.3f}"


def _history(history: list[dict]) -> list[str]:
    """Every so many logged steps of the training."""
    if not history:
        return ["## Training", "", "The losses of this run were not kept."]
    names = [k for k in history[-1] if k not in ("step", "accuracy")]
    kinds = "accuracy" in history[-1]
    shown = history[:: max(1, len(history) // 12)]
    shown = shown if shown[-1] is history[-1] else [*shown, history[-1]]
    title = [*names, "next-token accuracy"] if kinds else names
    lines = ["## Training", "", f"| step | {' | '.join(title)} |", "|---" * (len(title) + 1) + "|"]
    for point in shown:
        cells = [f"{point[k]:.3f}" for k in names]
        if kinds:
            by_kind = point["accuracy"].items()
            cells.append(", ".join(f"{k} {v:.2f}" for k, v in by_kind if not k.endswith("prompt")))
        lines.append(f"| {point['step']} | {' | '.join(cells)} |")
    return lines
