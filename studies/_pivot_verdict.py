"""What the pivot study concludes: one sentence a claim, from intervals and nulls alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies._pivot_causes import CONDITIONS, EVERYWHERE

if TYPE_CHECKING:
    import pandas as pd

HELD, NOT, UNTESTED = "Held", "Did not hold", "Could not be tested"
FEW = 5  # concepts; no verdict from fewer
SPLITS = {"trained": "taught pairs", "held_out": "held-out pairs"}
SMALLEST = 0.05  # of a score, a share or a log-prob in nats; a smaller difference is no effect
MOST = 0.5  # accuracy below which a model translates too little to ask how it does


def headline(table: pd.DataFrame, quantities: Sequence[str] | None = None) -> pd.DataFrame:
    """Quantities and models in rows, splits in columns, each as `mean [low, high]`."""
    if quantities is not None:
        wanted = [x for q in quantities for x in (q, f"{q}_null", f"{q}_above_null")]
        table = table[table["quantity"].isin(wanted)]
    cells = table.assign(
        at=[SPLITS.get(row.split, row.split) for row in table.itertuples()],
        cell=[_interval(row) for row in table.itertuples()],
    )
    keys = ["quantity", "model"]
    wide = cells.pivot_table(index=keys, columns="at", values="cell", aggfunc="first", sort=False)
    return wide.reset_index()


def verdict_of(found: pd.DataFrame, effects: pd.DataFrame, models: Sequence[str]) -> list[str]:
    """One sentence for each claim: generalisation, pivot, co-occurrence, and whether it is used.

    Claims about how a translation comes about are judged on held-out pairs where the model
    translates at least half of them, else on the taught ones, and the sentence says which.
    """
    model = models[0]
    at = {(r.model, r.split, r.quantity): r for r in found.itertuples()}
    lines = [_generalises(at, models)]
    held_out = at.get((model, "held_out", "accuracy"))
    split = "held_out" if held_out is not None and held_out.mean >= MOST else "trained"
    accuracy = at.get((model, split, "accuracy"))
    if accuracy is None or accuracy.mean < MOST or accuracy.concepts < FEW:
        why = f"{model} translates too little, or there are fewer than {FEW} concepts."
        return [*lines, f"{UNTESTED}: how translations come about; {why}"]
    lines.append(_above(at, model, split, "pivot", "the pivot is likely before the target is"))
    lines += _without_links(at, models)
    lines.append(_above(at, model, split, "association", "early layers favour words that co-occur"))
    return [*lines, *_used(effects, model, split)]


def _generalises(at: dict, models: Sequence[str]) -> str:
    claim = "pairs never taught are translated through what the pivot links"
    main = at.get((models[0], "held_out", "accuracy"))
    control = at.get((models[1], "held_out", "accuracy")) if len(models) > 1 else None
    if main is None or main.concepts < FEW:
        return f"{UNTESTED}: {claim}; there are no held-out pairs of {FEW} concepts."
    said = f"accuracy {_interval(main)}"
    if control is None:
        null = at[models[0], "held_out", "probability_above_null"]
        said += f", P(target) above another's by {_interval(null)}"
        if null.low <= SMALLEST:
            return f"{NOT}: {claim}; {said}."
        return f"{UNTESTED}: {claim}; {said}, but there is no model without the links beside it."
    word = HELD if main.low > control.high else NOT
    return (
        f"{word}: {claim}. Held-out {said} in {models[0]}, {_interval(control)} without the links "
        f"({main.concepts} concepts)."
    )


def _above(at: dict, model: str, split: str, name: str, claim: str) -> str:
    score, null = at.get((model, split, name)), at.get((model, split, f"{name}_null"))
    above = at.get((model, split, f"{name}_above_null"))
    if score is None or null is None or above is None or above.concepts < FEW:
        return f"{UNTESTED}: {claim}; no score (no layer before the target, or no corpus)."
    word = HELD if above.low > SMALLEST else NOT
    more = ""
    if name == "pivot":
        share, chance = at[model, split, "is_pivot"], at[model, split, "is_pivot_null"]
        more = f"; labelled so: {_interval(share)} of pairs, {_interval(chance)} of random words"
    return (
        f"{word}: {claim} ({SPLITS[split]}). Score {_interval(score)}, null {_interval(null)}, "
        f"difference {_interval(above)}, {SMALLEST} required{more}."
    )


def _without_links(at: dict, models: Sequence[str]) -> list[str]:
    """Whether a pivot on the lens tells a model that translates from one that cannot."""
    main = at.get((models[0], "held_out", "pivot"))
    control = at.get((models[1], "held_out", "pivot")) if len(models) > 1 else None
    if main is None or control is None or min(main.concepts, control.concepts) < FEW:
        return []
    said = at[models[1], "held_out", "accuracy"]
    return [
        f"{HELD if main.low > control.high else NOT}: the pivot is likelier where held-out pairs "
        f"can be translated. Score {_interval(main)} in {models[0]}, {_interval(control)} in "
        f"{models[1]}, which translates {_interval(said)} of them."
    ]


def _used(effects: pd.DataFrame, model: str, split: str) -> list[str]:
    claims = {
        "ablated": (-1, "the target loses when the pivot's direction is taken out"),
        "exchanged": (1, "exchanging the pivot favours the other's target"),
    }
    rows = effects[
        (effects["model"] == model) & (effects["split"] == split) & (effects["site"] == EVERYWHERE)
    ]
    lines = []
    for what, (sign, claim) in claims.items():
        named = {r.condition: r for r in rows[rows["what"] == what].itertuples()}
        others = [named[f"pivot - {control}"] for control in CONDITIONS[1:]]
        ends = [row.low if sign > 0 else -row.high for row in others]
        held = min(ends) > SMALLEST
        lines.append(
            f"{HELD if held else NOT}: {claim} ({SPLITS[split]}). Change of its log-prob "
            f"{_interval(named['pivot'])} nats; with another pivot "
            f"{_interval(named[CONDITIONS[1]])}, with a random direction as large "
            f"{_interval(named[CONDITIONS[2]])}; differences {_interval(others[0])} and "
            f"{_interval(others[1])}, {SMALLEST} required of both."
        )
    return lines


def _interval(row: object) -> str:
    mean, low, high = (getattr(row, name) for name in ("mean", "low", "high"))
    if mean != mean:
        return "–"
    return f"{mean:.3f}" if low != low else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
