"""The tune-what-matters study: budgets, starts, its statistics by hand, and a smoke run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
import interventions as iv
from interp import InterpError
from studies._tune_bench import TuneBench
from studies._tune_noise import NoiseTest, damage, read_texts, root_mean_square, text_loss, told
from studies._tune_summary import CLAIMS, against, claims, crossed, gained
from studies._tune_ways import WAYS, Tuner
from studies.tune_what_matters import TuneWhatMatters, run
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]


@pytest.fixture(scope="module")
def tuner() -> Tuner:
    tokenizer = byte_level()
    module = build("llama", vocab_size=max(97, len(tokenizer)))
    model = interp.load(module, tokenizer=tokenizer)
    lean = iv.low_rank("model.layers.0.mlp.up_proj.weight", torch.ones(48, 1), torch.ones(1, 32))
    return Tuner(
        model, lambda _: PAIRS, PAIRS[:3], 3, 3, rank=4, layer=1,
        kept=lambda: ["a bc dd", "cab b", "d cb"], direction=lambda: lean,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_way_learns_within_its_budget_and_leaves_the_model_alone(way: str, tuner: Tuner) -> None:
    before = {k: v.clone() for k, v in tuner.model.module.state_dict().items()}
    ids = tuner.model.batch([p for p, _ in PAIRS])
    with torch.no_grad():
        plain = tuner.model.module(**ids.inputs).logits
    still, tuned = tuner.tune(way, 0, 1e-12), tuner.tune(way, 0, 1e-2)
    with torch.no_grad(), still.use() as model:
        torch.testing.assert_close(model.module(**ids.inputs).logits, plain, atol=1e-4, rtol=1e-4)
    assert tuned.dev < still.dev
    one = tuner.model.module.get_parameter("model.layers.1.mlp.down_proj.weight").numel()
    whole = sum(p.numel() for p in tuner.model.module.parameters())
    if way in ("LoRA", "CorDA"):  # whole ranks
        assert abs(tuned.count - one) <= 0.5 * tuned.count / tuner.lora_rank + 1
    elif way in ("consensus", "safe"):  # by search, by chance
        assert tuned.count == pytest.approx(one, rel=0.15)
    elif WAYS[way].matched:
        assert tuned.count == pytest.approx(one, rel=0.01)
    else:
        assert one < tuned.count <= whole
    assert 8 * tuned.count <= tuned.state_bytes or way == "half in rounds"
    assert all(torch.equal(v, before[k]) for k, v in tuner.model.module.state_dict().items())


def test_a_prior_bends_the_random_masks_training_and_nothing_else(tuner: Tuner) -> None:
    """The same entries in the same order; another way to go where the direction says so."""
    changes = {}
    for way in ("random", "prior", "random prior"):
        before = {k: p.detach().clone() for k, p in tuner.model.module.named_parameters()}
        with tuner.tune(way, 0, 1e-2).use() as model:
            changes[way] = {k: p.detach() - before[k] for k, p in model.module.named_parameters()}
    bent = "model.layers.0.mlp.up_proj.weight"
    places = {way: change[bent] != 0 for way, change in changes.items()}
    assert torch.equal(places["random"], places["prior"])
    along = {way: float(change[bent].sum()) for way, change in changes.items()}  # D is all ones
    assert along["prior"] > max(along["random"], along["random prior"])


def test_differences_are_counted_question_by_question() -> None:
    pairs = pd.DataFrame(
        {"way": list("aabb"), "seed": 0, "item": [0, 1, 0, 1], "task": ["t", "u"] * 2,
         "group": ["x", "y"] * 2, "nats": [1.0, 3.0, 0.5, 1.0]}
    )  # fmt: skip
    new = pd.DataFrame(
        {"way": list("aabb"), "seed": 0, "problem": [0, 1, 0, 1], "group": list("xyxy"),
         "gain": [1.0, 0.0, 0.0, 0.0]}
    )  # fmt: skip
    more, lost = against(pairs, new, "a", "b")
    assert more.mean == 0.5 and lost.mean == pytest.approx((0.5 + 2.0) / 2)


def test_an_interval_over_groups_and_runs_covers_the_mean_of_both() -> None:
    """Simulated with what it estimates: sixty problems and three trainings that differ."""
    rng = np.random.default_rng(0)
    groups = np.tile(np.arange(60), 3)
    runs = np.repeat(np.arange(3), 60)
    both = alone = 0
    for _ in range(300):
        y = rng.normal(size=60)[groups] + 0.3 * rng.normal(size=3)[runs] + rng.normal(size=180)
        found = crossed(y, [""] * 180, groups.tolist(), runs.tolist())
        both += found.low <= 0 <= found.high
        found = crossed(
            y, [""] * 180, groups.tolist(), [0] * 180
        )  # as if there had been one training
        alone += found.low <= 0 <= found.high
    assert both / 300 >= 0.93 > 0.85 > alone / 300


def test_an_interval_of_one_run_is_students_over_groups() -> None:
    values = np.array([0.0, 1.0, 2.0, 5.0])
    found = crossed(values, ["t"] * 4, list("abcd"), [0] * 4)
    half = 3.182446 * values.std(ddof=1) / 2  # three degrees of freedom
    assert (found.mean, found.high) == (2.0, pytest.approx(2.0 + half, rel=1e-5))
    # A task counts as much as another, however many questions it has.
    found = crossed([0.0, 0.0, 0.0, 4.0], list("ttta"), list("abcd"), [0] * 4)
    assert found.mean == 2.0
    # Nothing varies between problems: as many trials as there are problems.
    flat = pd.DataFrame({"gain": 0.0, "group": list("abcd") * 2, "seed": [0] * 4 + [1] * 4})
    assert gained(flat, "gain", 0).low < 0 < gained(flat, "gain", 0).high


def test_claims_are_told_by_the_side_of_their_interval() -> None:
    groups = [str(i) for i in range(40)]
    ways = {"principal": 1.0, "random": 0.0, "magnitude": 1.0, "full": 1.0}
    parts = [
        pd.DataFrame(
            {"way": way, "seed": seed, "item": range(40), "problem": range(40), "task": "t",
             "group": groups, "right": True, "accuracy": 0.0,
             "gain": level + 0.01 * np.sin(np.arange(40) + seed),
             "nats": 2 * level + 0.01 * np.cos(np.arange(40) + seed)}
        )
        for way, level in ways.items()
        for seed in range(3)
    ]  # fmt: skip
    rows = pd.concat(parts, ignore_index=True)
    found = claims(rows, rows, 0).set_index(["claim"])["told"]
    assert found["principal learns more than random"] == "held"
    assert found["principal forgets less than random"] == "reversed"
    assert found["principal learns more than magnitude"] == "not told apart"
    assert set(found.index) < {claim.said for claim in CLAIMS}  # of the ways that are there


def test_damage_is_paired_by_draw() -> None:
    losses = {
        "principal, rank 8": [3.0, 5.0, 4.0], "random": [1.0, 3.0, 2.0],
        "magnitude": [3.5, 5.0, 3.5],
    }  # fmt: skip
    noise = pd.DataFrame(
        [
            {"mask": name, "noise": 1.0, "draw": i, "count": 7, "lost nats": x, "lost accuracy": 0}
            for name, values in losses.items()
            for i, x in enumerate(values)
        ]
    )
    rows = damage(noise).set_index("mask")
    of = rows.loc["principal, rank 8"]
    assert of["beyond random"] == of["beyond random low"] == of["beyond random high"] == 2.0
    # Student's interval of three draws: 4 +- 4.303 * 1 / sqrt(3).
    assert of["lost nats high"] == pytest.approx(4 + 4.3027 / 3**0.5, abs=1e-3)
    (line,) = told(damage(noise))
    assert "beyond random +2.000 [+2.000, +2.000]: held; beyond magnitude" in line
    assert "[-1.242, +1.242]: not told apart" in line  # 4.303 * 0.5 / sqrt(3)


def test_noise_falls_on_the_mask_and_has_the_size_that_was_asked(tuner: Tuner) -> None:
    model, before = tuner.model, {}
    for name, p in tuner.model.module.named_parameters():
        before[name] = p.detach().clone()
    changes: list[float] = []

    def measure(handle: interp.Model) -> dict[str, float]:
        parts = [(p.detach() - before[n]).flatten() for n, p in handle.module.named_parameters()]
        moved = torch.cat(parts)
        changes.append(float(moved[moved != 0].square().mean().sqrt()))
        return {"lost nats": float((moved != 0).sum())}

    test = NoiseTest(model, 0.5, (2, 4), (0.25, 2.0), 2)
    table = test.table(measure)
    assert set(table["mask"]) == {
        "principal, rank 2", "principal, rank 4", "magnitude", "low magnitude", "random"
    }  # fmt: skip
    assert table["count"].nunique() == 1
    assert (table["lost nats"] == table["count"]).all()
    matrices = [p for n, p in before.items() if p.ndim == 2 and "layers" in n]
    unit = (sum(p.square().sum() for p in matrices) / sum(p.numel() for p in matrices)).sqrt()
    assert root_mean_square(model) == pytest.approx(float(unit))
    sizes = sorted(change / float(unit) for change in changes)
    assert sizes[0] == pytest.approx(0.25, rel=0.05) and sizes[-1] == pytest.approx(2, rel=0.05)


def test_the_loss_of_texts_is_theirs_one_by_one(tuner: Tuner, tmp_path: Path) -> None:
    texts = ["a bc dd", "cab b", "d", "abcd abcd a"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    total, count = 0.0, 0
    for text in texts:
        ids = tuner.model.batch([text]).input_ids
        if ids.shape[1] > 1:
            with torch.no_grad():
                loss = tuner.model.module(ids, labels=ids).loss
            total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert text_loss(tuner.model, read_texts(file), rows=3) == pytest.approx(total / count, 1e-5)
    assert text_loss(tuner.model, ["ab " * 200]) > 0  # longer than the model's context
    file.write_text('{"words": "a"}')
    with pytest.raises(InterpError, match=r"line 1 is no text .*expected an object such as"):
        read_texts(file)


def test_what_cannot_be_studied_is_said(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"no way 'principle'.*principal"):
        run(TuneWhatMatters(ways=("principle",), out=tmp_path / "a"))
    with pytest.raises(InterpError, match="--examples FILE"):
        run(TuneWhatMatters(base=str(tmp_path), out=tmp_path / "b"))
    with pytest.raises(InterpError, match=r"lr=-0.1: expected more than 0"):
        run(TuneWhatMatters(lr=-0.1, out=tmp_path / "a"))
    with pytest.raises(InterpError, match="draws=1: expected at least 2"):
        run(TuneWhatMatters(draws=1, out=tmp_path / "a"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_texts_alone_are_enough_for_the_noise_test(tuner: Tuner, tmp_path: Path) -> None:
    """Any folder: nothing is tuned, and the loss of its texts is what noise breaks."""
    tuner.model.module.save_pretrained(tmp_path / "model")
    tuner.model.tokenizer.save_pretrained(tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a bc dd"}\n{"text": "cab b"}\n')
    config = TuneWhatMatters(
        base=str(tmp_path / "model"), texts=texts, draws=2, noise=(1.0,), noise_ranks=(2, 8),
        out=tmp_path / "run",
    )  # fmt: skip
    folder = run(config)
    (line,) = folder.read_meta()["facts"]["verdict"]
    assert "Principal, rank 2, beyond random" in line and "Principal, rank 8, beyond" in line
    assert not (folder.path / "summary.parquet").exists()
    assert (folder.path / "report.html").stat().st_size > 5_000


def test_one_rate_may_be_asked_of_all_and_what_cannot_be_tuned_is_left_out(tmp_path: Path) -> None:
    asked = {"base": str(tmp_path), "examples": tmp_path, "problems": tmp_path, "tasks": tmp_path}
    ways = ("principal", "prior", "CorDA")
    own = TuneBench(TuneWhatMatters(**asked, ways=ways, out=tmp_path))
    assert own.ways == ["principal"] and own.missing == {"prior": "--prior", "CorDA": "--texts"}
    given = TuneWhatMatters(**asked, ways=ways, out=tmp_path, texts=tmp_path, prior="other")
    assert TuneBench(given).ways == list(ways)
    organism = TuneBench(TuneWhatMatters(ways=ways, lr=0.02, tried=3, out=tmp_path))
    assert organism.rates().to_dict("list") == {
        "way": list(ways),
        "lr": [0.02] * 3,
        "dev": [0.0] * 3,
    }


def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = TuneWhatMatters(out=tmp_path / "run", smoke=True)
    folder = run(config)
    assert (folder.path / "report.html").stat().st_size > 10_000
    facts = folder.read_meta()["facts"]["verdict"]
    assert any("LIFT: principal learns more than random: " in line for line in facts)
    assert any("Principal, rank 8, beyond random" in line for line in facts)
    summary = pd.read_parquet(folder.path / "summary.parquet")
    assert summary["trained"].nunique() == 1
    assert run(config).read_meta()["facts"]["verdict"] == facts  # nothing is computed twice
