"""What all records of `probes` do: show themselves in a line, compare and hash without a tensor."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch

import probes
from probes._brief import brief

RECORDS = [
    value
    for value in map(vars(probes).get, probes.__all__)
    if inspect.isclass(value)
    and dataclasses.is_dataclass(value)
    and any(word in str(field.type) for field in dataclasses.fields(value)
            for word in ("Tensor", "dict[", "LinearLens"))
    and value not in (probes.TaskChange, probes.Rollout, probes.Fact)
]  # fmt: skip


def divergence(rows: int) -> probes.Divergence:
    floats = {
        name: torch.zeros(rows)
        for name in ("forward", "reverse", "tv", "base_entropy", "tuned_entropy", "base_logprob",
                     "tuned_logprob")
    }  # fmt: skip
    whole = {
        name: torch.zeros(rows, dtype=torch.long)
        for name in ("rank", "base_top", "tuned_top", "text", "position", "token", "target", "kind")
    }
    tokens = {i: f" token {i}" for i in range(rows)}
    meta = {"base": "/checkpoints/base", "tuned": "sft", "vocab": 9}
    return probes.Divergence(**floats, **whole, kinds=["end"], tokens=tokens, meta=meta)


def test_there_are_records() -> None:
    assert {probes.Divergence, probes.ProbeSweep, probes.TunedLens, probes.Ches} < set(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_no_record_prints_its_tensors_or_compares_them(record: type) -> None:
    """A dataclass's own `==` asks a tensor for its truth, its own repr prints every number."""
    assert record.__repr__ is brief or record is probes.Forgetting
    if any("Tensor" in str(field.type) for field in dataclasses.fields(record)):
        assert record.__eq__ is object.__eq__ and record.__hash__ is object.__hash__


def test_a_record_is_shown_in_one_line() -> None:
    found = divergence(5000)
    assert repr(found) == (
        "Divergence(/checkpoints/base, sft; forward: [5000], reverse: [5000], tv: [5000], "
        "rank: [5000], ... 17 in all)"
    )
    assert found == found and len({found, divergence(5000)}) == 2
    lost = probes.task_forgetting({n: [1, 0] for n in "abcd"}, {n: [0, 1] for n in "abcd"})
    assert repr(lost) == "TaskForgetting(tasks: a, b, c, ... (4))"
    barrier = probes.LossBarrier(torch.zeros(3), torch.zeros(3, 7), torch.ones(7).long())
    assert repr(barrier) == "LossBarrier(point: [3], loss: [3 7], tokens: [7])"
    check = probes.ConjugateCheck({"plain": [True]}, {"plain": [False]}, [0], {"forms": ["plain"]})
    assert repr(check) == "ConjugateCheck(before: plain, after: plain, groups: 1)"


def test_the_table_of_a_cooccurrence_has_each_pair_of_words_once() -> None:
    documents = [["a", "b"], ["a", "c"], ["a", "b", "c"], ["b"]]
    table = probes.cooccurrence(documents, ["a", "b", "c", "d"]).table()
    pairs = list(zip(table["word"], table["other"], strict=True))
    assert pairs == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    row = table.iloc[0]
    assert row[["count", "other_count", "joint"]].tolist() == [3, 3, 2]
    assert row["pmi"] == pytest.approx(math.log(2 * 4 / (3 * 3)))
    assert table["pmi"][3] == pytest.approx(math.log(1 * 4 / (3 * 2)))
    assert table["pmi"].isna().tolist() == [False, False, True, False, True, True]
