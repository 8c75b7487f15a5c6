"""Tables of the sae-tuning study, from what each step of it kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp._estimate import Estimate
from interventions._sae_card import interval
from studies import _reasoning_measures as measures
from studies import _sae_looks as looking
from studies._sae_looks import ENTROPY, KL, KL_WITH

if TYPE_CHECKING:
    import pandas as pd

    from studies.sae_tuning import SaeTuning


def models(known: dict[str, pd.DataFrame], both: pd.DataFrame, config: SaeTuning) -> pd.DataFrame:
    """Target and source as they are; `kl` from the target and entropy on worked dev texts."""
    import pandas as pd

    rows = []
    for look, role in enumerate(("target", "source")):
        checkpoint = config.source if role == "source" else config.target
        row = {"model": role, "checkpoint": checkpoint} | _accuracy(known[role], config.seed)
        row |= {kind: looking.per_token(both, look, kind, "worked") for kind in (KL, ENTROPY)}
        rows.append(row)
    return pd.DataFrame(rows)


def conditions(
    answers: pd.DataFrame, looks: pd.DataFrame, known: dict[str, pd.DataFrame], seed: int
) -> pd.DataFrame:
    """One row a condition: accuracy, gain over the target, share of RL's gain, cost.

    `last_on_dev` is the gain of the last state on dev problems, which nothing chose.

    Seeds are averaged within a problem, and intervals are over problems; `gain_seeds` holds the
    gain of each seed. Where no state beat the start, nothing changed and the gain is exactly 0.
    """
    import pandas as pd

    target, source = (_by_problem(known[role]) for role in ("target", "source"))
    gap = source - target
    random_one = answers[answers["condition"] == "random SAE"]
    rows = []
    for name, here in answers.groupby("condition", sort=False):
        gained = _by_problem(here) - target
        row: dict[str, Any] = {"condition": name, "seeds": here["seed"].nunique()}
        row |= _accuracy(here, seed)
        row |= _columns("gain", _gain(here, known["target"], seed))
        share = interval(gained.tolist(), gap.loc[gained.index].tolist(), seed)
        row |= dict(zip(("share", "share_low", "share_high"), share, strict=True))
        row |= _columns("over_random", _gain(here, random_one, seed))
        seen = looks[looks["condition"] == name]
        row |= _columns("last_on_dev", looking.gained(seen, int(seen["look"].max()), seed))
        by_seed = [(_by_problem(one) - target).mean() for _, one in here.groupby("seed")]
        row["gain_seeds"] = " ".join(f"{100 * one:+.1f}" for one in by_seed)
        row["state"] = " ".join(str(n) for n in here.groupby("seed")["state"].first())
        row["changes"] = int(here["changes"].max())
        row |= {cost: float(here[cost].mean()) for cost in ("tuning", "choosing")}
        rows.append(row)
    return pd.DataFrame(rows)


def tuning(looks: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row a condition and kind of dev texts: what the tuning did, at its last state.

    `closed`: the share of the KL that the SAE costs at the start which is gone at the end;
    `won_back`: the share of the loss that it adds.
    """
    import pandas as pd

    rows = []
    for name, here in looks.groupby("condition", sort=False):
        for texts in [t for t in here["texts"].unique() if t]:
            rows.append({"condition": name, "texts": texts} | _mechanism(here, texts, seed))
    return pd.DataFrame(rows)


def settings(looks: pd.DataFrame, scan: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row a setting: its gain on dev problems at its last state, which nothing chose."""
    import pandas as pd

    features = scan.set_index("layer")["features"]
    rows = []
    for name, here in looks.groupby("setting", sort=False):
        last, layer = int(here["look"].max()), int(here["layer"].iloc[0])
        row: dict[str, Any] = {"setting": name, "layer": layer, "features": int(features[layer])}
        row |= _columns("dev_gain", looking.gained(here, last, seed))
        for texts in [t for t in here["texts"].unique() if t]:
            found = _mechanism(here, texts, seed)
            row |= {f"{texts} {key}": found[key] for key in (KL_WITH, "closed", "kl")}
        rows.append(row)
    return pd.DataFrame(rows)


def scan_rank(table: pd.DataFrame) -> tuple[float, float, int]:
    """Spearman's rank correlation of counts and dev gains over layers, its p, and their number.

    By permutations of the layers, all of them where they are few; NaN where all are alike.
    """
    from scipy.stats import permutation_test, spearmanr

    layers = table[table["setting"].str.startswith("layer ") | (table["setting"] == "as above")]
    counts, gains = layers["features"].to_numpy(), layers["dev_gain"].to_numpy()
    if len(layers) < 3 or min(len(set(counts)), len(set(gains))) < 2:
        return float("nan"), float("nan"), len(layers)
    test = permutation_test(
        (counts,), lambda x: spearmanr(x, gains).statistic,
        permutation_type="pairings", n_resamples=2000, rng=0,
    )  # fmt: skip
    return float(test.statistic), float(test.pvalue), len(layers)


def _mechanism(looks: pd.DataFrame, texts: str, seed: int) -> dict[str, float]:
    last = int(looks["look"].max())
    row: dict[str, float] = {}
    if (looks["kind"] == KL_WITH).any():
        row[KL_WITH] = looking.per_token(looks, 0, KL_WITH, texts)
        row[f"{KL_WITH} after"] = looking.per_token(looks, last, KL_WITH, texts)
    else:
        row[KL_WITH] = row[f"{KL_WITH} after"] = float("nan")
    nothing = not row[KL_WITH] > 1e-6  # rounding is not a cost: an identity, or no SAE at all
    for name, function in (("closed", looking.closed), ("won_back", looking.recovered)):
        found = (float("nan"),) * 3 if nothing else function(looks, last, texts, seed)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    row[KL] = looking.per_token(looks, last, KL, texts)
    row[f"{ENTROPY} change"] = looking.per_token(looks, last, ENTROPY, texts) - looking.per_token(
        looks, 0, ENTROPY, texts
    )
    return row


def _accuracy(answers: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy with its interval, greedy accuracy, loss on other texts."""
    sampled, greedy = (answers[answers["control"] == c] for c in ("", "greedy"))
    found = _columns("accuracy", measures.accuracy(sampled, seed))
    found |= _columns("greedy", measures.accuracy(greedy, seed))
    return found | {"text_loss": measures.text_loss(sampled)}


def _gain(here: pd.DataFrame, others: pd.DataFrame, seed: int) -> Estimate:
    """Over others, problem by problem; exactly 0 where neither changed anything."""
    still = all("changes" not in rows or not rows["changes"].any() for rows in (here, others))
    if still:
        return Estimate(0.0, 0.0, 0.0, here["group"].nunique(), len(here))
    return measures.difference(_sampled(here), [_sampled(others)], seed)


def _sampled(answers: pd.DataFrame) -> pd.DataFrame:
    return answers[answers["control"] == ""]


def _by_problem(answers: pd.DataFrame) -> pd.Series:
    sampled = _sampled(answers)
    return sampled[sampled["kind"] == "problem"].groupby("group")["value"].mean()


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
