"""The tune-what-matters study: budgets, starts, its statistics by hand, and a smoke run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp import InterpError
from studies._tune_ways import WAYS, Tuner
from studies.tune_what_matters import TuneWhatMatters, _against, _damage, run
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]


@pytest.fixture(scope="module")
def tuner() -> Tuner:
    tokenizer = byte_level()
    module = build("llama", vocab_size=max(97, len(tokenizer)))
    model = interp.load(module, tokenizer=tokenizer)
    return Tuner(model, lambda _: PAIRS, PAIRS[:3], 3, 3, rank=4, layer=1)


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
    if way == "LoRA":  # whole ranks
        assert abs(tuned.count - one) <= 0.5 * tuned.count / tuner.lora_rank + 1
    elif way in ("consensus", "safe"):  # by search, by chance
        assert tuned.count == pytest.approx(one, rel=0.15)
    elif WAYS[way].matched:
        assert tuned.count == pytest.approx(one, rel=0.01)
    else:
        assert one < tuned.count <= whole
    assert 8 * tuned.count <= tuned.state_bytes or way == "half in rounds"
    assert all(torch.equal(v, before[k]) for k, v in tuner.model.module.state_dict().items())


def test_differences_are_counted_question_by_question() -> None:
    pairs = pd.DataFrame(
        {"way": list("aabb"), "seed": 0, "item": [0, 1, 0, 1], "task": ["t", "u"] * 2,
         "group": ["x", "y"] * 2, "nats": [1.0, 3.0, 0.5, 1.0]}
    )  # fmt: skip
    new = pd.DataFrame(
        {"way": list("aabb"), "seed": 0, "problem": [0, 1, 0, 1], "group": list("xyxy"),
         "gain": [1.0, 0.0, 0.0, 0.0]}
    )  # fmt: skip
    gained, lost = _against(pairs, new, "a", "b")
    assert gained.mean == 0.5 and lost.mean == pytest.approx((0.5 + 2.0) / 2)


def test_damage_is_paired_by_draw() -> None:
    losses = {"principal": [3.0, 5.0, 4.0], "random": [1.0, 3.0, 2.0]}
    noise = pd.DataFrame(
        [
            {"mask": name, "noise": 1.0, "draw": i, "count": 7, "lost nats": x, "lost accuracy": 0}
            for name, values in losses.items()
            for i, x in enumerate(values)
        ]
    )
    rows = _damage(noise).set_index("mask")
    assert rows.loc["principal", "beyond random"] == 2.0
    assert rows.loc["principal", "beyond low"] == rows.loc["principal", "beyond high"] == 2.0
    # Student's interval of three draws: 4 +- 4.303 * 1 / sqrt(3).
    assert rows.loc["principal", "lost nats high"] == pytest.approx(4 + 4.3027 / 3**0.5, abs=1e-3)


def test_what_cannot_be_studied_is_said(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"no way 'principle'.*principal"):
        run(TuneWhatMatters(ways=("principle",), out=tmp_path / "a"))
    with pytest.raises(InterpError, match="--examples FILE"):
        run(TuneWhatMatters(base=str(tmp_path), out=tmp_path / "b"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = TuneWhatMatters(out=tmp_path / "run", smoke=True)
    folder = run(config)
    assert (folder.path / "report.html").stat().st_size > 10_000
    facts = folder.read_meta()["facts"]["verdict"]
    assert any("principal beside as many random weights" in line for line in facts)
    assert any("LIFT's order" in line for line in facts)
    summary = pd.read_parquet(folder.path / "summary.parquet")
    assert summary["trained"].nunique() == 1
    assert run(config).read_meta()["facts"]["verdict"] == facts  # nothing is computed twice
