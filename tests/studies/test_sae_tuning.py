"""The sae-tuning study: its measures on numbers known beforehand, and that all of it runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
import interventions as iv
from interp import InterpError
from interp._forward import run as forward
from studies import _sae_looks as looking
from studies import _sae_recipes as recipes
from studies import _sae_tables as tables
from studies._reasoning_measures import Task
from studies._sae_bench import Bench
from studies._sae_looks import Looks
from studies._sae_recipes import CONDITIONS
from studies._sae_report import outcome
from studies.sae_tuning import SaeTuning, run


def answers(name: str, solved: list[int], seed: int = 0, samples: int = 2) -> pd.DataFrame:
    """Problem i solved in the first solved[i] of its samples."""
    rows = [
        {"kind": "problem", "group": str(i), "value": float(s < count), "tokens": 1,
         "control": control, "condition": name, "seed": seed, "state": 1, "changes": 4,
         "tuning": 3.0, "choosing": 2.0}
        for control in ("", "greedy")
        for i, count in enumerate(solved)
        for s in range(samples)
    ]  # fmt: skip
    text = {"kind": "text", "group": "0", "value": 6.0, "tokens": 3, "control": ""}
    return pd.concat([pd.DataFrame(rows), pd.DataFrame([rows[0] | text])], ignore_index=True)


TARGET, SOURCE = [0] * 40 + [1] * 40, [1] * 40 + [2] * 40
KNOWN = {
    role: answers(role, solved).drop(columns="changes")
    for role, solved in (("target", TARGET), ("source", SOURCE))
}


def seen(
    costs: dict[int, list[float]], solved: dict[int, list[float]], **more: object
) -> pd.DataFrame:
    """Looks at two texts of ten tokens each, whose own loss is 1, and at some dev problems."""
    rows = []
    for look, values in costs.items():
        for i, value in enumerate(values):
            for kind, here in {
                "kl": 0.5 * look, "kl with SAE": value, "loss": 1.0, "entropy": 2.0 - look,
                "loss with SAE": 1.0 + 2 * value,
            }.items():  # fmt: skip
                rows.append({"look": look, "kind": kind, "texts": "bare", "group": f"bare {i}",
                             "value": here, "tokens": 10})  # fmt: skip
        for i, value in enumerate(solved[look]):
            rows.append({"look": look, "kind": "solved", "texts": "", "group": str(i),
                         "value": value, "tokens": 1})  # fmt: skip
    return pd.DataFrame(rows).assign(**more)


LOOKS = pd.concat([
    seen({0: [4.0, 6.0], 1: [1.0, 2.0]}, {0: [0.0] * 40, 1: [1.0] * 10 + [0.0] * 30},
         condition=name, seed=0)
    for name in CONDITIONS
])  # fmt: skip


def test_shares_are_of_rls_gain_over_the_same_problems() -> None:
    """RL solves twice as often as the target; half of that gain, all of it, none of it."""
    given = {name: answers(name, TARGET) for name in CONDITIONS}
    given["source SAE"] = answers("source SAE", [1] * 40 + [1] * 40)
    given["target SAE"] = answers("target SAE", SOURCE)
    given["identity SAE"] = answers("identity SAE", TARGET).assign(changes=0)
    table = tables.conditions(pd.concat(list(given.values())), LOOKS, KNOWN, 0)
    table = table.set_index("condition")
    assert table["share"].to_dict() == pytest.approx(
        dict.fromkeys(CONDITIONS, 0.0) | {"source SAE": 0.5, "target SAE": 1.0}
    )
    half, same = table.loc["source SAE"], table.loc["identity SAE"]
    assert half["share_low"] < 0.5 < half["share_high"] < 0.97
    assert half["gain"] == pytest.approx(0.25) == half["over_random"]
    assert half["text_loss"] == pytest.approx(2.0)
    assert half["last_on_dev"] == pytest.approx(0.25)
    # A model that is as it was gains 0, and there is nothing to be uncertain of.
    assert (same["gain"], same["gain_low"], same["gain_high"]) == (0, 0, 0)
    assert same["over_random_low"] < 0 < same["over_random_high"]
    assert outcome(half, 0.97, 0.5) == "did not hold"
    assert outcome(table.loc["target SAE"], 0.97, 0.5) == "held"
    assert "could not be tested" in outcome(half, 0.97, 0.0)


def test_seeds_are_no_further_problems() -> None:
    """The same answers three times are one seed's interval, and unlike seeds are averaged."""
    one = pd.concat([answers(name, SOURCE) for name in CONDITIONS])
    three = pd.concat([one.assign(seed=seed) for seed in range(3)])
    alone, repeated = (tables.conditions(rows, LOOKS, KNOWN, 0) for rows in (one, three))
    same = [n for n in alone if n not in ("seeds", "gain_seeds", "state")]
    pd.testing.assert_frame_equal(alone[same], repeated[same])
    assert set(repeated["seeds"]) == {3}
    unlike = pd.concat([
        one, *(answers(name, TARGET, seed).assign(state=0, changes=0, tuning=9.0)
               for name in CONDITIONS for seed in (1, 2)),
    ])  # fmt: skip
    mixed = tables.conditions(unlike, LOOKS, KNOWN, 0).iloc[0]
    assert mixed["gain"] == pytest.approx(0.5 / 3)
    assert mixed["gain_seeds"] == "+50.0 +0.0 +0.0"
    assert (mixed["state"], mixed["changes"], mixed["tuning"]) == ("1 0 0", 4, 7.0)


@torch.no_grad()
def test_looks_measure_the_model_with_the_sae_and_without() -> None:
    """Text by text and token by token, against the formulas; and after an edit, the edited one."""
    bench = Bench(SaeTuning(smoke=True))
    model, text = bench.target, bench.dev_texts["worked"][0]
    sae = iv.sae.random(model.anatomy.d_model, 64, 8, "resid_post.2", seed=1)
    edit = iv.scale_heads({(3, 0): 0.0})
    solved = pd.DataFrame({"group": ["0"], "value": [0.5]})
    looks = Looks(sae, Task([], [], 1, 1.0, 2, 0), {"worked": [text, text[:60]]}, solved)
    assert looks(model) == 0.5
    batch = model.batch([text])
    before = forward(model.module, batch.inputs).logits[0].double().log_softmax(-1)
    with edit.applied(model):
        looks.task = Task(bench.task("dev").problems[:1], [], 1, 1.0, 2, 0)
        looks(model)
        alone = forward(model.module, batch.inputs).logits[0].double().log_softmax(-1)
        with interp.hooked(model, {"resid_post.2": lambda x, site: sae.reconstruct(x)}):
            there = forward(model.module, batch.inputs).logits[0].double().log_softmax(-1)
    ids = batch.input_ids[0].tolist()
    seen = looks.table().query("look == 1 and group == 'worked 0'").set_index("kind")
    for kind, now in (("kl", alone), ("kl with SAE", there)):
        wanted = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, now, strict=True))
        assert seen.loc[kind, "value"] == pytest.approx(wanted, rel=1e-3)
        assert seen.loc[kind, "tokens"] == len(ids)
    for kind, now in (("loss", alone), ("loss with SAE", there)):
        wanted = -sum(float(now[t, ids[t + 1]]) for t in range(len(ids) - 1))
        assert seen.loc[kind, "value"] == pytest.approx(wanted, rel=1e-4)
        assert seen.loc[kind, "tokens"] == len(ids) - 1
    entropy = -float((alone.exp() * alone).sum())
    assert seen.loc["entropy", "value"] == pytest.approx(entropy, rel=1e-4)
    start = looks.table().query("look == 0 and kind == 'kl'")["value"]
    assert start.abs().max() < 1e-6


def test_what_a_tuning_closed_is_a_ratio_of_sums() -> None:
    """KL of 4 and 6 at the start, 1 and 2 at the end: 0.7 of it is gone, and of the loss too."""
    looks = LOOKS[LOOKS["condition"] == "source SAE"]
    (row,) = tables.tuning(looks, 0).to_dict("records")
    assert row["closed"] == pytest.approx(0.7) == row["won_back"]
    assert row["kl with SAE"] == pytest.approx(0.5)
    assert row["kl with SAE after"] == pytest.approx(0.15)
    assert row["kl"] == pytest.approx(0.05)
    assert row["entropy change"] == pytest.approx(-0.1)
    gain = looking.gained(looks, 1, 0)
    assert gain.mean == pytest.approx(0.25)
    assert 0 < gain.low < 0.25 < gain.high
    solved = {0: [0.0], 1: [0.0]}
    nothing = seen({0: [0.0, 0.0], 1: [1e-9, 0.0]}, solved, condition="identity SAE")
    (row,) = tables.tuning(nothing, 0).to_dict("records")
    assert row["closed"] != row["closed"]


def test_layers_gains_follow_their_counts() -> None:
    """In order over four layers: rank correlation 1, which 2 of 24 orders match in size."""
    names = {"as above": 2, "layer 0": 0, "layer 1": 1, "layer 3": 3, "lr x 4": 2}
    looks = pd.concat([
        seen({0: [4.0, 4.0], 1: [2.0, 2.0]},
             {0: [0.0] * 40, 1: [1.0] * (layer + 1) + [0.0] * (39 - layer)},
             setting=name, layer=layer)
        for name, layer in names.items()
    ])  # fmt: skip
    scan = pd.DataFrame({"layer": range(4), "features": [1, 5, 6, 9]})
    table = tables.settings(looks, scan, 0)
    assert table["features"].tolist() == [6, 1, 5, 9, 6]
    assert table["dev_gain"].tolist() == pytest.approx([3 / 40, 1 / 40, 2 / 40, 4 / 40, 3 / 40])
    rank, p, n = tables.scan_rank(table)
    assert (rank, n) == (pytest.approx(1.0), 4)
    assert p == pytest.approx(2 / 24)
    flat = table.assign(dev_gain=0.0)
    assert tables.scan_rank(flat)[0] != tables.scan_rank(flat)[0]


def test_settings_change_one_thing_of_the_first_condition() -> None:
    config = SaeTuning(lr=1e-3, k=16, steps=50)
    first = recipes.main(config, 3)
    tried = recipes.settings(config, 3, 6)
    assert tried.pop("as above") == first == recipes.conditions(config, 3)["source SAE"]
    for name, recipe in tried.items():
        changed = [f for f in vars(first) if getattr(first, f) != getattr(recipe, f)]
        assert len(changed) == 1, name
    assert (tried["lr x 4"].lr, tried["k / 4"].k) == (4e-3, 4)
    assert tried["three times the steps"].steps == 150
    assert {r.layer for r in tried.values()} == set(range(6))
    own = recipes.conditions(SaeTuning(train=Path("mine.jsonl")), 3)
    assert recipes.WORKED not in own
    assert "SFT" in own


def test_reasoning_features_are_counted_as_the_paper_does() -> None:
    """Token by token; and the markers lie where the text says."""
    bench = Bench(SaeTuning(smoke=True, target="organism:base", source="organism:base"))
    main = recipes.main(bench.config, bench.layer)
    scan = bench.reasoning_features(main).set_index("layer")
    prompt, answer = bench.examples()[0]
    acts = bench.source.tokenizer(prompt + answer)["input_ids"]
    words = [bench.source.tokenizer.decode([t]).strip() for t in acts]
    opening = len(words) - 1 - words[::-1].index(":") if ":" in words else words.index("Solution:")
    saes = bench.saes(main)
    for layer in (0, 3):
        sae = saes[layer]
        z = sae.encode(interp.capture(bench.source, [prompt + answer], sae.site)[sae.site][0]) > 0
        closing = max(i for i, w in enumerate(words) if w == "answer")
        count = 0
        for j in range(sae.d_sae):
            on = {t for t in range(1, len(words)) if bool(z[t, j])}
            count += on == {opening, closing}
        assert scan.loc[layer, "features"] == count


def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = SaeTuning(out=tmp_path / "run", smoke=True)
    folder = run(config)
    page = (folder.path / "report.html").read_text()
    assert all(name in page for name in CONDITIONS)
    facts = folder.read_meta()["facts"]["verdict"]
    assert any("Controls, gain in points: random SAE" in line for line in facts)
    assert any("GRPO" in line for line in facts)
    assert any("in KL: on texts like those tuned on" in line for line in facts)
    # SFT is chosen as all others are: by dev problems, the start (look 0) included.
    looks = pd.read_parquet(folder.path / "looks" / "SFT-0.parquet")
    scores = looks[looks["kind"] == "solved"].groupby("look")["value"].mean()
    chosen = pd.read_parquet(folder.path / "answers" / "SFT-0.parquet")["state"].unique()
    assert chosen.tolist() == [scores.idxmax()]
    assert len(scores) == 3


def test_models_of_ones_own_need_problems(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="say what they are tuned on and tested with: --train"):
        Bench(SaeTuning(target="elsewhere")).examples()
    with pytest.raises(InterpError, match="layer=9: the target has layers 0 to 5"):
        _ = Bench(SaeTuning(layer=9)).layer
