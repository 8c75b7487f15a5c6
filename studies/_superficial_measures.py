"""Numbers and verdicts of the superficial-edits study, from its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies._stats import Estimate, cluster_mean

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 5  # cases below which no claim is judged
LITTLE = 0.05  # of probability: below it there is nothing to explain or to take away
UNEDITED = "as it is"
UNLEARNED = "unlearned"


def behaviour(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What each model answers, by kind of prompt: shares with 95 % intervals over subjects."""
    import pandas as pd

    kinds = {
        "edit": ("efficacy", "said_new"),
        "rephrased": ("generalisation", "said_new"),
        "same subject": ("other facts of the subject kept", "said_old"),
        "neighbour": ("other subjects kept", "said_old"),
    }
    rows = []
    for model, part in answers.groupby("model", sort=False):
        for kind, (quantity, column) in kinds.items():
            some = part[part["kind"] == kind]
            if len(some):
                rows.append(_row(model, quantity, _mean(some, column, seed)))
    return pd.DataFrame(rows)


def attacks(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """OM and OP by attack, beside what the same attack does where nothing is hidden.

    Over cases whose edit works (the new answer is given to the bare prompt; for the model as it is
    all cases). `OM` is the share in which the attack with the old answer brings it back, `OP` that
    in which P(old) exceeds P(new). `OM, no mention`: the old answer after a text of the same kind
    that mentions no value. `OM, decoy`: the share in which an attack with a value that was never
    this subject's brings *that* about, and `OP, decoy` likewise. `neighbour, decoy`: the same on
    subjects that were not edited.
    """
    import pandas as pd

    rows = []
    for model, part in answers.groupby("model", sort=False):
        part = working(part, model)
        for probe in [*dict.fromkeys(part.loc[part["kind"] == "attack", "probe"]), "all"]:
            found = attack_estimates(part, probe, seed)
            for quantity, estimate in found.items():
                rows.append({"model": model, "attack": probe} | _plain(quantity, estimate))
    return pd.DataFrame(rows)


def attacks_side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """The table of attacks for a reader: a row a model and attack, a column a quantity."""
    spans = [
        f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for _, row in table.iterrows()
    ]
    shown = table.assign(span=spans)
    wide = shown.pivot_table(
        index=["model", "attack"], columns="quantity", values="span", aggfunc="first", sort=False
    )
    columns = [c for c in wide.columns if " - " not in c]
    return wide[columns].fillna("").reset_index()


def attack_estimates(part: pd.DataFrame, probe: str, seed: int) -> dict[str, Estimate]:
    """OM, OP and their controls for one model and attack (`all`: every attack)."""
    at = part if probe == "all" else part[part["probe"] == probe]
    own = at[at["kind"] == "attack"]
    by = {mention: own[own["mention"] == mention] for mention in ("old", "decoy", "none")}
    found: dict[str, Estimate] = {}
    if not len(by["old"]):
        return found
    keys = ["case", "probe"]
    merged = by["old"].merge(by["decoy"], on=keys, suffixes=("", "_d"))
    merged = merged.merge(by["none"], on=keys, suffixes=("", "_n"))
    columns = {
        "OM": merged["said_old"],
        "OM, no mention": merged["said_old_n"],
        "OM, decoy": merged["said_decoy_d"],
        "OM - decoy": merged["said_old"].astype(float) - merged["said_decoy_d"].astype(float),
        "OM - no mention": merged["said_old"].astype(float) - merged["said_old_n"].astype(float),
        "OP": merged["p_old"] > merged["p_new"],
        "OP, decoy": merged["p_decoy_d"] > merged["p_new_d"],
        "new kept": merged["said_new"],
    }
    for name, values in columns.items():
        bounds = (-1.0, 1.0) if " - " in name else (0.0, 1.0)
        found[name] = cluster_mean(
            values.astype(float).tolist(), merged["group"].tolist(), seed, bounds=bounds
        )
    others = at[at["kind"] == "neighbour attack"]
    if len(others):  # a neighbour whose own answer is the decoy says it without any attack
        others = others[others["p_old"] != others["p_decoy"]]
    if len(others):
        found["neighbour, decoy"] = _mean(others, "said_decoy", seed)
    return found


def working(part: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of cases whose edit works; all of them for the model as it is."""
    if model == UNEDITED:
        return part
    done = part[(part["kind"] == "edit") & part["said_new"]]["case"]
    return part[part["case"].isin(set(done))]


def of_working(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose case's edit works, model by model."""
    if not len(table):
        return table
    done = answers[(answers["kind"] == "edit") & answers["said_new"]][["model", "case"]]
    return table.merge(done.drop_duplicates(), on=["model", "case"])


def reversal_by_layer(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The mean gain in P(old) of each patch over the unpatched run, donors old and none."""
    import pandas as pd

    rows = []
    keys = ["model", "mention", "position", "layer"]
    gained = table.assign(gain=table["p_old"] - table["base_old"])
    for (model, mention, position, layer), part in gained.groupby(keys, sort=False):
        found = _mean(part, "gain", seed, None)
        rows.append(
            {"model": model, "mention": mention, "position": position, "layer": layer,
             "gain": found.mean, "low": found.low, "high": found.high}
        )  # fmt: skip
    return pd.DataFrame(rows)


def modules_by_layer(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What attention and MLP add to the lens's P(old) on attacks, by layer."""
    import pandas as pd

    rows = []
    for (model, module, layer), part in table.groupby(["model", "module", "layer"], sort=False):
        found = _mean(part, "p_old", seed, None)
        rows.append(
            {"model": model, "module": module, "layer": layer, "gain": found.mean,
             "low": found.low, "high": found.high}
        )  # fmt: skip
    return pd.DataFrame(rows)


def ablations(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The change in P(old) and P(new) under attack with something removed; odd cases only."""
    import pandas as pd

    rows = []
    for (model, removed), part in _changes(table).groupby(["model", "removed"], sort=False):
        for which in ("old", "new"):
            found = _mean(part, f"d_{which}", seed, None)
            rows.append({"model": model, "removed": removed, "answer": which} | _plain("", found))
    return pd.DataFrame(rows).drop(columns="quantity")


def decoding(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How often the chosen vectors decode to the old answer (DSR), and the controls; odd cases."""
    import pandas as pd

    odd = table[table["case"] % 2 == 1]
    rows = []
    names = {
        "chosen_old": "old answer",
        "chosen_decoy": "another value, same vectors",
        "random_old": "old answer, random vectors",
        "head_old": "old answer, whole head",
    }
    for (model, share), part in odd.groupby(["model", "share"], sort=False):
        for column, what in names.items():
            found = _mean(part, column, seed)
            rows.append({"model": model, "share": share, "decoded": what} | _plain("", found))
    return pd.DataFrame(rows).drop(columns="quantity")


def claims(
    answers: pd.DataFrame,
    reversals: pd.DataFrame,
    modules: pd.DataFrame,
    ablated: pd.DataFrame,
    said: pd.DataFrame,
    passing: dict[str, bool],
    seed: int,
) -> pd.DataFrame:
    """Each claim of the paper for each kind of edit: an estimate, its interval, and a verdict.

    Tables but the answers hold cases whose edit works (`of_working`).
    """
    import pandas as pd

    rows: list[dict] = []
    for model in dict.fromkeys(answers["model"]):
        if model == UNEDITED:
            continue
        own = working(answers[answers["model"] == model], model)
        cases = set(own["case"])
        if len(cases) < ENOUGH:
            why = f"{len(cases)} edits work"
            rows.append(_judged(model, "an attack brings the old answer back", None, why))
            continue
        some = attack_estimates(own, "all", seed)
        back = "an attack brings the old answer back (OM above a decoy's)"
        rows.append(_judged(model, back, some["OM - decoy"]))
        mention = "mentioning the old answer does it (OM above no mention)"
        rows.append(_judged(model, mention, some["OM - no mention"]))
        rows += _reversal_claims(model, _of(reversals, model), seed)
        rows += _module_claims(model, _of(modules, model), seed)
        both = _of(ablated, model), _of(said, model)
        rows += _head_claims(model, *both, passing.get(model, False), seed)
    return pd.DataFrame(rows)


def _of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model] if len(table) else table


def _reversal_claims(model: str, table: pd.DataFrame, seed: int) -> list[dict]:
    donors = table[table["mention"] == "old"]
    raised = _mean(
        donors.assign(d=donors["donor_old"] - donors["base_old"]), "d", seed, (-1.0, 1.0)
    )
    why = "" if raised.mean > LITTLE else f"attacks raise P(old) by less than {LITTLE}"
    rows = []
    for position, early in (("subject_last", True), ("last", False)):
        name = "early layers' subject" if early else "late layers' last position"
        found = None if why else _early_late(donors, position, early, seed)
        rows.append(_judged(model, f"states of {name} undo the edit", found, why))
    return rows


def _module_claims(model: str, table: pd.DataFrame, seed: int) -> list[dict]:
    rows = []
    for module, sign in (("attention", 1), ("MLP", -1)):
        claim = f"late {module} outputs {'raise' if sign > 0 else 'lower'} P(old)"
        if not len(table):
            rows.append(_judged(model, claim, None, "attention and MLP are parallel here"))
            continue
        late = table[(table["module"] == module) & (table["layer"] >= table["layer"].max() / 2)]
        found = _mean(late.assign(d=sign * late["p_old"]), "d", seed, None)
        rows.append(_judged(model, claim, found))
    return rows


def _head_claims(
    model: str, ablated: pd.DataFrame, said: pd.DataFrame, passing: bool, seed: int
) -> list[dict]:
    changes, decode = _changes(ablated), said[said["case"] % 2 == 1]
    names = (
        "heads that write the old answer carry it (beside random heads)",
        "5 % of their singular vectors carry it (beside random ones)",
        "those vectors decode to the old answer (beside random ones)",
    )
    people, held = changes["group"].nunique(), changes["p_old_whole"].mean()
    why = f"{people} odd cases" if people < ENOUGH else ""
    if not why and held <= LITTLE:
        why = f"P(old) under the attack is below {LITTLE}"
    if why:
        return [_judged(model, name, None, why) for name in names]
    wide = changes.groupby(["case", "group", "removed"])["d_old"].mean().unstack("removed")
    groups = wide.index.get_level_values("group").tolist()
    found: list[Estimate] = []
    for one, control in (("heads", "random heads"), ("5 %", "random 5 %")):
        # Removing what carries the answer lowers P(old), so the control's change less its own.
        found.append(cluster_mean((wide[control] - wide[one]).tolist(), groups, seed, bounds=None))
    five = decode[decode["share"] == decode["share"].min()]
    more = five["chosen_old"].astype(float) - five["random_old"].astype(float)
    found.append(cluster_mean(more.tolist(), five["group"].tolist(), seed, bounds=(-1.0, 1.0)))
    notes = ("" if passing else "no head's LOPH reaches 0.1; the best four", _recovered(wide), "")
    return [
        _judged(model, name, estimate, note)
        for name, estimate, note in zip(names, found, notes, strict=True)
    ]


def _recovered(wide: pd.DataFrame) -> str:
    """How much of the whole heads' effect a few vectors have."""
    means = wide.mean()
    if abs(means["heads"]) < 0.01:
        return f"removing the heads changes P(old) by {means['heads']:+.3f} only"
    some, blind = means["5 %"] / means["heads"], means["random 5 %"] / means["heads"]
    return f"{some:.0%} of the heads' effect, random vectors {blind:.0%}"


def _changes(table: pd.DataFrame) -> pd.DataFrame:
    """Each ablation's change against the intact run of the same case; odd cases only."""
    odd = table[table["case"] % 2 == 1]
    whole = odd[odd["removed"] == "nothing"][["model", "case", "p_old", "p_new"]]
    merged = odd[odd["removed"] != "nothing"].merge(
        whole, on=["model", "case"], suffixes=("", "_whole")
    )
    return merged.assign(
        d_old=merged["p_old"] - merged["p_old_whole"],
        d_new=merged["p_new"] - merged["p_new_whole"],
    )


def _early_late(table: pd.DataFrame, position: str, early: bool, seed: int) -> Estimate:
    """The mean gain in the half of layers claimed, less that in the other half."""
    at = table[table["position"] == position]
    half = (at["layer"].max() + 1) / 2
    gain = at["p_old"] - at["base_old"]
    # Halves of equal size, so that the mean over rows is half the difference of their means.
    signed = gain.where((at["layer"] < half) == early, -gain)
    return cluster_mean((2 * signed).tolist(), at["group"].tolist(), seed, bounds=None)


def _judged(model: str, claim: str, found: Estimate | None, note: str = "") -> dict:
    row: dict = {"model": model, "claim": claim, "verdict": "could not be tested"}
    numbers = [float("nan")] * 3
    if found is not None and found.low == found.low:
        row["verdict"] = "held" if found.low > 0 else "did not hold"
        numbers = [found.mean, found.low, found.high]
    return row | dict(zip(("estimate", "low", "high"), numbers, strict=True)) | {"note": note}


def verdict_lines(judged: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """One line a claim: for which kinds of edit it held."""
    lines = []
    for claim in dict.fromkeys(judged["claim"]):
        part = judged[judged["claim"] == claim].set_index("model")
        words: list[str] = []
        untested: dict[str, list[str]] = {}
        for model in order:
            if model not in part.index:
                continue
            row = part.loc[model]
            if row["verdict"] == "could not be tested":
                untested.setdefault(row["note"], []).append(model)
                continue
            more = f"; {row['note']}" if row["note"] else ""
            span = f"{row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            words.append(f"{model}: {row['verdict']}, {span}{more}")
        words += [
            f"{'; '.join(models)}: could not be tested ({why})" for why, models in untested.items()
        ]
        lines.append(f"{claim[0].upper()}{claim[1:]}. {'. '.join(words)}.")
    return lines


def _mean(
    part: pd.DataFrame, column: str, seed: int, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Estimate:
    values = part[column].astype(float).tolist()
    return cluster_mean(values, part["group"].tolist(), seed, bounds=bounds)


def _row(model: str, quantity: str, found: Estimate) -> dict:
    return {"model": model} | _plain(quantity, found)


def _plain(quantity: str, found: Estimate) -> dict:
    return {
        "quantity": quantity, "mean": found.mean, "low": found.low, "high": found.high,
        "subjects": found.clusters, "prompts": found.n,
    }  # fmt: skip
