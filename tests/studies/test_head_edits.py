"""The head-edits study: parts, answers and planted heads against plain loops, then a smoke run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
import interventions as iv
from interp import InterpError
from interventions._examples import answered, encode
from studies import head_edits
from studies._head_edits_methods import METHODS, Learned, Plan, with_examples
from studies._head_edits_price import Priced, dearest
from studies._head_edits_tasks import Question, parted, planted, read_parts
from studies.head_edits import HeadEdits, _difference, _differences, _found, _prices, _tried, run
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]
ASKED = [Question(prompt, answer, str(i)) for i, (prompt, answer) in enumerate(PAIRS)]


def model_of() -> interp.Model:
    tokenizer = byte_level()
    module = build("llama", vocab_size=max(97, len(tokenizer)), num_hidden_layers=2)
    return interp.load(module, tokenizer=tokenizer)


def test_no_group_is_in_two_parts() -> None:
    asked = [Question(f"{person} {i}", " a", str(person)) for person in range(30) for i in range(4)]
    parts = parted(asked, dev=10, test=30)
    groups = [{q.group for q in part} for part in (parts.pool, parts.dev, parts.test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len(parts.dev) == 12 and len(parts.test) == 32  # whole groups
    assert len(parts.pool) + 44 == len(asked)
    assert parts.drawn(8, 1) == parts.drawn(20, 1)[:8] != parts.drawn(8, 2)
    with pytest.raises(InterpError, match="leave nothing to learn from"):
        parted(asked, dev=60, test=60)
    with pytest.raises(InterpError, match="90 training questions asked for and there are 76"):
        parts.drawn(90, 0)


def test_answers_are_those_of_each_text_alone() -> None:
    model = model_of()
    encoded = encode(model, PAIRS, end=True)
    right, nats = answered(model, encoded, rows=4)
    for one, said, total in zip(encoded, right, nats, strict=True):
        ids = torch.tensor([[*one.prompt, *one.completion]])
        with torch.no_grad():
            logprobs = model.module(ids).logits[0].log_softmax(-1)
        at = range(len(one.prompt) - 1, ids.shape[1] - 1)
        torch.testing.assert_close(total, float(sum(logprobs[i, ids[0, i + 1]] for i in at)))
        assert said == all(int(logprobs[i].argmax()) == int(ids[0, i + 1]) for i in at)
    # What it would write itself is right by definition.
    written = model.module.generate(
        torch.tensor([encoded[0].prompt]), max_new_tokens=3, do_sample=False
    )[0, len(encoded[0].prompt) :]
    own = type(encoded[0])(encoded[0].prompt, tuple(written.tolist()))
    assert answered(model, [own])[0] == [True]


def test_turning_the_planted_heads_again_is_the_repair() -> None:
    model = model_of()
    damaged, rows = planted(model, ASKED, 2)
    harms = sorted((row["harm"] for row in rows), reverse=True)
    chosen = [row for row in rows if row["planted"]]
    assert sorted((row["harm"] for row in chosen), reverse=True) == harms[:2]
    ids = model.batch([p for p, _ in PAIRS])
    again = iv.scale_heads({(row["layer"], row["head"]): -1.0 for row in chosen})
    with torch.no_grad():
        before = model.module(**ids.inputs).logits
        turned = damaged.module(**ids.inputs).logits
        with again.applied(damaged):
            repaired = damaged.module(**ids.inputs).logits
    assert float((turned - before).abs().max()) > 1e-2
    torch.testing.assert_close(repaired, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_learns_and_leaves_the_model_alone(method: str) -> None:
    model = model_of()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    asked = ASKED * 2
    plan = Plan(asked, ASKED, 40, 3e-2, (0.0,), 0)
    # With a rate of nearly nothing each begins as no edit at all.
    ids = model.batch([p for p, _ in PAIRS])
    with torch.no_grad():
        plain = model.module(**ids.inputs).logits
    still = METHODS[method](model, Plan(asked, ASKED, 1, 1e-12, (0.0,), 0))
    with torch.no_grad(), still.use() as tuned:
        torch.testing.assert_close(tuned.module(**ids.inputs).logits, plain)
    found = METHODS[method](model, plan)
    assert found.dev < 0.8 * still.dev
    with torch.no_grad(), found.use() as tuned:
        encoded = encode(tuned, [q.example for q in ASKED], end=True)
        nats = sum(answered(tuned, encoded)[1])
    tokens = sum(len(one.completion) for one in encoded)
    assert -nats / tokens == pytest.approx(found.dev, rel=1e-3)  # the state kept is that of dev
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())


def test_examples_stand_before_the_question() -> None:
    model = model_of()
    (encoded,) = with_examples(model, [Question("b", " a", "0")], ASKED[:2])
    ended = model.tokenizer.eos_token or "\n\n"
    wanted = model.tokenizer(f"ab cd{ended}b a{ended}b")["input_ids"]
    assert list(encoded.prompt) == wanted


def test_heads_and_differences_by_hand() -> None:
    harm = pd.DataFrame(
        [{"layer": i // 4, "head": i % 4, "harm": 1.0, "planted": i in (1, 6)} for i in range(8)]
    )
    path = [
        Priced(1.0, 0.1, [0.1, 0.3], [(0, 1), (1, 2), (1, 3)]),  # 0.2, standard error 0.1
        Priced(2.0, 0.2, [0.2, 0.3], [(0, 1), (1, 3), (0, 0)]),
        Priced(4.0, 0.9, [0.8, 1.0], []),
    ]
    learned = Learned(nullcontext, 3, 0.2, [(0, 1), (1, 3)], path)
    told = {"method": "head edits", "size": 50, "seed": 0}
    tried = pd.concat(
        [_tried(learned).assign(task=task, **told) for task in (head_edits.PLANTED, "other")]
    )
    (row,) = _found(tried, harm).to_dict("records")
    assert row["price"] == 2.0 and row["gates open"] == 3
    assert row["heads edited"] == 2 and row["planted among them"] == 1
    assert row["share"] == 0.5 and row["by chance"] == 0.25 and row["planted"] == 2
    rows = _prices(tried, harm).to_dict("records")
    assert [row["heads edited"] for row in rows] == [3, 3, 0]
    assert [row["planted among them"] for row in rows] == [2, 1, 0]
    assert [row["chosen"] for row in rows] == [False, True, False]
    assert rows[2]["share"] != rows[2]["share"] and rows[2]["dev"] == pytest.approx(0.9)

    def made(method: str, size: int, seed: int, rights: list[float]) -> pd.DataFrame:
        floats = [float(right) for right in rights]
        return pd.DataFrame(
            {"task": "t", "method": method, "size": size, "seed": seed, "right": floats,
             "question": range(len(rights)), "group": list("aabb")[: len(rights)]}
        )  # fmt: skip

    answers = pd.concat(
        [
            made("as it is", 0, 0, [0, 0, 1, 1]), made("x", 50, 0, [1, 0, 1, 1]),
            made("x", 50, 1, [1, 1, 1, 1]), made("y", 50, 0, [0, 0, 1, 1]),
            made("y", 50, 1, [1, 1, 1, 0]),
        ]
    )  # fmt: skip
    assert _difference(answers, "t", "x", "as it is", 50).mean == pytest.approx(3 / 8)
    assert _difference(answers, "t", "x", "y", 50).mean == pytest.approx(2 / 8)
    renamed = pd.concat(
        [answers.assign(method=answers["method"].replace({"x": "head edits", "y": other}))
         for other in METHODS]
    )  # fmt: skip
    table = _differences(renamed.drop_duplicates(["method", "seed", "question"]))
    assert list(table["less"]) == [other for other in METHODS if other != "head edits"]
    assert table["difference"].tolist() == pytest.approx([2 / 8] * 3)


def test_of_prices_that_dev_cannot_tell_apart_the_highest() -> None:
    """By hand: the least cost .2 has a standard error sd/sqrt(n) = (.2/sqrt 2)/sqrt 2 = .1."""
    path = [
        Priced(8.0, 0.0, [0.31, 0.31], []),
        Priced(1.0, 0.0, [0.1, 0.3], []),
        Priced(4.0, 0.0, [0.0, 0.59], []),
        Priced(2.0, 0.0, [0.21, 0.21], []),
    ]
    assert path[1].error == pytest.approx(0.1)
    assert dearest(path) == 2  # .295 is within, .31 is not; and the order says nothing
    assert dearest(path[::-1]) == 1
    assert dearest([Priced(1.0, 0.0, [0.2], []), Priced(2.0, 0.0, [0.2001], [])]) == 0


def test_questions_from_a_file_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "a", "answer": " b"}\n{"prompt": 3\n')
    with pytest.raises(InterpError, match="line 2 is no question"):
        read_parts(file, 1, 1)
    with pytest.raises(InterpError, match="cannot read"):
        read_parts(tmp_path / "absent.jsonl", 1, 1)
    with pytest.raises(InterpError, match="--questions FILE"):
        run(HeadEdits(model=str(tmp_path), out=tmp_path / "out"))
    lines = [json.dumps({"prompt": f"a{i}", "answer": " b", "group": i}) for i in range(9)]
    file.write_text("\n".join(lines))
    with pytest.raises(InterpError, match="a step takes 8 questions"):
        run(HeadEdits(questions=file, sizes=(4,), dev=1, test=1, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = HeadEdits(out=tmp_path / "run", smoke=True)
    folder = run(config)
    assert (folder.path / "report.html").stat().st_size > 10_000
    facts = folder.read_meta()["facts"]["verdict"]
    assert sum("at least LoRA's accuracy less one point" in line for line in facts) == 2
    summary = pd.read_parquet(folder.path / "summary.parquet")
    trained = summary.groupby("method")["trained"].max()
    # 6 layers x 8 heads x (2 vectors of 32 and 2 gates); 12 vectors; 6 x (2 maps of 4 and 4).
    assert trained["head edits"] == 6 * 8 * 66
    assert trained["biases"] == 12 * 128
    assert trained["stream edits"] == 6 * (2 * 4 * 128 + 4)
    assert trained["LoRA"] == 6 * 8 * (2 * (128 + 256) + 2 * (128 + 128) + 3 * (128 + 384))
    assert run(config).read_meta()["facts"]["verdict"] == facts  # nothing is computed twice
