"""Pivot and co-occurrence scores: closed forms on traces made by hand, counts by brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import interp
import probes
from interp import InterpError, LensTrace
from tests.architectures import VOCAB, build


def trace_of(prob: Tensor, top: Tensor | None = None) -> LensTrace:
    """A trace [row layer answer] made by hand; `top` says which answer, -1 for none, is on top."""
    rows, layers, answers = prob.shape
    rank = torch.full(prob.shape, 2)
    if top is not None:
        rank = torch.where(torch.arange(answers) == top[..., None], 1, rank)
    ids = torch.arange(rows)
    return LensTrace(
        logprob=prob.log(), rank=rank, entropy=torch.zeros(rows, layers),
        kl=torch.zeros(rows, layers), top_logprob=torch.zeros(rows, layers, 1),
        top_token=torch.zeros(rows, layers, 1, dtype=torch.long), answer_logprob=prob.log(),
        answer_token=torch.arange(answers).expand(rows, -1), prompt=ids, position=ids, token=ids,
        answers=[[f" {i}" for i in range(answers)]] * rows, tokens={0: " 0"},
    )  # fmt: skip


# Answers: target, two pivots, another word. Rows: through the pivots; straight; never there.
PROB = torch.tensor([
    [[0.1, 0.2, 0.1, 0.1], [0.2, 0.3, 0.2, 0.0], [0.6, 0.1, 0.05, 0.0], [0.1, 0.8, 0.1, 0.0]],
    [[0.7, 0.1, 0.1, 0.0], [0.8, 0.1, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]],
    [[0.1, 0.0, 0.0, 0.4], [0.1, 0.1, 0.0, 0.5], [0.1, 0.2, 0.2, 0.5], [0.1, 0.3, 0.0, 0.6]],
]) + 1e-6  # fmt: skip
TOP = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [3, 3, 3, 3]])


def test_the_score_is_the_largest_sum_before_the_target_is_on_top() -> None:
    got = probes.pivot_scores(trace_of(PROB, TOP), pivots=[1, 2])
    torch.testing.assert_close(got.pivot, torch.tensor([0.5, 0.0, 0.4]), rtol=0, atol=1e-5)
    nan = float("nan")
    torch.testing.assert_close(got.target_layer, torch.tensor([2.0, 0.0, nan]), equal_nan=True)
    torch.testing.assert_close(got.pivot_layer, torch.tensor([1.0, nan, 2.0]), equal_nan=True)
    assert got.label == ["pivot", "direct", "pivot"]
    assert probes.pivot_scores(trace_of(PROB, TOP), pivots=[1, 2], threshold=0.45).label == [
        "pivot", "direct", "direct",
    ]  # fmt: skip


def test_the_target_may_be_any_answer() -> None:
    moved = probes.pivot_scores(
        trace_of(PROB[..., [3, 2, 1, 0]], torch.where(TOP >= 0, 3 - TOP, TOP)),
        pivots=[1, 2],
        target=3,
    )
    plain = probes.pivot_scores(trace_of(PROB, TOP), pivots=[1, 2])
    torch.testing.assert_close(moved.pivot, plain.pivot)
    assert moved.label == plain.label


def test_a_baseline_is_taken_off_every_pivot() -> None:
    baseline = torch.tensor([0.0, 0.15, 0.05, 0.0]).expand(3, -1)
    got = probes.pivot_scores(trace_of(PROB, TOP), pivots=[1, 2], baseline=baseline)
    torch.testing.assert_close(got.pivot, torch.tensor([0.3, 0.0, 0.2]), rtol=0, atol=1e-5)


def test_the_association_is_spearmans() -> None:
    prob = torch.rand(4, 3, 9)
    prob[0, 0, 3:6] = 0.25  # ties on one side
    pmi = torch.randn(4, 6)
    pmi[1, :3] = -float("inf")  # words that never meet: ties, lowest
    got = probes.pivot_scores(
        trace_of(prob), pivots=[1], candidates=range(3, 9), association=pmi
    ).association
    for row, layer in itertools.product(range(4), range(3)):
        finite = pmi[row].clamp(min=-1e9).double()
        expected = spearmanr(prob[row, layer, 3:].log().double(), finite).statistic
        assert abs(float(got[row, layer]) - expected) < 1e-6


def test_the_cooccurrence_score_looks_only_before_the_target() -> None:
    pmi = torch.tensor([[1.0, 2.0, 3.0]]).expand(2, -1)
    prob = torch.tensor([[[0.1, 0.1, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.2, 0.3]]]).repeat(2, 1, 1)
    top = torch.tensor([[-1, 0], [0, 0]])
    got = probes.pivot_scores(
        trace_of(prob, top), pivots=[1], candidates=[2, 3, 4], association=pmi, threshold=0.5
    )
    torch.testing.assert_close(got.association, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    torch.testing.assert_close(got.cooccurrence, torch.tensor([-1.0, float("nan")]), equal_nan=True)
    never = probes.pivot_scores(
        trace_of(prob), pivots=[1], candidates=[2, 3, 4], association=pmi, threshold=0.5
    )
    torch.testing.assert_close(never.cooccurrence, torch.ones(2))
    assert never.label == ["co-occurrence"] * 2 and got.label == ["direct"] * 2
    assert never.share("co-occurrence").mean == 1.0 and never.share("pivot", ["a", "a"]).mean == 0


def test_on_a_model_it_is_the_lens_and_the_model_stays() -> None:
    model = build("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = [[5, 9, 11], [5, 9, 11, 7, 8]]
    trace = interp.logit_lens(model, ids, [[20, 30, 31], [21, 40, 41]])
    got = probes.pivot_scores(trace, pivots=[1, 2])
    for row, answers in enumerate([[20, 30, 31], [21, 40, 41]]):
        seen = []
        for stream in model(torch.tensor([ids[row]]), output_hidden_states=True).hidden_states[:-1]:
            seen.append(model.lm_head(model.model.norm(stream[0, -1])).softmax(-1))
        seen.append(model(torch.tensor([ids[row]])).logits[0, -1].softmax(-1))
        tops = [int(p.argmax()) == answers[0] for p in seen]
        kept = seen[: tops.index(True)] if any(tops) else seen
        expected = max((float(p[answers[1:]].sum().detach()) for p in kept), default=0.0)
        assert abs(float(got.pivot[row]) - expected) < 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    table = got.table()
    assert list(table) == [
        "row", "pivot_score", "pivot_layer", "target_layer", "cooccurrence_score", "label",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pivots": [1, 4]}, r"no answer 4; this trace has 4, from 0"),
        ({"pivots": []}, r"pivots=\[\] with target=0: give at least one answer"),
        ({"pivots": [0]}, r"that is not the target"),
        ({"pivots": [1], "candidates": [2, 3]}, r"shape None; expected .* 3 rows and 2 candidates"),
        (
            {"pivots": [1], "candidates": [2], "association": torch.zeros(3, 2)},
            r"shape \(3, 2\); expected a number for each of 3 rows and 1 candidates",
        ),
        (
            {"pivots": [1], "candidates": [3], "association": torch.full((3, 1), math.nan)},
            r"a source never occurs in the corpus",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(options: dict, says: str) -> None:
    with pytest.raises(InterpError, match=says):
        probes.pivot_scores(trace_of(PROB, TOP), **options)


def test_an_unknown_label_is_refused() -> None:
    got = probes.pivot_scores(trace_of(PROB, TOP), pivots=[1])
    with pytest.raises(InterpError, match="no label 'pivots'; expected one of pivot, co-occ"):
        got.share("pivots")


def corpus() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, VOCAB // 8, (length,), generator=generator).tolist()
        for length in (7, 3, 12, 1, 0, 9, 5, 20)
    ]


@pytest.mark.parametrize("window", [None, 2, 4])
def test_pmi_is_the_brute_force_count(window: int | None) -> None:
    words = [3, 1, 7, 10, 90]
    got = probes.cooccurrence(corpus(), words, window=window)
    units = []
    for document in corpus():
        if window is None or len(document) <= window:
            units.append(document)
        else:
            units += [document[i : i + window] for i in range(len(document) - window + 1)]
    assert got.units == len(units)
    for (i, w), (j, s) in itertools.product(enumerate(words), repeat=2):
        both = sum(w in unit and s in unit for unit in units)
        alone = sum(w in unit for unit in units) * sum(s in unit for unit in units)
        assert int(got.joint[i, j]) == both
        if alone == 0:
            assert math.isnan(float(got.pmi[i, j]))
        elif both == 0:
            assert float(got.pmi[i, j]) == -math.inf
        else:
            assert abs(float(got.pmi[i, j]) - math.log(both * len(units) / alone)) < 1e-6
    flat = [token for document in corpus() for token in document]
    expected = torch.tensor([flat.count(w) / len(flat) for w in words])
    torch.testing.assert_close(got.unigram, expected)


def test_independent_words_have_no_pmi() -> None:
    documents = [["a", "b"], ["a"], ["b"], []]
    assert float(probes.cooccurrence(documents, ["a", "b"]).pmi[0, 1]) == 0.0


def test_the_pivot_ratio_is_a_share_of_tokens() -> None:
    got = probes.pivot_ratio([["x", "p", "q", "p"], [], ["x"]], ["p", "q"])
    assert got.tolist() == [0.75, 0.0, 0.0]


def test_counts_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InterpError, match="2 words, 1 of them different"):
        probes.cooccurrence([["a"]], ["a", "a"])
    with pytest.raises(InterpError, match="window=1: words meet in windows of two"):
        probes.cooccurrence([["a"]], ["a"], window=1)
    with pytest.raises(InterpError, match="the corpus holds no tokens"):
        probes.cooccurrence([[]], ["a"])
    with pytest.raises(InterpError, match="no pivots; give the words"):
        probes.pivot_ratio([["a"]], [])
    with pytest.raises(InterpError, match="no documents; give at least one"):
        probes.pivot_ratio([], ["a"])
    with pytest.raises(InterpError, match="document 1 is a text, of which single letters would"):
        probes.cooccurrence([["a", "b"], "a b"], ["a", "b"])
    with pytest.raises(InterpError, match=r"document 0 is a text, .* such as text\.split\(\)"):
        probes.pivot_ratio(["a b"], ["a"])
