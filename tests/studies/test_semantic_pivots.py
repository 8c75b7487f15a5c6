"""The pivot study: its columns, its interventions by hand, its verdicts, one run of each kind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import interp
from interp import InterpError, Model
from studies import _pivot_causes as causes
from studies import _pivot_measures as measures
from studies._pivot_verdict import verdict_of
from studies._word_pairs import WordPair, organism_pairs, read_pairs
from studies.semantic_pivots import SemanticPivots, run
from tests.studies.conftest import WORDS

PLACES = 12


def made_up(count: int = PLACES) -> list[WordPair]:
    """Pairs of numbered words; every third is held out."""
    return [
        WordPair(
            prompt=f" w{20 + i} is", target=f" w{40 + i}", source=f" w{20 + i}",
            pivots=(f" w{60 + i}",), group=str(i), split="held_out" if i % 3 == 0 else "trained",
            direction="all",
        )
        for i in range(count)
    ]  # fmt: skip


def pairs_file(path: Path) -> Path:
    fields = ("prompt", "target", "source", "pivots", "group", "split")
    lines = [json.dumps({n: getattr(p, n) for n in fields}) for p in made_up()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def model(checkpoint: Path) -> Model:
    return interp.load(str(checkpoint), dtype=torch.float32)


def test_controls_are_other_words_than_the_pair_s_own(model: Model) -> None:
    pairs = made_up()
    asked = measures.asked_of(model, pairs, seed=0)
    ids = measures.word_tokens(model, pairs)
    pivots = {ids[pair.pivots[0]] for pair in pairs}
    assert len(ids) == 3 * PLACES == len(set(ids.values()))
    for row, pair, partner in zip(asked.tokens.tolist(), pairs, asked.partner, strict=True):
        own = [ids[pair.target], ids[pair.pivots[0]], ids[pair.source]]
        assert row[:3] == own
        assert pairs[partner].group != pair.group and pairs[partner].split == pair.split
        assert row[3] == ids[pairs[partner].target]
        drawn = [row[c] for d in range(measures.DRAWS) for c in asked.control(d)]
        assert set(drawn) <= pivots - {own[1]}
        candidates = [row[c] for c in asked.candidates]
        assert sorted(candidates) == sorted(set(ids.values()) - set(own))


def test_the_table_of_pairs_is_the_model_s_own_answer(model: Model) -> None:
    pairs = made_up()
    asked = measures.asked_of(model, pairs, seed=0)
    rows = measures.by_pair(measures.traced(model, pairs, asked), pairs, asked, None, 0.1)
    ids = measures.word_tokens(model, pairs)
    for pair, row in zip(pairs, rows.itertuples(), strict=True):
        batch = model.batch([pair.prompt])
        with torch.no_grad():
            probs = model.module(**batch.inputs).logits[0, -1].float().softmax(-1)
        target = probs[ids[pair.target]]
        assert abs(row.probability - float(target)) < 1e-6
        assert abs(row.reciprocal_rank - 1 / (1 + int((probs > target).sum()))) < 1e-6
        assert row.accuracy == float(probs.argmax() == ids[pair.target])
    assert rows["association"].isna().all()  # no corpus
    table = measures.summary(rows.assign(model="m"), seed=0).set_index(["split", "quantity"])
    chosen = rows[rows["split"] == "trained"]
    above = (chosen["probability"] - chosen["probability_null"]).mean()
    assert abs(table.loc[("trained", "probability_above_null"), "mean"] - above) < 1e-12
    assert table.loc[("held_out", "accuracy"), "concepts"] == PLACES // 3


def test_ablating_and_exchanging_by_hand(model: Model) -> None:
    """One site, one pair at a time, with a plain hook and projections written out."""
    module: Any = model.module
    pairs = made_up(3)
    prompts = [model.batch([pair.prompt]).input_ids[0].tolist() for pair in pairs]
    tokens = torch.tensor(
        [[20 + i, 30 + i, 40 + i, 21] + [31 + i % 2] * measures.DRAWS for i in range(3)]
    )
    asked = measures.Asked(tokens, (1, 2, 0), 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows = causes.effects(model, pairs, asked, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    read = module.model.norm.weight.detach() * module.lm_head.weight.detach()
    for (i, prompt), what in itertools.product(enumerate(prompts), ("ablated", "exchanged")):
        partner = asked.partner[i]
        pivot = cleaned(read[30 + i], read[[20 + i, 20 + partner]])
        other = cleaned(read[30 + partner], read[[20 + i, 20 + partner]])
        added = -pivot if what == "ablated" else other - pivot

        def change(_m: Any, _i: Any, h: Tensor, u: Tensor = pivot, v: Tensor = added) -> Tensor:
            return h + (h @ u)[..., None] * v

        with torch.no_grad():
            plain = module(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            hook = module.model.layers[0].register_forward_hook(change)
            changed = module(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            hook.remove()
        counted = 20 + (i if what == "ablated" else partner)
        found = rows[(rows["pair"] == i) & (rows["what"] == what) & (rows["condition"] == "pivot")]
        effect = found.set_index("site")["effect"]["resid_post.0"]
        assert abs(effect - float((changed - plain)[counted])) < 2e-5


def cleaned(direction: Tensor, targets: Tensor) -> Tensor:
    """The unit vector along a direction less its least-squares fit by the targets'."""
    left = direction - targets.T @ torch.linalg.lstsq(targets.T, direction).solution
    return left / left.norm()


def table_of(numbers: dict[tuple[str, str, str], tuple[float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": m, "split": s, "quantity": q, "mean": x, "low": a, "high": b,
             "concepts": 24, "n": 48}
            for (m, s, q), (x, a, b) in numbers.items()
        ]
    )  # fmt: skip


def effects_of(pivot: float, half: float) -> pd.DataFrame:
    rows = []
    for what, condition in itertools.product(("ablated", "exchanged"), causes.CONDITIONS):
        x = pivot if condition == "pivot" else 0.0
        for name, value in ((condition, x), (f"pivot - {condition}", pivot)):
            rows.append(
                {"model": "m", "split": "held_out", "what": what, "site": "everywhere",
                 "condition": name, "mean": value, "low": value - half, "high": value + half}
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("control", "above", "pivot", "said"),
    [
        (0.0, 0.2, -1.0, ["Held", "Held", "Held", "Could not be tested", "Held", "Did not hold"]),
        (
            0.9,
            -0.1,
            1.0,
            [*["Did not hold"] * 3, "Could not be tested", "Did not hold", "Held"],
        ),
    ],
)
def test_verdicts_follow_the_intervals(
    control: float, above: float, pivot: float, said: list[str]
) -> None:
    numbers = {("m", "held_out", "accuracy"): (0.95, 0.9, 1.0)}
    numbers[("c", "held_out", "accuracy")] = (control, control, control + 0.1)
    for name, value in (("pivot", 0.3), ("pivot_null", 0.1), ("pivot_above_null", above),
                        ("is_pivot", 0.6), ("is_pivot_null", 0.1)):  # fmt: skip
        numbers[("m", "held_out", name)] = (value, value - 0.05, value + 0.05)
    numbers[("c", "held_out", "pivot")] = (control + 0.1, control, control + 0.2)
    lines = verdict_of(table_of(numbers), effects_of(pivot, 0.5), ["m", "c"])
    assert [line.split(":")[0] for line in lines] == said
    assert all("held-out pairs" in line for line in lines[1:3] + lines[4:])


def test_no_verdict_on_how_where_nothing_is_translated() -> None:
    table = table_of({("m", "trained", "accuracy"): (0.2, 0.1, 0.3)})
    lines = verdict_of(table, effects_of(0.0, 1.0), ["m"])
    assert len(lines) == 2 and all(line.startswith("Could not be tested") for line in lines)


@pytest.mark.parametrize(("above", "said"), [(0.9, "Could not be tested"), (0.0, "Did not hold")])
def test_without_a_control_generalisation_can_only_fail(above: float, said: str) -> None:
    numbers = {("m", "held_out", "accuracy"): (above, above - 0.1, above + 0.1)}
    numbers[("m", "held_out", "probability_above_null")] = (above, above - 0.1, above + 0.1)
    line = verdict_of(table_of(numbers), effects_of(0.0, 1.0), ["m"])[0]
    assert line.startswith(said) and "never taught" in line


def test_the_organism_s_pairs_are_those_that_were_held_out() -> None:
    pairs = organism_pairs()
    assert len(pairs) == 160 and len({pair.group for pair in pairs}) == 80
    assert sum(pair.split == "held_out" for pair in pairs) == 48
    assert all(pair.source in pair.prompt and pair.target not in pair.prompt for pair in pairs)
    assert all(pair.pivots == (f" {pair.group}",) for pair in pairs)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "line 1 is no JSON object"),
        ('{"prompt": "a", "target": " b", "source": "a"}', "line 1 lacks pivots; expected such as"),
        (
            '{"prompt": "a", "target": " b", "source": "a", "pivots": " c"}',
            "line 1: pivots is no list",
        ),
        (
            '{"prompt": "a", "target": " b", "source": "a", "pivots": ["c"], "split": "test"}',
            "line 1: split 'test'; expected trained or held_out",
        ),
        ('{"prompt": "a", "target": " b", "source": "a", "pivots": ["c"]}', "fewer than three"),
    ],
)
def test_a_bad_pairs_file_is_refused(line: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InterpError, match=says):
        read_pairs(file)


def test_pairs_need_as_many_pivots_each(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "pairs.jsonl")
    extra = {"prompt": "a", "target": " b", "source": "a", "pivots": [" c", " d"]}
    file.write_text(file.read_text() + json.dumps(extra) + "\n")
    with pytest.raises(InterpError, match="the same number of pivots"):
        read_pairs(file)
    with pytest.raises(InterpError, match="cannot read the pairs file"):
        read_pairs(tmp_path / "none.jsonl")


def test_other_models_need_pairs_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="give --pairs, JSON lines"):
        run(SemanticPivots(model=str(checkpoint), out=tmp_path / "run"))
    same = SemanticPivots(
        model=str(checkpoint), control=str(checkpoint), pairs=pairs_file(tmp_path / "p.jsonl"),
        out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(InterpError, match="is the model itself"):
        run(same)


def test_any_two_checkpoints_with_pairs_and_texts(
    checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    pairs = made_up()
    texts.write_text(
        "\n".join(f"{p.source}{p.target}{p.pivots[0]}{q.source}" for p in pairs for q in pairs[:5])
        + "\n"
    )
    config = SemanticPivots(
        model=str(checkpoint), control=str(other_checkpoint), texts=texts,
        pairs=pairs_file(tmp_path / "pairs.jsonl"), out=tmp_path / "run",
    )  # fmt: skip
    folder = run(config)
    verdict = folder.read_meta()["facts"]["verdict"]
    assert verdict[0].startswith(("Could not", "Did not")) and len(WORDS) < 20
    summary = pd.read_parquet(folder.path / "summary.parquet")
    assert set(summary["model"]) == {checkpoint.name, other_checkpoint.name}
    assert summary[summary["quantity"] == "association"]["mean"].notna().any()
    page = (folder.path / "report.html").read_text()
    assert "Is it used?" in page and "base64" in page
    stamp = (folder.path / "summary.parquet").stat().st_mtime_ns
    run(config)  # continues where it stopped: nothing is computed again
    assert (folder.path / "summary.parquet").stat().st_mtime_ns == stamp


def test_a_smoke_run_on_the_organisms(tmp_path: Path) -> None:
    folder = run(SemanticPivots(out=tmp_path / "run", smoke=True))
    summary = pd.read_parquet(folder.path / "summary.parquet").set_index(
        ["model", "split", "quantity"]
    )["mean"]
    assert summary["dictionary", "held_out", "accuracy"] > 0.8
    assert summary["dictionary_no_anchor", "held_out", "accuracy"] < 0.2
    assert summary["dictionary_no_anchor", "trained", "accuracy"] > 0.8
