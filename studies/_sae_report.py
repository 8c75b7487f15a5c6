"""What a sae-tuning run found, in sentences and as a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from studies import _sae_figures as figures
from studies._checkpoints import ORGANISM
from studies._report import Section
from studies._run import Run
from studies._sae_recipes import CONDITIONS, WORKED
from studies._sae_tables import scan_rank

if TYPE_CHECKING:
    import pandas as pd

CLAIM = 0.97  # of RL's gain, as the paper says
_TEXTS = {
    "bare": "texts like those tuned on",
    "worked": "worked solutions, as the model writes them",
}


@dataclass(frozen=True)
class Found:
    """A run's tables.

    Args:
        models: target and source as they are.
        conditions: a row a condition, on test problems.
        tuning: a row a condition and kind of dev texts.
        card: of the SAEs; what they and the first look cost.
        scan: latents at both markers, a row a layer.
        settings: a row a setting, on dev problems; None without `full`.
        seeds: of each condition.
        grpo: seconds that reinforcement learning took by the source's record.
        markers: of the scan.
    """

    models: pd.DataFrame
    conditions: pd.DataFrame
    tuning: pd.DataFrame
    card: pd.DataFrame
    scan: pd.DataFrame
    settings: pd.DataFrame | None
    seeds: int
    grpo: float | None
    markers: tuple[str, str]


def verdict(found: Found) -> list[str]:
    """What was found, a sentence a line, each with its control."""
    at, alone = found.conditions.set_index("condition"), found.models.set_index("model")
    main, own = at.loc["source SAE"], at.loc["target SAE"]
    gap = alone.loc["source", "accuracy"] - alone.loc["target", "accuracy"]
    controls = [n for n in ("random SAE", "identity SAE", "SFT", WORKED) if n in at.index]
    beside = "; ".join(f"{name} {_points(at.loc[name], 'gain')}" for name in controls)
    unmoved = [name for name in at.index if not at.loc[name, "changes"]]
    lines = [
        f"Samples solved by the target {alone.loc['target', 'accuracy']:.2f}, by the source "
        f"{alone.loc['source', 'accuracy']:.2f}: RL gained {100 * gap:+.1f} points (greedily "
        f"{alone.loc['target', 'greedy']:.2f} and {alone.loc['source', 'greedy']:.2f}).",
        f"“Tuning around the source's SAE recovers more than {CLAIM:.0%} of RL's gain” "
        f"{outcome(main, CLAIM, gap)}: share {_share(main)}, gain {_points(main, 'gain')} points; "
        f"over the random SAE {_points(main, 'over_random')}.",
        f"“No trained source is needed” {_needed(main, own)}: with an SAE of the target itself the "
        f"gain is {_points(own, 'gain')} points (share {_share(own)}).",
        f"Controls, gain in points: {beside}. Around the identity the loss is 0 but for rounding, "
        f"of which Adam makes steps nonetheless.",
        f"Without gradients through the SAE, as the released code has it: "
        f"{_points(at.loc['source SAE, no gradient'], 'gain')} points.",
    ]
    if unmoved:
        last = "; ".join(f"{name} {_points(at.loc[name], 'last_on_dev')}" for name in unmoved)
        lines.append(
            "No state solved more dev problems than the start, so nothing was changed, in: "
            f"{', '.join(unmoved)}. Their last states, on dev, in points: {last}."
        )
    lines += [*_mechanism(found.tuning), _features(found.scan)]
    if found.settings is not None:
        lines += _settings(found.settings)
    return [*lines, _cost(found)]


def outcome(row: pd.Series, least: float, gap: float) -> str:
    """Whether a share of RL's gain is more than so much, by its interval."""
    if gap <= 0:
        return "could not be tested, since RL gained nothing here"
    if row["share_low"] > least:
        return "held"
    return "did not hold" if row["share_high"] < least else "is undecided by the interval"


def _needed(main: pd.Series, own: pd.Series) -> str:
    if max(main["gain_high"], own["gain_high"]) <= 0 or main["gain_low"] <= 0:
        return "could not be tested, since the source's SAE gained nothing either"
    return "held" if own["gain_low"] > 0 else "did not hold"


def _mechanism(tuning: pd.DataFrame) -> list[str]:
    """What the objective asks for, and whether it came about."""
    rows = tuning[tuning["condition"] == "source SAE"]
    told = [
        f"on {_TEXTS[row['texts']]} {row['kl with SAE']:.3g} nats a token before and "
        f"{row['kl with SAE after']:.3g} after ({_range(row, 'closed')} of it gone)"
        for _, row in rows.iterrows()
    ]
    return [f"What the source's SAE costs the target in KL: {'; '.join(told)}."]


def _features(scan: pd.DataFrame) -> str:
    above = scan[scan["features"] > scan["null_95"]]["layer"].tolist()
    counts = ", ".join(str(int(n)) for n in scan["features"])
    return (
        f"Latents at both markers and nowhere else in one prompt, layer by layer: {counts}; more "
        f"than 95 % of other pairs of tokens at layers {above or 'none'}."
    )


def _settings(settings: pd.DataFrame) -> list[str]:
    best = settings.loc[settings["dev_gain"].idxmax()]
    gaining = settings[settings["dev_gain_low"] > 0]["setting"].tolist()
    rank, p, n = scan_rank(settings)
    related = "cannot be measured" if rank != rank else f"{rank:.2f} (p {p:.2f}"
    related += "" if rank != rank else f" by permutation, {n} layers)"
    return [
        f"Of {len(settings)} settings and layers, looked at on dev problems in their last state, "
        f"{', '.join(gaining) or 'none'} gained by the interval; the best was "
        f"“{best['setting']}” at {_points(best, 'dev_gain')} points.",
        f"Spearman correlation of the counts of latents and the layers' dev gains: {related}.",
    ]


def _cost(found: Found) -> str:
    main = found.conditions.set_index("condition").loc["source SAE"]
    sae = float(found.card[found.card["sae"] == "source"]["seconds"].iloc[0])
    first = float(found.card["first_look"].iloc[0])
    total = sae + main["tuning"] + main["choosing"] + first
    said = (
        f"Cost in seconds of CPU: {sae:.0f} for the SAE, {main['tuning']:.0f} of tuning, "
        f"{main['choosing'] + first:.0f} of choosing on dev, {total:.0f} in all"
    )
    if found.grpo is None:
        return f"{said}."
    return (
        f"{said}; GRPO took {found.grpo:.0f} s by the organism's record, on the clock of another "
        f"machine with one thread, no choosing included."
    )


def _costs(found: Found) -> pd.DataFrame:
    """Seconds a condition; the SAE's where one was trained for it."""
    trained = found.card.groupby("sae")["seconds"].first()
    shown = found.conditions[["condition", "tuning", "choosing", "changes"]].copy()
    whose = shown["condition"].str.partition(" ")[0]
    shown.insert(1, "SAE", whose.map(trained))
    return shown.rename(columns={"changes": "matrices changed"})


def sections(folder: Run, found: Found) -> list[Section]:
    """The page after the verdict."""
    drawn = folder.figure("conditions", lambda: figures.conditions(found.conditions, found.models))
    counted = folder.figure("reasoning_features", lambda: figures.features(found.scan))
    cost = folder.figure("sae_cost", lambda: figures.sae_cost(found.tuning))
    tried = found.settings
    said = "; ".join(f"{n}: {CONDITIONS[n][0]}" for n in found.conditions["condition"])
    page = [
        Section(
            "The two models",
            [
                "Share of samples solved, and greedily; loss on other texts, nats a token; KL from "
                "the target and entropy on worked dev problems, nats a token."
            ],
            _shown(found.models, ("accuracy", "greedy"), {
                "loss on other texts": "text_loss", "KL": "kl", "entropy": "entropy",
            }, ("model", "checkpoint")),
        ),
        Section(
            "The target, tuned",
            [
                "Gain in samples solved over the target as it is, share of RL's gain, gain over "
                "the random SAE, problems solved greedily: 95 % intervals over problems, seeds "
                "averaged within a problem. The state of each tuning is the one that solved most "
                "dev problems, its start (0) included; beside it the gain of the last state on "
                "dev, which nothing chose. " + said,
            ],
            _shown(found.conditions, ("gain", "share", "over_random", "greedy", "last_on_dev"), {
                "gain of each seed, points": "gain_seeds", "state chosen": "state",
                "loss on other texts": "text_loss",
            }),
            [(drawn, "Dashed: target and source as they are.")],
        ),
        Section(
            "What the tuning did around the SAE",
            [
                "KL from the target as it is to the target as tuned with the SAE in place, nats a "
                "token of dev texts, before and in the last state; the share of it that is gone, "
                "and of the loss that the SAE adds (more than 1: less loss than it ever had). Then "
                "the SAE is taken out: KL and change of entropy without it. Texts: "
                + "; ".join(f"{name}: {what}" for name, what in _TEXTS.items())
                + "."
            ],
            _shown(found.tuning, ("closed", "won_back"), {
                "KL before": "kl with SAE", "after": "kl with SAE after", "KL without": "kl",
                "entropy": "entropy change",
            }, ("condition", "texts")),
            [(cost, "Hollow: before; filled: after.")],
        ),
        Section(
            "The SAEs",
            ["Both measured on the target, where they stand; random: an SAE never trained."],
            found.card.drop(columns=["seconds", "first_look"]),
        ),
        Section(
            "“Reasoning features” from one prompt, layer by layer",
            [
                f"Latents that fire at {found.markers[0]!r} and {found.markers[1]!r} and at no "
                "other token. The paper compares the distribution of this count over layers with "
                "that of tuning scores; its best layer has a count of 0. It predicts no layer, and "
                "should not be used to choose one."
            ],
            found.scan,
            [(counted, "Beside all other pairs of tokens of the same prompt.")],
        ),
    ]  # fmt: skip
    if tried is not None:
        figure = folder.figure("settings", lambda: figures.settings(tried))
        kinds = [name for name in _TEXTS if f"{name} closed" in tried]
        more = {f"KL before, {n}": f"{n} kl with SAE" for n in kinds}
        more |= {f"gone, {n}": f"{n} closed" for n in kinds}
        page.append(
            Section(
                "Other settings and layers, on dev problems",
                [
                    "One thing changed at a time; the last state, which nothing chose. Of this "
                    "many, one in forty would seem to gain by chance. Latents: at both markers, as "
                    "above; KL with the SAE in place, and the share of it that is gone after."
                ],
                _shown(tried, ("dev_gain",), {"latents": "features"} | more,
                       ("setting",)),
                [(figure, "Gain on dev problems over the target as it is, 95 % over problems.")],
            )
        )  # fmt: skip
    page.append(
        Section(
            "What it cost", ["Seconds of CPU, means over seeds. " + _cost(found)], _costs(found)
        )
    )
    return [*page, Section("How this could mislead", _confounds(found))]


def _shown(
    table: pd.DataFrame, ranges: tuple[str, ...], more: dict[str, str],
    first: tuple[str, ...] = ("condition", "seeds"),
) -> pd.DataFrame:  # fmt: skip
    shown = table[list(first)].copy()
    for name in ranges:
        shown[name.replace("_", " ")] = [_range(row, name) for _, row in table.iterrows()]
    return shown.assign(**{title: table[name] for title, name in more.items()})


def _confounds(found: Found) -> list[str]:
    return [
        "The objective asks the model to say what it said before; nothing in it asks for RL's "
        "answers. A gain must come from what the SAE leaves out, and then any SAE that leaves out "
        "something may give it: compare the random one and the target's own.",
        "Choosing the best of several states on dev favours every condition alike, and noise in "
        "it looks like gain on dev; the test problems had no part in it.",
        f"{'Three seeds' if found.seeds > 1 else 'One seed'} of each SAE and tuning; intervals are "
        "over problems. Of other trainings of the source they say nothing.",
        "A gain on samples that greedy decoding does not share is a sharper distribution.",
        "SFT tunes all entries of the matrices, not low-rank changes, at the same rate.",
    ]


def _points(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low == high == row[name] == 0:
        return "0 (unchanged)"
    return f"{100 * row[name]:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _range(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low != low:
        return "–"
    if low == high == row[name] == 0:
        return "0"
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def _share(row: pd.Series) -> str:
    if row["share_low"] != row["share_low"]:
        return f"{row['share']:.2f} (no interval)"
    return _range(row, "share")


def grpo_seconds(source: str) -> float | None:
    """What reinforcement learning of an organism took, by its record."""
    if not source.startswith(ORGANISM):
        return None
    import json

    from studies.organisms.shipped import WEIGHTS

    name = source.removeprefix(ORGANISM).partition("@")[0]
    record = json.loads((WEIGHTS / name / "metrics.json").read_text(encoding="utf-8"))
    return record.get("run", {}).get("seconds")
