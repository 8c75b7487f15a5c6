"""Numbers of the where-it-forgets study, from the record of each tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import probes
from probes import Forgetting
from studies._stats import Estimate, cluster_mean
from studies._where_facts import Facts

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 5  # entities below which nothing is claimed
WHOLE, WITHIN = "lens, probe or patch", "lens or probe"
EVIDENCE = {WHOLE: ("lens", "probe", "patch"), WITHIN: ("lens", "probe")}
Records = Mapping[str, tuple[Forgetting, Facts]]


def sets_of(records: Records) -> list[tuple[str, str, Forgetting]]:
    """(model, set, the record of that set)."""
    return [
        (model, name, record.select(facts.rows(name)))
        for model, (record, facts) in records.items()
        for name in facts.names()
    ]


def behaviour(records: Records, seed: int) -> pd.DataFrame:
    """What each model still answers: `model set` and the columns of `probes.task_forgetting`.

    Right is the answer's first token on top; chance is one over the answers that the set has.
    """
    import pandas as pd

    parts = []
    for model, name, record in sets_of(records):
        before, after = (
            (record.rank[f"{side}_lens"][:, -1, 0] == 1).tolist() for side in ("base", "tuned")
        )
        answers: dict[str, set[int]] = {}
        for fact, token in zip(record.facts, record.token[:, 0].tolist(), strict=True):
            answers.setdefault(fact.attribute, set()).add(token)
        guess = sum(1 / len(answers[fact.attribute]) for fact in record.facts) / len(record.facts)
        entities = [fact.entity for fact in record.facts]
        found = probes.task_forgetting(
            {name: before}, {name: after}, chance=guess, groups={name: entities}, seed=seed
        ).table()
        said = pd.Series([record.texts[says[1]].strip() for says in record.meta["says"]])
        most = said.value_counts().head(3)
        table = found.rename(columns={"task": "set"}).assign(
            model=model,
            says=", ".join(f"{word} {count / len(said):.2f}" for word, count in most.items()),
        )
        parts.append(table[["model", *(c for c in table if c != "model")]])
    return pd.concat(parts, ignore_index=True)


def shares(records: Records, seed: int) -> pd.DataFrame:
    """`model set evidence verdict of mean low high facts entities`."""
    import pandas as pd

    parts = []
    for model, name, record in sets_of(records):
        for label, evidence in EVIDENCE.items():
            found = record.shares(evidence=evidence, seed=seed)
            parts.append(found.assign(model=model, set=name, evidence=label))
    table = pd.concat(parts, ignore_index=True)
    first = ["model", "set", "evidence"]
    return table[[*first, *(column for column in table if column not in first)]]


def layers(records: Records, seed: int) -> pd.DataFrame:
    """Profiles by layer: `model set of` and the columns of `Forgetting.layers`.

    Of the lost facts where there are some of five entities, else of those the base knows.
    """
    import pandas as pd

    parts = []
    for model, name, record in sets_of(records):
        of = "lost" if _entities_lost(record) >= ENOUGH else "known"
        found = record.layers(of, seed=seed)
        parts.append(found.assign(model=model, set=name, of=of))
    return pd.concat(parts, ignore_index=True)


def survival(records: Records, seed: int) -> pd.DataFrame:
    """Probes of base and tuned model at the layer where the base's is best.

    Columns `model set of layer base tuned change shuffled untrained` with `_low` and `_high`;
    accuracy of the answer among its attribute's, on all facts the base knows and on the lost ones.
    The layer is chosen on the base alone.
    """
    import pandas as pd

    rows = []
    for model, name, record in sets_of(records):
        if "tuned_probe" not in record.rank:
            continue
        known = record.rank["base_lens"][:, -1, 0] == 1
        lost = known & (record.rank["tuned_lens"][:, -1, 0] != 1)
        base = record.rank["base_probe"][..., 0]
        layer = int(((base == 1) & known[:, None])[:, 1:].float().mean(0).argmax()) + 1
        for of, keep in (("known", known), ("lost", lost)):
            keep = keep & (base[:, layer] > 0)
            if not bool(keep.any()):
                continue
            entities = [f.entity for f, k in zip(record.facts, keep, strict=True) if k]
            hits = {
                column: (record.rank[f"{reading}_probe"][keep, layer, 0] == 1).float()
                for column, reading in (
                    ("base", "base"), ("tuned", "tuned"), ("shuffled", "shuffled"),
                    ("untrained", "random"),
                )
                if f"{reading}_probe" in record.rank
            }  # fmt: skip
            row: dict[str, object] = {"model": model, "set": name, "of": of, "layer": layer}
            for column, values in hits.items():
                row |= _columns(column, cluster_mean(values.tolist(), entities, seed))
            gap = (hits["tuned"] - hits["base"]).tolist()
            got = cluster_mean(gap, entities, seed, bounds=(-1.0, 1.0))
            rows.append(row | _columns("change", got) | {"facts": got.n, "entities": got.clusters})
    return pd.DataFrame(rows)


def verdicts(records: Records) -> pd.DataFrame:
    """Every fact's verdict and layers: `model set` and the columns of `Forgetting.verdicts`."""
    import pandas as pd

    parts = [
        record.verdicts().assign(model=model, set=name) for model, name, record in sets_of(records)
    ]
    return pd.concat(parts, ignore_index=True)


def verdict(behaviour: pd.DataFrame, shares: pd.DataFrame, survival: pd.DataFrame) -> list[str]:
    """What was found, in sentences, and the rule by which each was judged."""
    lines = []
    for row in behaviour.itertuples():
        lines.append(_sentence(row, shares))
    if len(survival):
        lines += _survives(survival)
    return [
        *lines,
        "Rule: of the facts that the base answers, kept are those the tuned model answers too; a "
        "lost one is hidden late if lens, probe or the base going on from the tuned stream still "
        "has it in the upper half of the blocks, hidden early if only below, erased if nowhere. "
        "Decoys are other answers judged by the same rule. Intervals are over entities.",
    ]


def _sentence(row: object, shares: pd.DataFrame) -> str:
    model, name = row.model, row.set  # type: ignore[attr-defined]
    here = shares[(shares["model"] == model) & (shares["set"] == name)]
    whole = here[here["evidence"] == WHOLE].set_index(["verdict", "of"])
    if ("kept", "facts") not in whole.index:
        return f"{model}, {name}: the base answers none of these facts, so nothing could be lost."
    kept = whole.loc[("kept", "facts")]
    text = f"{model}, {name}: {shown(kept)} of {int(kept['facts'])} facts are kept"
    if ("hidden late", "lost") not in whole.index:
        return f"{text}, none is lost."
    lost = whole.loc[("hidden late", "lost")]
    if lost["entities"] < ENOUGH:
        few = f"{int(lost['facts'])} lost, of {int(lost['entities'])} of the entities"
        return f"{text}; {few}: too few to say where ({ENOUGH} entities are needed)."
    within = here[here["evidence"] == WITHIN].set_index(["verdict", "of"])
    parts = [
        f"{word} {shown(whole.loc[(word, 'lost')])} (decoys {shown(whole.loc[(word, 'decoys')])})"
        for word in ("hidden late", "hidden early", "erased")
    ]
    return (
        f"{text}. Of the {int(lost['facts'])} lost: {', '.join(parts)}. Without patching, "
        f"{shown(within.loc[('hidden late', 'lost')])} are hidden late and "
        f"{shown(within.loc[('erased', 'lost')])} erased."
    )


def _survives(survival: pd.DataFrame) -> list[str]:
    """Of each set in which enough was lost: whether probes of the tuned model still work."""
    lines = []
    for row in survival[survival["of"] == "lost"].itertuples():
        if row.entities < ENOUGH:
            continue
        shuffled = float(getattr(row, "shuffled_high", 0.0))
        if row.tuned_low > shuffled and row.tuned >= 0.9 * row.base:
            outcome = "survive"
        elif row.tuned_low > shuffled:
            outcome = "survive in part"
        else:
            outcome = "do not survive"
        said = {
            name: str(Estimate(getattr(row, name), getattr(row, f"{name}_low"),
                               getattr(row, f"{name}_high"), row.entities, row.facts))
            for name in ("tuned", "base", "shuffled")
        }  # fmt: skip
        lines.append(
            f"{row.model}, {row.set}: probes {outcome} on the lost facts: at layer {row.layer}, "
            f"best in the base, they tell {said['tuned']} of the answers in the tuned model, "
            f"{said['base']} in the base, {said['shuffled']} with shuffled labels (survive: above "
            f"shuffled labels and at least nine tenths of the base's)."
        )
    return lines


def reading_table(
    table: pd.DataFrame,
    estimates: Sequence[str],
    before: Sequence[str],
    after: Sequence[str] = (),
) -> pd.DataFrame:
    """A table for reading: each estimate in one column with its interval."""
    import pandas as pd

    columns: dict[str, object] = {name: table[name] for name in before if name in table}
    for name in estimates:
        if name in table:
            columns[name.replace("_", " ")] = [
                "–" if row[name] != row[name] else str(
                    Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], 0, 0)
                )
                for _, row in table.iterrows()
            ]  # fmt: skip
    return pd.DataFrame(columns | {name: table[name] for name in after if name in table})


def verdict_table(shares: pd.DataFrame) -> pd.DataFrame:
    """A row a set and evidence: kept of all, and where the lost ones are, beside their decoys."""
    import pandas as pd

    rows = []
    for (model, name, evidence), here in shares.groupby(["model", "set", "evidence"], sort=False):
        at = here.set_index(["verdict", "of"])
        row: dict[str, object] = {"model": model, "set": name, "evidence": evidence}
        kept = at.loc[("kept", "facts")]
        row |= {"facts": int(kept["facts"]), "kept": shown(kept)}
        lost = at.loc[("erased", "lost")]["facts"] if ("erased", "lost") in at.index else 0
        row["lost"] = int(lost)
        for word in ("hidden late", "hidden early", "erased"):
            for of, title in (("lost", word), ("decoys", f"{word}, decoys")):
                found = (word, of) in at.index
                row[title] = shown(at.loc[(word, of)]) if found else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def shown(row: pd.Series) -> str:
    """A share with its interval."""
    return str(Estimate(row["mean"], row["low"], row["high"], int(row["entities"]), 0))


def _entities_lost(record: Forgetting) -> int:
    table = record.verdicts(evidence=())
    lost = ~table["verdict"].isin(["kept", "unknown"])
    return int(table[lost]["entity"].nunique())


def _columns(name: str, got: Estimate) -> dict[str, float]:
    return {name: got.mean, f"{name}_low": got.low, f"{name}_high": got.high}
