"""What the reasoning-paths study may say: a direction only where interval and null allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from probes import Rollout
from studies._stats import cluster_mean

if TYPE_CHECKING:
    import pandas as pd

LEAST_Z = 3.0
SAMPLINGS = ("as sampled", "visits", "length")
CLAIMED = {"rl": 1, "sft": -1}  # arXiv 2509.21128: RL steepens, SFT flattens


def expected(label: str) -> int:
    """1 where the paper expects a steeper decay, -1 where a flatter one, 0 where it says nothing.

    >>> [expected(label) for label in ("rl", "RL-seed1", "rl@15", "sft", "sft-rl", "unlearn")]
    [1, 1, 1, -1, 0, 0]
    """
    words = label.lower().replace("@", "-").replace("_", "-").split("-")
    named = [word for word in words if word in CLAIMED]
    return CLAIMED[named[0]] if len(named) == 1 else 0


def behaviour(rollouts: Sequence[Rollout], steps: Mapping[str, float], seed: int) -> pd.DataFrame:
    """One row a model: samples, accuracy with its interval over problems, how varied and long."""
    import pandas as pd

    rows = []
    for model in dict.fromkeys(r.model for r in rollouts):
        mine = [r for r in rollouts if r.model == model]
        judged = [r for r in mine if r.correct is not None]
        right = None
        if judged:
            values = [float(bool(r.correct)) for r in judged]
            right = cluster_mean(values, [r.problem for r in judged], seed)
        distinct = {(r.problem, "".join(r.text.split())) for r in mine}
        rows.append(
            {
                "model": model,
                "problems": len({r.problem for r in mine}),
                "samples": len(mine),
                "accuracy": right.mean if right else float("nan"),
                "low": right.low if right else float("nan"),
                "high": right.high if right else float("nan"),
                "distinct": len(distinct) / len(mine),
                "empty": sum(not r.text.strip() for r in mine),
                "steps": steps.get(model, float("nan")),
            }
        )
    return pd.DataFrame(rows)


def direction(row: pd.Series) -> int:
    """1 steeper, -1 flatter, 0 not to be told: the interval must leave out 1 and |z| be 3."""
    if not abs(row["z"]) >= LEAST_Z:
        return 0
    return 1 if row["low"] > 1 else -1 if row["high"] < 1 else 0


def decay_verdict(ratios: pd.DataFrame, model: str, base: str, label: str) -> str:
    """One sentence on one model's rates: held, in part, did not hold, cannot be told."""
    rows = ratios[ratios["model"] == model].set_index(["quantity", "sampling"])
    quantities = list(dict.fromkeys(rows.index.get_level_values("quantity")))
    # Steeper as sampled but not when matched is a matter of how much was written, so all three
    # samplings must point the same way.
    found = {}
    for quantity in quantities:
        ways = {direction(rows.loc[(quantity, sampling)]) for sampling in SAMPLINGS}
        found[quantity] = ways.pop() if len(ways) == 1 else 0
    numbers = "; ".join(f"{q} {_ratio(rows.loc[(q, 'visits')])}" for q in quantities)
    return (
        f"{_judged(found, expected(label), model, base)} Rank-decay rates relative to {base}, at "
        f"equal visits: {numbers}."
    )


def _judged(found: Mapping[str, int], claim: int, model: str, base: str) -> str:
    up = [quantity for quantity, way in found.items() if way > 0]
    down = [quantity for quantity, way in found.items() if way < 0]
    said = []
    if up:
        said.append(f"steepens the decay of {_listed(up)}")
    if down:
        said.append(f"flattens the decay of {_listed(down)}")
    sentence = f"{model} {' and '.join(said)}" if said else f"{model} cannot be told from {base}"
    if not claim:
        return f"{sentence}."
    name, word = ("RL", "steepens") if claim > 0 else ("SFT", "flattens")
    agree, against = (up, down) if claim > 0 else (down, up)
    if agree and against:
        judgement = "held for some and the opposite for others"
    elif against:
        judgement = "did not hold, the opposite did"
    elif len(agree) == len(found):
        judgement = "held"
    else:
        judgement = "held in part" if agree else "not shown"
    return f"“{name} {word} the rank decay”: {judgement} here. {sentence}."


def cluster_verdict(clusters: pd.DataFrame, model: str, base: str) -> str:
    """One sentence on one model's clusters of trajectories."""
    rows = clusters[clusters["model"] == model].set_index(["correct", "at"])
    words = []
    for correct, name in ((False, "incorrect"), (True, "correct")):
        row = rows.loc[(correct, "samples")]
        change = "cannot be told from"
        if row["high"] < 1:
            change = "fewer than"
        elif row["low"] > 1:
            change = "more than"
        words.append(
            f"{name} clusters a problem {row['clusters']:.1f} against {row['clusters_base']:.1f}, "
            f"{change} {base} (ratio {interval(row)})"
        )
    side = rows.loc[(False, "side")]
    control = (
        f"; among equally many incorrect samples the ratio is {interval(side)} "
        f"({int(side['problems'])} problems)"
        if side["problems"]
        else ""
    )
    return f"{model}: {'; '.join(words)}, at equal samples{control}."


def ratio_table(ratios: pd.DataFrame) -> pd.DataFrame:
    """One row a model and quantity: the three samplings side by side, with null and z."""
    import pandas as pd

    rows = []
    for (model, base, quantity), group in ratios.groupby(["model", "base", "quantity"], sort=False):
        at = group.set_index("sampling")
        rows.append(
            {"model": model, "base": base, "quantity": quantity}
            | {sampling_name(name): interval(at.loc[name]) for name in SAMPLINGS}
            | {"null": float(at.loc["visits", "ratio_null"]), "z": float(at.loc["visits", "z"])}
            | {"problems": int(at.loc["visits", "problems"])}
        )
    return pd.DataFrame(rows)


def cluster_table(clusters: pd.DataFrame) -> pd.DataFrame:
    """One row a model and side: clusters of both at equal samples, and both ratios."""
    import pandas as pd

    rows = []
    for (model, base, correct), group in clusters.groupby(["model", "base", "correct"], sort=False):
        at = group.set_index("at")
        rows.append(
            {
                "model": model,
                "base": base,
                "side": "correct" if correct else "incorrect",
                "base's clusters": float(at.loc["samples", "clusters_base"]),
                "clusters": float(at.loc["samples", "clusters"]),
                "at equal samples": interval(at.loc["samples"]),
                "and of that side": interval(at.loc["side"]),
                "problems": f"{at.loc['samples', 'problems']}, {at.loc['side', 'problems']}",
            }
        )
    return pd.DataFrame(rows)


def sampling_name(name: str) -> str:
    """How a sampling is called in tables and figures."""
    return name if name == "as sampled" else f"at equal {name}"


def sharpening_verdict(ratios: pd.DataFrame, model: str, base: str) -> str:
    """What sampling the same model at a lower temperature does to the rates, as a yardstick."""
    rows = ratios[(ratios["model"] == model) & (ratios["sampling"] == "visits")]
    numbers = "; ".join(f"{row['quantity']} {_ratio(row)}" for _, row in rows.iterrows())
    return (
        f"Yardstick: {model} relative to {base}, the same weights: {numbers}. A rate that rises no "
        f"more than this needs no new paths, only sharper sampling of the old ones."
    )


def _ratio(row: pd.Series) -> str:
    return f"×{interval(row)} (z {row['z']:.1f})" if row["ratio"] == row["ratio"] else "unknown"


def interval(row: pd.Series) -> str:
    if row["ratio"] != row["ratio"]:
        return "unknown"
    if row["low"] != row["low"]:
        return f"{row['ratio']:.2f} (no interval)"
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
