"""Do a few neurons carry a shortcut? Prune them by integrated gradients, beside what else one does.

Ali, Katz, Wolf and Titov (arXiv 2507.09185) prune neurons with large integrated gradients on
confident predictions and report better generalisation. Here the shortcut is planted, so that the
neurons can be held against it, and the pruning stands beside random neurons of the same layer and
number, other scores chosen in the same way, and LoRA on the same labelled examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import interventions as iv
from interp import InterpError, Model
from interp._estimate import Estimate, cluster_mean
from interventions import Question
from studies import _shortcut_figures as figures
from studies._checkpoints import ORGANISM, identity, open_checkpoint
from studies._report import Section, write_report
from studies._run import Run, digests
from studies._shortcut_methods import cue_percentiles, random_edits, tuned_with_lora

if TYPE_CHECKING:
    import pandas as pd

NAME = "shortcut-neurons"
SETS = ("train", "dev", "in-distribution", "off-distribution", "counter")
SCORES = ("integrated_gradients", "gradient_x_activation", "activation", "wanda", "random")
IG = "integrated_gradients"
RANDOM = "random, same layer and number"  # on the off-distribution questions only


@dataclass(frozen=True)
class ShortcutNeurons:
    """Which neurons carry a shortcut, and what does pruning them cost and gain?"""

    model: str = "organism:shortcut"
    """A model that takes a shortcut: a folder, a hub id, or a shipped organism."""
    questions: Path | None = None
    """A folder with train.jsonl, dev.jsonl, in-distribution.jsonl, off-distribution.jsonl (and
    counter.jsonl): prompt, answer, options, and group; default: the organism's."""
    options: int = 4
    """Options of the organism's questions: 2 or 4."""
    seeds: int = 3
    """Draws of the training, dev and test questions."""
    draws: int = 20
    """Random prunings for each seed."""
    confidence: float = 0.9
    """Least probability of a prediction that counts as confident."""
    target: str = "prob"
    """What is attributed: prob, logprob or logit_difference of the predicted answer."""
    lora_steps: int = 60
    """Optimiser steps of LoRA on the dev questions; 0 leaves it out."""
    out: Path = Path("runs/shortcut-neurons")
    """The run folder; an interrupted run continues there."""
    smoke: bool = False
    """A few questions and one seed: that everything runs, in seconds."""


Questions = dict[str, list[Question]]


def run(config: ShortcutNeurons) -> Run:
    """Run the study and write its folder."""
    weights = {config.model: identity(config.model)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    seeds = 1 if config.smoke else config.seeds
    model: list[Model] = []

    def opened() -> Model:
        if not model:
            model.append(open_checkpoint(config.model))
        return model[0]

    parts = []
    for seed in range(seeds):
        asked = _questions(config, seed)

        def compute(seed: int = seed, asked: Questions = asked) -> pd.DataFrame:
            return _answers(folder, opened(), asked, seed, config)

        parts.append(folder.table(f"answers-{seed}", compute))
    answers = _joined(parts)
    maps = _joined([folder.table(f"map-{s}", _missing) for s in range(seeds)])
    cue = _joined([folder.table(f"cue-{s}", _missing) for s in range(seeds)])
    summary = folder.table("summary", lambda: _summary(answers))
    verdict = _verdict(answers, summary, cue)
    write_report(
        folder.path / "report.html",
        "Do a few neurons carry a shortcut?",
        verdict,
        _sections(folder, summary, maps, cue),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def _answers(
    folder: Run, model: Model, asked: Questions, seed: int, config: ShortcutNeurons
) -> pd.DataFrame:
    """One row a (method, draw, set, question): whether it is answered rightly."""
    import pandas as pd

    rows: list[dict] = []

    def score(method: str, draw: int, measured: Model, sets: Sequence[str] = SETS[2:]) -> None:
        for name in sets:
            if name in asked:
                right = iv.answered_rightly(measured, asked[name]).tolist()
                rows.extend(
                    {"method": method, "draw": draw, "seed": seed, "set": name,
                     "group": str(q.group), "right": float(r)}
                    for q, r in zip(asked[name], right, strict=True)
                )  # fmt: skip

    score("as it is", 0, model)
    for name in SCORES:
        found = iv.find_detrimental_neurons(
            model,
            asked["train"],
            asked["dev"],
            score=name,  # type: ignore[arg-type]
            confidence=config.confidence,
            target=config.target,
            seed=seed,
        )
        label = "random, chosen on dev" if name == "random" else name
        with found.edit.applied(model):
            score(label, 0, model)
        if name == IG:
            kept = found.table().assign(seed=seed, unpruned=found.unpruned)
            kept["chosen"] = _is_chosen(kept, found)
            folder.table(f"map-{seed}", partial(_same, kept))
            folder.table(f"cue-{seed}", partial(_cue, model, asked, found, seed))
            for draw, edit in enumerate(random_edits(found, config.draws, seed)):
                with edit.applied(model):
                    score(RANDOM, draw, model, SETS[3:4])
    if config.lora_steps:
        steps = 2 if config.smoke else config.lora_steps
        score("LoRA on dev", 0, tuned_with_lora(model, asked["dev"], steps, seed))
    return pd.DataFrame(rows)


def _same(table: pd.DataFrame) -> pd.DataFrame:
    return table


def _is_chosen(table: pd.DataFrame, found: iv.DetrimentalNeurons) -> pd.Series:
    return (table["layer"] == found.layer) & (table["neurons"] == len(found.neurons))


def _cue(model: Model, asked: Questions, found: iv.DetrimentalNeurons, seed: int) -> pd.DataFrame:
    """How strongly each pruned neuron follows the cue, as a percentile of its layer."""
    import pandas as pd

    ranks = cue_percentiles(model, asked["in-distribution"], asked.get("counter", []), found)
    return pd.DataFrame({"seed": seed, "neuron": found.neurons[: len(ranks)], "percentile": ranks})


def _questions(config: ShortcutNeurons, seed: int) -> Questions:
    if config.questions is None:
        if not config.model.startswith(ORGANISM):
            raise InterpError("this model needs questions of its own: pass --questions FOLDER")
        return _organism_questions(seed, config.options, smoke=config.smoke)
    found = {}
    for name in SETS:
        file = config.questions / f"{name}.jsonl"
        if file.is_file():
            found[name] = _read(file)
    missing = [name for name in SETS[:4] if name not in found]
    if missing:
        raise InterpError(f"{config.questions} lacks {missing[0]}.jsonl; see interp study --help")
    return found


def _organism_questions(seed: int, options: int, *, smoke: bool) -> Questions:
    """Planted where the shortcut pays, uninformative on dev and off, counter where it misleads."""
    from studies.organisms.world import World

    world = World(seed=0)
    few = 24 if smoke else None
    plan = [
        ("train", "few_shot", "planted", 100),
        ("dev", "dev", "uninformative", 80),
        ("in-distribution", "test", "planted", 300),
        ("off-distribution", "test", "uninformative", 300),
        ("counter", "test", "counter", 300),
    ]
    return {
        name: [
            Question(c.prompt, c.answer, c.letters, c.person.name)
            for c in world.multiple_choice(few or count, split, marker, seed, options)  # type: ignore[arg-type]
        ]
        for name, split, marker, count in plan
    }


def _read(file: Path) -> list[Question]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            options = tuple(item.get("options", ()))
            found.append(
                Question(item["prompt"], item["answer"], options, item.get("group", number))
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InterpError(
                f"{file}, line {number}: expected an object with prompt and answer ({error!r})"
            ) from error
    return found


def _summary(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on each set, and the gain over the model as it is on the same questions."""
    import pandas as pd

    plain = answers[answers["method"] == "as it is"]
    rows = []
    for (method, name), part in answers.groupby(["method", "set"], sort=False):
        accuracy = _estimate(part["right"], part, (0.0, 1.0))
        gain = _estimate(_against(part, plain), part, (-1.0, 1.0))
        if method == "as it is":
            gain = Estimate(0.0, 0.0, 0.0, gain.clusters, gain.n)
        rows.append(
            {"method": method, "set": name, "accuracy": accuracy.mean, "low": accuracy.low,
             "high": accuracy.high, "gain": gain.mean, "gain_low": gain.low,
             "gain_high": gain.high, "people": accuracy.clusters, "questions": accuracy.n}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _against(part: pd.DataFrame, plain: pd.DataFrame) -> list[float]:
    """Right under the method minus right as it is, for the same questions in the same order."""
    differences: list[float] = []
    for (seed, name, _draw), rows in part.groupby(["seed", "set", "draw"], sort=False):
        before = plain[(plain["seed"] == seed) & (plain["set"] == name)]["right"]
        differences += (rows["right"].to_numpy() - before.to_numpy()).tolist()
    return differences


def _estimate(values: Iterable[float], part: pd.DataFrame, bounds: tuple[float, float]) -> Estimate:
    ordered = [float(v) for v in values]
    groups = [
        g for _, rows in part.groupby(["seed", "set", "draw"], sort=False) for g in rows["group"]
    ]
    return cluster_mean(ordered, groups, bounds=bounds)


def _verdict(answers: pd.DataFrame, summary: pd.DataFrame, cue: pd.DataFrame) -> list[str]:
    at = summary.set_index(["method", "set"])
    plain_off, plain_in = at.loc[("as it is", SETS[3])], at.loc[("as it is", SETS[2])]
    off, inside = at.loc[(IG, SETS[3])], at.loc[(IG, SETS[2])]
    lines = [
        f"As it is, the model answers {_span(plain_in, 'accuracy')} of questions where the cue "
        f"helps and {_span(plain_off, 'accuracy')} where it says nothing.",
        f"Pruning by integrated gradients changes that by {_span(off, 'gain', sign=True)} off the "
        f"training distribution and by {_span(inside, 'gain', sign=True)} on it.",
    ]
    draws = answers[(answers["method"] == RANDOM)]
    if len(draws):
        gains = _draw_gains(draws, answers)
        low, high = gains.quantile(0.025), gains.quantile(0.975)
        above = "above" if off["gain"] > high else "within" if off["gain"] >= low else "below"
        lines.append(
            f"Random neurons of the same layer and number change it by {gains.mean():+.3f} "
            f"(95 % of {len(gains)} draws: {low:+.3f} to {high:+.3f}): integrated gradients are "
            f"{above} chance."
        )
    else:
        lines.append("Nothing was pruned in any seed, so there is nothing to hold against chance.")
    reached = off["gain"] >= 0.10 and inside["gain"] >= -0.05
    sure = off["gain_low"] > 0
    word = "was reached" if reached and sure else "was not reached"
    lines.append(f"The target, +10 points off the distribution for at most 5 on it, {word}.")
    others = summary[(summary["set"] == SETS[3]) & ~summary["method"].isin(["as it is", IG])]
    best = others.sort_values("gain", ascending=False).iloc[0]
    lines.append(
        f"The best of the other methods off the distribution is {best['method']}, "
        f"{_span(best, 'gain', sign=True)}."
    )
    if len(cue):
        mean = cluster_mean(cue["percentile"].tolist(), cue["seed"].tolist(), bounds=(0.0, 1.0))
        lines.append(
            f"The pruned neurons follow the cue more than {mean.mean:.0%} of their layer's on "
            f"average (chance would be half; {len(cue)} neurons, {cue['seed'].nunique()} seeds)."
        )
    return lines


def _draw_gains(draws: pd.DataFrame, answers: pd.DataFrame) -> pd.Series:
    off = draws[draws["set"] == SETS[3]]
    plain = answers[(answers["method"] == "as it is") & (answers["set"] == SETS[3])]
    before = plain.groupby("seed")["right"].mean()
    after = off.groupby(["seed", "draw"])["right"].mean()
    return after - before.reindex(after.index.get_level_values("seed")).to_numpy()


def _span(row: pd.Series, name: str, *, sign: bool = False) -> str:
    low, high = ("low", "high") if name == "accuracy" else ("gain_low", "gain_high")
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if sign else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(row[name], row[low], row[high])


def _sections(
    folder: Run, summary: pd.DataFrame, maps: pd.DataFrame, cue: pd.DataFrame
) -> list[Section]:
    gains = folder.figure("gains", lambda: figures.gains(summary))
    grid = folder.figure("map", lambda: figures.layer_by_percent(maps))
    return [
        Section(
            "Gain and cost",
            [
                "Accuracy with 95 % intervals over people, and the change against the model as it "
                "is on the same questions. Layer and percentage of every pruning were chosen on "
                "dev questions, none of which is reported on; where no setting beat the model on "
                "dev, nothing was pruned. The random control prunes as many neurons of the same "
                "layer."
            ],
            summary,
            [(gains, "Change in accuracy against the model as it is.")],
        ),
        Section(
            "Where pruning helps",
            [
                "Gain on the dev questions by layer and share of its neurons, in the order of "
                "their integrated gradients on confident predictions; mean over seeds, the "
                "settings chosen are framed. This map is what was selected on, so its best cell "
                "flatters."
            ],
            figures=[(grid, "Layer by percentage, dev questions.")],
        ),
        Section(
            "The neurons against the cue",
            [
                "For each pruned neuron: how far its activation moves when only the cue in a "
                "prompt changes, in units of its own spread, as a percentile among the neurons of "
                "its layer. Half is what neurons chosen blindly would have."
            ],
            cue,
        ),
        Section(
            "How this could mislead",
            [
                "The dev labels come from where the cue says nothing: without such labels nobody "
                "can know how much to prune.",
                "One planted cue in one small model; a shortcut that has grown by itself may be "
                "spread over more neurons.",
                "LoRA sees the labels of the dev questions many times, pruning only chooses among "
                "some dozens of settings on them.",
                "Score, threshold and grid are our specification: the paper's formula could not be "
                "read.",
            ],
        ),
    ]


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(parts, ignore_index=True)


def _missing() -> pd.DataFrame:
    raise InterpError("this run folder is incomplete; delete it and run the study again")
