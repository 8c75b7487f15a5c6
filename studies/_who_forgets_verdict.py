"""What a who-forgets study may say: each claim held, did not hold, or could not be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studies import _who_forgets_measures as measures

if TYPE_CHECKING:
    import pandas as pd

    from studies.who_forgets import WhoForgets

MATCHED, SAME_STEPS = "nearest accuracy on the new task", "same number of steps"
NAMES = {"sft": "SFT", "rl": "RL", "sft_rl": "SFT, then RL"}


def verdict(tables: dict[str, pd.DataFrame], config: WhoForgets) -> list[str]:
    """The sentences of the report's head."""
    lines = [_learnt(tables["checkpoints"]), *_lost(tables)]
    lines += [
        _sft_beside_rl(tables["pairs"]),
        _beyond_noise(tables["noise"]),
        *_razor(tables),
        *_frozen(tables["pairs"]),
        *_styles(tables),
    ]
    if config.smoke:
        lines.append("A smoke run: too few questions for any of this to be evidence.")
    return lines


def side(rows: pd.DataFrame, name: str) -> int:
    """1 if every row's interval lies above zero, -1 if every one lies below, else 0."""
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    if len(rows) and (low > 0).all():
        return 1
    return -1 if len(rows) and (high < 0).all() else 0


def _equal(rows: pd.DataFrame) -> pd.Series:
    """Which of the two put side by side cannot be told apart by their accuracy on the new task."""
    return (rows["new_low"] <= 0) & (rows["new_high"] >= 0)


def _learnt(checkpoints: pd.DataFrame) -> str:
    last = checkpoints.sort_values("step").groupby("run", sort=False).tail(1)
    order = last.sort_values(["method", "seed"])
    parts = [f"{row.checkpoint} {_share(row, 'new')}" for row in order.itertuples()]
    return f"Solved of the new task (sampled): {'; '.join(parts)}."


def _lost(tables: dict[str, pd.DataFrame]) -> list[str]:
    known, checkpoints = tables["tasks"], tables["checkpoints"]
    out = known[~known["kept"]]
    line = f"Old tasks: {', '.join(known['task'][known['kept']])}."
    if len(out):
        line += f" Left out, since the base is not above chance there: {', '.join(out['task'])}."
    trained = checkpoints[checkpoints["run"] != "base"]
    worst = trained.loc[trained["lost_accuracy"].idxmax()]
    lines = [
        line,
        f"Accuracy hardly tells: over all checkpoints the most that is lost of it is "
        f"{_estimate(worst, 'lost_accuracy')} ({worst['checkpoint']}), −FM. The answer's "
        f"log-prob, in nats an answer, is the finer measure, and the one decided by.",
    ] if worst["lost_accuracy_low"] <= 0.02 else [
        line,
        f"The most accuracy lost (−FM) is {_estimate(worst, 'lost_accuracy')} "
        f"({worst['checkpoint']}). Claims are decided by the answer's log-prob, in nats an answer.",
    ]  # fmt: skip
    return lines


def _sft_beside_rl(pairs: pd.DataFrame) -> str:
    claim = "“SFT forgets more than RL” (2507.10616, 2507.05386)"
    rows = pairs[(pairs["why"] == MATCHED) & (pairs["than"] == "rl")] if len(pairs) else pairs
    if not len(rows):
        return f"{claim}: could not be tested; it takes a run of SFT and one of RL."
    equal = rows[_equal(rows)]
    if len(equal):
        said = {1: "held", -1: "did not hold, the opposite did", 0: "not shown"}
        found = f"{said[side(equal, 'nats')]} at equal accuracy on the new task"
        found += f", in {_runs(len(equal))}"
    else:
        found = "could not be tested: no checkpoint of SFT has RL's accuracy on the new task"
    parts = [
        f"{r.one} − {r.other} {_estimate(r, 'nats')} nats an answer and "
        f"{_estimate(r, 'accuracy')} of accuracy, at {r.new_one:.2f} and {r.new_other:.2f} of the "
        f"new task{'' if alike else ' (not equal, so it does not count)'}"
        for r, alike in zip(rows.itertuples(), _equal(rows), strict=True)
    ]
    return f"{claim}: {found}. Lost by SFT beyond RL: {'; '.join(parts)}."


def _beyond_noise(noise: pd.DataFrame) -> str:
    parts = [
        f"{r.checkpoint} {_estimate(r, 'beyond_nats')} (noise alone {r.noise_nats:.4f})"
        for r in noise.itertuples()
    ]
    count = int(noise["draws"].iloc[0])
    return (
        f"Lost beyond what noise of the same norm in every tensor loses (mean of {count} draws), "
        f"nats an answer: {'; '.join(parts)}. Below zero, training moved the weights where the old "
        f"tasks do not look."
    )


def _razor(tables: dict[str, pd.DataFrame]) -> list[str]:
    claim = "“The KL on the new task predicts forgetting, distances of weights do not” (2509.04259)"
    if "fit" not in tables:
        return [f"{claim}: could not be tested; it takes four checkpoints that lose differently."]
    fit, checkpoints = tables["fit"].set_index("predictor"), tables["checkpoints"]
    trained = checkpoints[checkpoints["run"] != "base"]
    label = measures.PREDICTORS
    weights = [label[w] for w in measures.WEIGHTS if label[w] in fit.index]
    kl = label["forward"]
    if kl not in fit.index or not weights:
        return [f"{claim}: could not be tested; a predictor never varies."]
    rival = fit.loc[weights, "r2"].idxmax()
    column = {name: key for key, name in label.items()}
    margin = measures.margin_of_fit(
        *(trained[name].tolist() for name in ("lost_nats", "forward", column[str(rival)], "run"))
    )
    predicts = fit.loc[kl, "p"] < 0.05 and fit.loc[kl, "r2_left_out"] > 0
    if predicts and margin[1] > 0:
        found = "held"
    elif not predicts:
        found = "did not hold"
    elif margin[2] < 0:
        found = "did not hold: a distance of weights predicts it better, whichever run is left out"
    else:
        found = "held in part: the KL predicts it, but not better than a distance of weights does"
    rows = [f"{name} {_r2(fit.loc[name])}" for name in (kl, rival, *_also(fit, rival))]
    return [
        f"{claim}: {found}. R² of quadratic fits of the nats lost over {len(trained)} checkpoints "
        f"of {trained['run'].nunique()} runs: {'; '.join(rows)}. KL minus the best distance: "
        f"{margin[0]:+.2f}, from {margin[1]:+.2f} to {margin[2]:+.2f} when any one run is left "
        f"out. Shuffled checkpoints reach {fit.loc[kl, 'r2_null']:.2f}."
    ]


def _also(fit: pd.DataFrame, rival: object) -> list[str]:
    """The other predictors worth a number in the sentence."""
    names = ["reverse KL, own samples", "total variation", "weights, L2"]
    names += ["gain on the new task", "optimizer steps"]
    return [name for name in names if name in fit.index and name != rival]


def _r2(row: pd.Series) -> str:
    return (
        f"{row['r2']:.2f} [{row['low']:.2f}, {row['high']:.2f}] (runs left out "
        f"{row['r2_left_out']:.2f})"
    )


def _frozen(pairs: pd.DataFrame) -> list[str]:
    claims = {
        "sft_midfrozen": ("Freezing the middle layers' MLPs lessens forgetting", -1),
        "sft_qk": ("Training only q and k forgets more", 1),
    }
    import pandas as pd

    if not len(pairs):
        return []
    lines = []
    partial = pairs[~pairs["method"].isin(NAMES)]
    for method, rows in partial.groupby("method", sort=False):
        claim, wanted = claims.get(str(method), (f"{method} forgets less than SFT of all", -1))
        same, near = (rows[rows["why"] == why] for why in (SAME_STEPS, MATCHED))
        found = side(near, "nats")
        said = {wanted: "held", -wanted: "did not hold, the opposite did", 0: "not shown"}[found]
        said += " at equal accuracy on the new task"
        if not _equal(near).all():
            said = "could not be tested, since no checkpoint of SFT is as good at the new task"
        shown = pd.concat([same, near]).drop_duplicates(["one", "other"])
        parts = [
            f"{r.one} − {r.other} {_estimate(r, 'nats')} nats an answer, the new task "
            f"{_points(r, 'new')} points"
            for r in shown.itertuples()
        ]
        lines.append(
            f"“{claim}” (2507.10616, which calls its own result inconclusive): {said}. At the same "
            f"number of steps, and at the nearest accuracy where that is another checkpoint: "
            f"{'; '.join(parts)}."
        )
    return lines


def _styles(tables: dict[str, pd.DataFrame]) -> list[str]:
    claim = "“RL makes one style of the base dominate” (2504.07912)"
    if "styles" not in tables:
        return [f"{claim}: could not be tested; styles are known of the organisms' problems only."]
    checkpoints, styles = tables["checkpoints"], tables["styles"]
    last = checkpoints.sort_values("step").groupby("run", sort=False).tail(1)
    rows = last[last["method"] == "rl"]
    if not len(rows):
        return [f"{claim}: could not be tested; there is no run of RL."]
    narrower = side(rows, "entropy_change") < 0
    base = styles[styles["checkpoint"] == "base"].set_index("style")
    lines, most, best = [], [], []
    for row in last[last["method"].isin(["rl", "sft"])].itertuples():
        now = styles[styles["checkpoint"] == row.checkpoint].set_index("style")
        top = now["share"].idxmax()
        shares = f"{_share(base.loc[top], 'share')} to {_share(now.loc[top], 'share')}"
        named = [s for s in base.index if s != measures.NO_STYLE and s in now.index]
        change = (now.loc[named, "share"] - base.loc[named, "share"]).tolist()
        rho, p = measures.rank_correlation(base.loc[named, "accuracy"].tolist(), change)
        lines.append(
            f"{row.checkpoint}: {top} from {shares}, entropy of the styles by "
            f"{_estimate(row, 'entropy_change')} nats"
            + (
                f", rank correlation of a style's accuracy in the base with its change of share "
                f"{rho:+.2f} (p = {p:.2f})"
                if rho == rho
                else ""
            )
        )
        if row.method == "rl":
            most.append(now.loc[top, "share_low"] > 0.5)
            best.append(rho)
    found = "held" if narrower and all(most) else "held in part" if narrower else "not shown"
    spread = [f"{s} {_share(base.loc[s], 'accuracy')}" for s in base.index if s in _with(base)]
    apart = base.loc[_with(base)]
    tested = bool(apart["accuracy_low"].max() > apart["accuracy_high"].min())
    word = "held" if tested and all(r > 0.99 for r in best) else "not shown"
    word = word if tested else "could not be tested"
    return [
        f"{claim}: {found} (held: the entropy falls in every run and the largest share's interval "
        f"lies above a half). {'; '.join(lines)}.",
        f"“What grows is the style that the base does best” (2504.07912): {word}; in the base the "
        f"styles solve {'; '.join(spread)}"
        + (
            "." if tested else ", which their intervals do not tell apart, and three styles "
            "cannot give a p below 0.17."
        ),
    ]  # fmt: skip


def _with(base: pd.DataFrame) -> list[str]:
    """Styles that the base writes, with an accuracy."""
    return [s for s in base.index if s != measures.NO_STYLE and base.loc[s, "solutions"] > 0]


def _runs(count: int) -> str:
    return "one pair of runs" if count == 1 else f"{count} pairs of runs"


def _estimate(row: object, name: str) -> str:
    mean, low, high = (_get(row, name + end) for end in ("", "_low", "_high"))
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _share(row: object, name: str) -> str:
    mean, low, high = (_get(row, name + end) for end in ("", "_low", "_high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _points(row: object, name: str) -> str:
    mean, low, high = (100 * _get(row, name + end) for end in ("", "_low", "_high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _get(row: object, name: str) -> float:
    """A column of a row, whether a Series or a named tuple."""
    found = getattr(row, name, None)
    return float(row[name] if found is None else found)  # type: ignore[index]
