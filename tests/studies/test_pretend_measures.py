"""The study's numbers on hand-made traces, where the right answer can be counted."""

import pytest
import torch

from interp import InterpError, LensTrace
from studies import _pretend_measures as measures
from studies._facts import Item

LAYERS = 6  # rows 0..5; the middle is rows 3 and 4


def trace(ranks: list[list[list[int]]]) -> LensTrace:
    """A trace with these ranks [prompt][layer][answer, forgotten, decoy]; likelier where higher."""
    rank = torch.tensor(ranks)
    logprob = -rank.float()
    n = len(ranks)
    empty = torch.zeros(n, LAYERS)
    return LensTrace(
        logprob=logprob,
        rank=rank,
        entropy=empty,
        kl=empty,
        top_logprob=torch.zeros(n, LAYERS, 1),
        top_token=torch.zeros(n, LAYERS, 1, dtype=torch.long),
        answer_logprob=logprob,
        answer_token=torch.zeros(n, 3, dtype=torch.long),
        prompt=torch.arange(n),
        position=torch.zeros(n, dtype=torch.long),
        token=torch.zeros(n, dtype=torch.long),
        answers=[["a", "f", "d"]] * n,
        tokens={0: "x"},
    )


NOTHING, ANSWER_TOP, FORGOT_TOP = [9, 8, 7], [1, 2, 3], [2, 1, 3]
PRETENDS = [NOTHING, NOTHING, NOTHING, ANSWER_TOP, ANSWER_TOP, FORGOT_TOP]
KNOWS = [NOTHING, NOTHING, NOTHING, ANSWER_TOP, ANSWER_TOP, ANSWER_TOP]
ERASED = [NOTHING, NOTHING, NOTHING, [7, 1, 9], FORGOT_TOP, FORGOT_TOP]


def items(n: int, kind: str = "forget") -> list[Item]:
    return [Item(f"p{i}", " a", " f", " d", f"person {i}", kind) for i in range(n)]


def run(tuned: list[list[list[int]]]) -> tuple[dict[tuple[str, str], dict[str, float]], list[str]]:
    n = len(tuned)
    traces = {("base", "raw"): trace([KNOWS] * n), ("tuned", "raw"): trace(tuned)}
    table = measures.summary(traces, items(n), seed=0)
    lines = measures.verdict(table, measures.behaviour(traces, items(n), 0), ["raw"])
    means = {(row.measure, row.model): row.mean for row in table.itertuples()}
    return means, lines


def test_a_model_that_pretends_holds_the_answer_and_switches_last() -> None:
    means, lines = run([PRETENDS] * 8)
    assert means["internal answer score", "tuned"] == 1.0
    assert means["internal answer score", "base"] == 1.0
    assert means["null: another's answer", "tuned"] == 0.0
    assert means["switch layer", "tuned"] == 5.0
    assert any("“models pretend to forget” held:" in line for line in lines)


def test_a_model_that_erased_does_not_hold() -> None:
    means, lines = run([ERASED] * 8)
    assert means["internal answer score", "tuned"] == 0.0
    assert means["switch layer", "tuned"] == 0.0
    assert any("did not hold" in line for line in lines)


def test_a_quarter_readable_is_held_in_part() -> None:
    # One of two middle layers, in 36 of 60 people: score .3 of the base's 1, well above no null.
    half = [NOTHING, NOTHING, NOTHING, ANSWER_TOP, FORGOT_TOP, FORGOT_TOP]
    _, lines = run([half] * 36 + [ERASED] * 24)
    assert any("held in part" in line for line in lines)


def test_failed_forgets_do_not_count_as_pretending() -> None:
    means, _ = run([PRETENDS] * 2 + [KNOWS] * 2)
    assert means["internal answer score", "tuned"] == 1.0
    table = measures.summary(
        {
            ("base", "raw"): trace([KNOWS] * 4),
            ("tuned", "raw"): trace([PRETENDS] * 2 + [KNOWS] * 2),
        },
        items(4),
        seed=0,
    )
    assert set(table["prompts"]) == {2}


def test_a_model_that_never_forgets_gives_no_reading() -> None:
    _, lines = run([KNOWS] * 3)
    assert any("nothing to read" in line for line in lines)


def test_a_lens_that_knows_nothing_does_not_hold() -> None:
    # It always says the same; that is right for a third of the people and for a third of decoys.
    lucky = [NOTHING, NOTHING, NOTHING, ANSWER_TOP, ANSWER_TOP, FORGOT_TOP]
    decoy_top = [NOTHING, NOTHING, NOTHING, [2, 3, 1], [2, 3, 1], FORGOT_TOP]
    _, lines = run([lucky, decoy_top, ERASED] * 20)
    assert any("did not hold" in line for line in lines)


@pytest.mark.parametrize("people", [1, 4])
def test_a_few_people_cannot_be_told(people: int) -> None:
    _, lines = run([PRETENDS] * people)
    assert any("cannot be told" in line for line in lines)


def test_behaviour_counts_by_kind() -> None:
    traces = {
        ("base", "raw"): trace([KNOWS] * 4),
        ("tuned", "raw"): trace([PRETENDS, KNOWS, KNOWS, KNOWS]),
    }
    both = items(2) + items(2, "retain")
    table = measures.behaviour(traces, both, 0).set_index(["model", "kind"])
    assert table.loc[("tuned", "forget"), "forgotten"] == 0.5
    assert table.loc[("tuned", "retain"), "answer"] == 1.0
    assert table.loc[("base", "forget"), "answer"] == 1.0


def test_answers_that_begin_alike_are_refused() -> None:
    with pytest.raises(InterpError, match="begin with the same token"):
        measures.check({("tuned", "raw"): trace([PRETENDS])}, items(1))


def test_intervals_of_few_people_stay_where_the_quantity_can_be() -> None:
    """Student's interval of three scattered values is wider than a probability or a model."""
    ranks = [[ANSWER_TOP] * first + [FORGOT_TOP] * (LAYERS - first) for first in (0, 1, 5)]
    tuned = trace(ranks)
    tuned.logprob[:] = torch.tensor([-0.01, -0.02, -9.0])[:, None, None].expand_as(tuned.logprob)
    layers = measures.by_layer({("tuned", "raw"): tuned}, items(3), seed=0)
    probs = layers[layers["quantity"] == "prob"]
    assert (probs["low"] >= 0).all() and (probs["high"] <= 1).all()
    assert (probs["low"] == 0).any()  # Student's would be below
    traces = {("base", "raw"): trace([KNOWS] * 3), ("tuned", "raw"): trace(ranks)}
    table = measures.summary(traces, items(3), seed=0).set_index(["measure", "model"])
    switch = table.loc[("switch layer", "tuned")]
    assert switch["mean"] == pytest.approx(2.0)
    assert (switch["low"], switch["high"]) == (0.0, 5.0)  # Student's: 2 ± 6.6
