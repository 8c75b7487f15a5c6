"""What a trace concludes from its numbers, on traces written by hand."""

from __future__ import annotations

import math

import pytest
import torch

import interp
from tests.architectures import build

NAN = float("nan")


def trace(ranks: list[list[int]], other: list[list[float]] | None = None) -> interp.LensTrace:
    """One answer with these ranks by row and layer, and a second one with these log-probs."""
    rank = torch.tensor(ranks)[..., None]
    logprob = -rank.float()
    if other is not None:
        logprob = torch.cat([logprob, torch.tensor(other)[..., None]], -1)
        rank = torch.cat([rank, rank], -1)
    rows, layers, answers = logprob.shape
    plane, index = torch.zeros(rows, layers), torch.arange(rows)
    return interp.LensTrace(
        logprob=logprob,
        rank=rank,
        entropy=plane,
        kl=plane,
        top_logprob=torch.zeros(rows, layers, 1),
        top_token=torch.zeros(rows, layers, 1, dtype=torch.long),
        answer_logprob=logprob,
        answer_token=torch.zeros(rows, answers, dtype=torch.long),
        prompt=index,
        position=torch.zeros_like(index),
        token=torch.zeros_like(index),
        answers=[[f"answer {i}" for i in range(answers)]] * rows,
        tokens={0: " the"},
    )


@pytest.mark.parametrize(
    ("ranks", "layer"),
    [
        ([9, 4, 1, 1], 2.0),
        ([1, 1, 1, 1], 0.0),
        ([1, 2, 1, 1], 2.0),  # losing it once starts the count anew
        ([9, 9, 9, 1], 3.0),
        ([1, 1, 1, 2], NAN),  # never, when it loses at the end
        ([3, 3, 3, 3], NAN),
    ],
)
def test_the_decision_layer_is_where_the_answer_wins_for_good(ranks, layer) -> None:
    found = trace([ranks]).decision_layer()
    torch.testing.assert_close(found, torch.tensor([layer]), equal_nan=True)


def test_each_row_has_its_own_decision_layer() -> None:
    found = trace([[5, 1, 1], [1, 1, 5], [5, 5, 1]]).decision_layer()
    torch.testing.assert_close(found, torch.tensor([1.0, NAN, 2.0]), equal_nan=True)


def test_against_another_answer_the_likelier_one_wins() -> None:
    both = trace([[4, 4, 2, 2]], [[-3.0, -5.0, -3.0, -2.5]])  # answer 0 has -4 -4 -2 -2
    torch.testing.assert_close(both.decision_layer(0, versus=1), torch.tensor([1.0]))
    found = both.decision_layer(1, versus=0)
    assert math.isnan(found)
    tie = trace([[2, 2]], [[-2.0, -2.0]])
    assert math.isnan(tie.decision_layer(0, versus=1))


def test_the_table_has_one_row_for_each_prompt_layer_and_answer() -> None:
    table = trace([[3, 2, 1], [1, 2, 3]], [[-1.0, -2, -3], [-4, -5, -6]]).table()
    assert len(table) == 2 * 3 * 2
    row = table[(table.prompt == 1) & (table.layer == 2) & (table.answer == "answer 1")].iloc[0]
    assert row.logprob == -6
    assert row.prob == pytest.approx(math.exp(-6))
    assert row["rank"] == 3
    assert row.top == "' the'"
    columns = "prompt position layer answer prob logprob rank entropy kl top answer_logprob"
    assert list(table.columns) == columns.split()


def test_a_real_traces_table_joins_its_texts(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    table = interp.logit_lens(model, ["The", "is"], [" Paris", " Rome"], top_k=2).table()
    assert list(table[table.layer == 0].answer) == [" Paris", " Rome"]


def test_the_plot_draws_the_probability_by_layer() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = trace([[3, 2, 1]]).plot()
    line = axes.get_lines()[0]
    torch.testing.assert_close(
        torch.tensor(line.get_ydata(), dtype=torch.float32), torch.tensor([-3.0, -2, -1]).exp()
    )
    with pytest.raises(interp.InterpError, match="no prompt 4"):
        trace([[3, 2, 1]]).plot(prompt=4)
