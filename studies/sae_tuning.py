"""Does tuning around a frozen SAE carry over what RL taught another model? With controls.

Resa (arXiv 2506.09967) trains an SAE on an RL-tuned model, splices it into the untrained one, tunes
low-rank changes so that the model says what it said before, takes the SAE out, and reports nearly
all of RL's gain at a fraction of its cost. Its report has no control; here they stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from interp._estimate import Estimate
from interventions._sae_card import interval
from studies import _reasoning_measures as measures
from studies import _sae_figures as figures
from studies._checkpoints import identity
from studies._report import Section, write_report
from studies._run import Run, digest
from studies._sae_bench import CONDITIONS, Bench, grpo_seconds

if TYPE_CHECKING:
    import pandas as pd

NAME = "sae-tuning"
CLAIM = 0.97  # of RL's gain, as the paper says


@dataclass(frozen=True)
class SaeTuning:
    """Does tuning around a frozen SAE of an RL model carry RL's gain to its base?"""

    source: str = "organism:rl"
    """The model the SAE is trained on: a folder, a hub id, or a shipped organism."""
    target: str = "organism:base"
    """The model that is tuned; the source was trained from it."""
    train: Path | None = None
    """JSON lines with prompt and answer to tune on; default: the organisms' train problems."""
    problems: Path | None = None
    """JSON lines to test on, the last of them for choosing; default: the organisms'."""
    out: Path = Path("runs/sae-tuning")
    """The run folder; an interrupted run continues there."""
    layer: int | None = None
    """Where the SAE stands; default: the middle."""
    d_sae: int = 512
    """Features."""
    k: int = 32
    """Of them, at a token."""
    sae_tokens: int = 150_000
    """Tokens each SAE is trained on."""
    steps: int = 90
    """Of a tuning."""
    rows: int = 16
    """Texts a step."""
    rank: int = 16
    """Of the low-rank changes."""
    lr: float = 5e-4
    """Of the tuning; of SFT too."""
    count: int = 100
    """Test problems, and texts on which the model should stay as it was."""
    samples: int = 2
    """Completions of each problem."""
    dev: int = 60
    """Dev problems, by which the state of a tuning is chosen."""
    temperature: float = 1.0
    """Of the completions."""
    max_new_tokens: int = 40
    """Of a completion."""
    markers: tuple[str, str] = ("Solution:", "answer")
    """Where reasoning begins and ends in a prompt, for the layer scan."""
    full: bool = False
    """Three seeds of every tuning, and a tuning at every layer: some ten minutes."""
    seed: int = 0
    """Of SAEs, tunings, problems, samples and intervals."""
    smoke: bool = False
    """A few problems and steps, that everything runs, in seconds."""


def run(config: SaeTuning) -> Run:
    """Run the study and write its folder: tables, figures, report.html."""
    hashes = {p.name: digest(p) for p in (config.train, config.problems) if p is not None}
    weights = {source: identity(source) for source in (config.source, config.target)}
    folder = Run.open(config.out, NAME, config, files=hashes, checkpoints=weights)
    bench = Bench(config)
    (folder.path / "answers").mkdir(exist_ok=True)
    known = {
        role: folder.table(f"answers/{role}", partial(bench.model, role))
        for role in ("target", "source")
    }
    card = folder.table("sae", lambda: _cards(bench))
    answers = _answers(folder, bench, config)
    models = _models(known, config)
    table = _table(answers, known, config)
    scan = folder.table("reasoning_features", bench.reasoning_features)
    layers = _layers(folder, bench, known, config) if config.full else None
    verdict = _verdict(table, models, scan, config)
    write_report(
        folder.path / "report.html",
        "Does tuning around a frozen SAE carry RL's gain to another model?",
        verdict,
        _sections(folder, config, models, table, card, scan, layers),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


def _cards(bench: Bench) -> pd.DataFrame:
    import pandas as pd

    both = [bench.card("source"), bench.card("target")]
    return pd.concat(both, ignore_index=True).assign(seconds=bench.seconds["SAE"])


def _answers(folder: Run, bench: Bench, config: SaeTuning) -> pd.DataFrame:
    """Every condition and seed, each kept in a file of its own."""
    import pandas as pd

    seeds = range(config.seed, config.seed + (3 if config.full else 1))
    parts = []
    for name, seed in tqdm([(n, s) for s in seeds for n in CONDITIONS], desc="tunings", delay=2):

        def compute(name: str = name, seed: int = seed) -> pd.DataFrame:
            edit, seconds = bench.tuned(name, seed)
            return bench.changed(name, edit, seed).assign(seconds=seconds, changes=len(edit))

        slug = "".join(c if c.isalnum() else "_" for c in name)
        parts.append(folder.table(f"answers/{slug}-{seed}", compute))
    return pd.concat(parts, ignore_index=True)


def _models(known: dict[str, pd.DataFrame], config: SaeTuning) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for role, answers in known.items():
        checkpoint = config.source if role == "source" else config.target
        rows.append({"model": role, "checkpoint": checkpoint} | _measures(answers, config.seed))
    return pd.DataFrame(rows)


def _measures(answers: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy with its interval, greedy accuracy, loss on other texts."""
    sampled, greedy = (answers[answers["control"] == c] for c in ("", "greedy"))
    found, at_zero = measures.accuracy(sampled, seed), measures.accuracy(greedy, seed)
    return {
        "accuracy": found.mean, "accuracy_low": found.low, "accuracy_high": found.high,
        "greedy": at_zero.mean, "greedy_low": at_zero.low, "greedy_high": at_zero.high,
        "text_loss": measures.text_loss(sampled),
    }  # fmt: skip


def _table(
    answers: pd.DataFrame, known: dict[str, pd.DataFrame], config: SaeTuning
) -> pd.DataFrame:
    """One row a condition: accuracy, gain over the target, share of RL's gain, cost."""
    import pandas as pd

    target, source = (_by_problem(known[role]) for role in ("target", "source"))
    gap = source - target
    rows = []
    for name in CONDITIONS:
        here = answers[answers["condition"] == name]
        mine = _by_problem(here)
        gained = (mine - target).to_numpy()
        gain = measures.difference(_sampled(here), [_sampled(known["target"])], config.seed)
        share = interval(gained.tolist(), gap.loc[mine.index].tolist(), config.seed)
        row = {"condition": name, "seeds": here["seed"].nunique()} | _measures(here, config.seed)
        row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        row |= dict(zip(("share", "share_low", "share_high"), share, strict=True))
        random_one = answers[answers["condition"] == "random SAE"]
        over = measures.difference(_sampled(here), [_sampled(random_one)], config.seed)
        row |= {
            "over_random": over.mean,
            "over_random_low": over.low,
            "over_random_high": over.high,
        }
        row |= {"changes": int(here["changes"].max()), "seconds": float(here["seconds"].max())}
        rows.append(row)
    return pd.DataFrame(rows)


def _layers(
    folder: Run, bench: Bench, known: dict[str, pd.DataFrame], config: SaeTuning
) -> pd.DataFrame:
    """The main condition at every layer: with `full` only."""
    import pandas as pd

    rows = []
    for layer in range(bench.target.anatomy.n_layers):

        def compute(layer: int = layer) -> pd.DataFrame:
            return bench.changed("source SAE", bench.at_layer(layer), config.seed)

        here = folder.table(f"answers/layer-{layer}", compute)
        gain = measures.difference(_sampled(here), [_sampled(known["target"])], config.seed)
        rows.append({"layer": layer, "gain": gain.mean, "low": gain.low, "high": gain.high})
    return pd.DataFrame(rows)


def _sampled(answers: pd.DataFrame) -> pd.DataFrame:
    return answers[answers["control"] == ""]


def _by_problem(answers: pd.DataFrame) -> pd.Series:
    sampled = _sampled(answers)
    return sampled[sampled["kind"] == "problem"].groupby("group")["value"].mean()


def _verdict(
    table: pd.DataFrame, models: pd.DataFrame, scan: pd.DataFrame, config: SaeTuning
) -> list[str]:
    """What was found, a sentence a line, each with its control."""
    at, alone = table.set_index("condition"), models.set_index("model")
    main, own = at.loc["source SAE"], at.loc["target SAE"]
    gap = alone.loc["source", "accuracy"] - alone.loc["target", "accuracy"]
    controls = ("random SAE", "identity SAE", "SFT")
    beside = "; ".join(f"{name} {_points(at.loc[name], 'gain')}" for name in controls)
    lines = [
        f"Samples solved by the target {alone.loc['target', 'accuracy']:.2f}, by the source "
        f"{alone.loc['source', 'accuracy']:.2f}: RL gained {100 * gap:+.1f} points.",
        f"“Tuning around the source's SAE recovers more than {CLAIM:.0%} of RL's gain” "
        f"{_outcome(main, CLAIM, gap)}: share {_share(main)}, gain {_points(main, 'gain')} points; "
        f"over the random SAE {_points(main, 'over_random')}.",
        f"“No trained source is needed” {_needed(main, own)}: with an SAE of the target itself the "
        f"gain is {_points(own, 'gain')} points (share {_share(own)}).",
        f"Controls, gain in points: {beside}. With the identity in the SAE's place there is "
        f"nothing to learn but rounding; "
        f"{int(at.loc['identity SAE', 'changes'])} matrices changed.",
        f"Without gradients through the SAE, as the released code has it: "
        f"{_points(at.loc['source SAE, no gradient'], 'gain')} points.",
        _features(scan),
    ]
    cost = grpo_seconds(config.source)
    if cost is not None:
        lines.append(
            f"Cost: {main['seconds']:.0f} s of tuning (choosing on dev included), beside "
            f"{cost:.0f} s of GRPO by the organism's record, on a machine that was not this one."
        )
    return lines


def _outcome(row: pd.Series, least: float, gap: float) -> str:
    if gap <= 0:
        return "could not be tested, since RL gained nothing here"
    if row["share_low"] > least:
        return "held"
    return "did not hold" if row["share_high"] < least else "is undecided by the interval"


def _needed(main: pd.Series, own: pd.Series) -> str:
    if max(main["gain_high"], own["gain_high"]) <= 0 or main["gain_low"] <= 0:
        return "could not be tested, since the source's SAE gained nothing either"
    return "held" if own["gain_low"] > 0 else "did not hold"


def _features(scan: pd.DataFrame) -> str:
    above = scan[scan["features"] > scan["null_95"]]["layer"].tolist()
    counts = ", ".join(str(int(n)) for n in scan["features"])
    return (
        f"Latents at both markers and nowhere else in one prompt, layer by layer: {counts}; more "
        f"than 95 % of other pairs of tokens at layers {above or 'none'}."
    )


def _sections(
    folder: Run,
    config: SaeTuning,
    models: pd.DataFrame,
    table: pd.DataFrame,
    card: pd.DataFrame,
    scan: pd.DataFrame,
    layers: pd.DataFrame | None,
) -> list[Section]:
    drawn = folder.figure("conditions", lambda: figures.conditions(table, models))
    counted = folder.figure("reasoning_features", lambda: figures.features(scan))
    shown = table[["condition", "seeds"]].copy()
    for name in ("accuracy", "gain", "share", "over_random", "greedy"):
        columns = (table[name], table[f"{name}_low"], table[f"{name}_high"])
        shown[name.replace("_", " ")] = [
            f"{a:.2f} [{b:.2f}, {c:.2f}]" for a, b, c in zip(*columns, strict=True)
        ]
    more = {"text loss": "text_loss", "matrices changed": "changes", "seconds": "seconds"}
    shown = shown.assign(**{title: table[name] for title, name in more.items()})
    sections = [
        Section("The two models", ["Loss is on other texts, nats a token."], models),
        Section(
            "The target, tuned",
            [
                "Accuracy of samples and of greedy decoding, gain over the target as it is, share "
                "of RL's gain, gain over the random SAE: 95 % intervals over problems. The state "
                "of each tuning was chosen on dev problems, its start included; SFT's by its loss "
                "on examples left out. " + "; ".join(f"{n}: {w}" for n, w in CONDITIONS.items()),
            ],
            shown,
            [(drawn, "Dashed: target and source as they are.")],
        ),
        Section(
            "The SAEs",
            ["Both measured on the target, where they stand; random: an SAE never trained."],
            card.drop(columns="seconds"),
        ),
        Section(
            "“Reasoning features” from one prompt, layer by layer",
            [
                f"Latents that fire at {config.markers[0]!r} and {config.markers[1]!r} and at no "
                "other token. The paper compares the distribution of this count over layers with "
                "that of tuning scores; its best layer has a count of 0. It predicts no layer, and "
                "should not be used to choose one."
            ],
            scan,
            [(counted, "Beside all other pairs of tokens of the same prompt.")],
        ),
    ]
    if layers is not None:
        rank = layers["gain"].corr(scan["features"], method="spearman")
        said = f"Spearman correlation with the counts above: {rank:.2f} over {len(layers)} layers."
        sections.append(Section("Tuned at every layer", [said], layers))
    return [*sections, Section("How this could mislead", _confounds(config))]


def _confounds(config: SaeTuning) -> list[str]:
    return [
        "The objective asks the model to say what it said before; nothing in it asks for RL's "
        "answers. A gain must come from what the SAE leaves out, and then any SAE that leaves out "
        "something may give it: compare the random one and the target's own.",
        "Choosing the best of several states on dev favours every condition alike, and noise in "
        "it looks like gain on dev; the test problems had no part in it.",
        f"{'Three seeds' if config.full else 'One seed'} of each tuning; intervals are over "
        "problems and say nothing of other SAEs or other trainings of the source.",
        "A gain on samples that greedy decoding does not share is a sharper distribution.",
    ]


def _points(row: pd.Series, name: str) -> str:
    found = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], 0, 0)
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _share(row: pd.Series) -> str:
    if row["share_low"] != row["share_low"]:
        return f"{row['share']:.2f} (no interval)"
    return f"{row['share']:.2f} [{row['share_low']:.2f}, {row['share_high']:.2f}]"
