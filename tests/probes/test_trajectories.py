from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import probes
from interp import InterpError
from probes._trajectories import clusters
from probes._trajectories_record import rarefaction

LONG = {
    "sum": "first add the two numbers, then write the sum down and compare",
    "guess": "perhaps nineteen? because every clue of this puzzle hints there",
    "table": "a big lookup: [3,7,9] -> {k: v}; scanning rows one after another",
}


def rollout(text: str, *, model: str = "base", problem: str = "p", correct: bool | None = True):
    return probes.Rollout(problem, model, text, correct)


def run(*rollouts: Any, **options: Any) -> probes.Trajectories:
    return probes.trajectories(rollouts, progress=False, **options)


def counts(
    found: probes.Trajectories, column: str = "clusters"
) -> dict[tuple[str, str, bool], int]:
    table = found.table()
    keys = zip(table["problem"], table["model"], table["correct"], strict=True)
    return dict(zip(keys, table[column], strict=True))


def test_planted_ways_are_found_whatever_the_order() -> None:
    rng = random.Random(0)
    texts = [f"{text}{end}" for text in LONG.values() for end in ("", ".", " !", "  .")]
    rng.shuffle(texts)
    found = clusters(texts, 60.0)
    ways = [next(name for name, text in LONG.items() if t.startswith(text)) for t in texts]
    pairs = set(zip(ways, found, strict=True))
    assert len(pairs) == 3 and len({way for way, _ in pairs}) == 3


def test_clusters_are_those_of_scikit_learn_with_sacrebleu() -> None:
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    chrf = pytest.importorskip("sacrebleu.metrics").CHRF()
    rng = random.Random(1)
    words = "add take sum carry the one two three result is so we get".split()
    base = rng.choices(words, k=12)
    texts = [
        " ".join(w if rng.random() < 0.6 else rng.choice(words) for w in base) for _ in range(30)
    ]
    texts = list(dict.fromkeys(texts))
    score = np.array([[chrf.sentence_score(a, [b]).score for b in texts] for a in texts])
    oracle = AgglomerativeClustering(
        None, metric="precomputed", linkage="average", distance_threshold=40.0 + 1e-9
    ).fit(100 - (score + score.T) / 2)
    found = clusters(texts, 60.0)
    assert 1 < len(set(found)) < len(texts)
    assert adjusted_rand_score(oracle.labels_, found) == 1.0


@given(
    sizes=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    outside=st.integers(0, 2),
    data=st.data(),
)
def test_rarefaction_is_the_mean_over_all_subsets(
    sizes: list[int], outside: int, data: st.DataObject
) -> None:
    owner = [c for c, size in enumerate(sizes) for _ in range(size)] + [-1] * outside
    n = data.draw(st.integers(0, len(owner)))
    subsets = list(itertools.combinations(owner, n))
    brute = sum(len(set(subset) - {-1}) for subset in subsets) / len(subsets)
    got = rarefaction(np.array(sizes, dtype=int), n, len(owner))
    np.testing.assert_allclose(got, brute, atol=1e-12)


def test_rarefaction_stays_finite_for_many_samples() -> None:
    curve = rarefaction(np.array([5000, 3000, 1]), np.array([1, 4000, 8001]))
    np.testing.assert_allclose(curve, [1.0, 2 + 4000 / 8001, 3.0], atol=1e-9)


def test_counts_are_by_side_and_comparable_at_equal_n() -> None:
    many = [rollout(text, correct=False) for text in LONG.values() for _ in range(2)]
    one = [rollout(LONG["sum"], model="rl"), rollout(LONG["sum"] + ".", model="rl")]
    found = run(*many, *one)
    assert counts(found) == {
        ("p", "base", True): 0,
        ("p", "base", False): 3,
        ("p", "rl", True): 1,
        ("p", "rl", False): 0,
    }
    # Two of six, two of each way: 1 - C(4, 2) / C(6, 2) for each way.
    assert counts(found, "clusters_at_n")["p", "base", False] == pytest.approx(3 * (1 - 6 / 15))
    assert set(found.table()["n"]) == {2}
    assert found.table(4).set_index("model")["clusters_at_n"]["rl"].isna().all()


def test_one_sample_and_one_empty_generation_are_one_cluster_each() -> None:
    found = run(rollout("", correct=False), rollout("x", model="rl"))
    assert counts(found)["p", "base", False] == 1
    assert counts(found)["p", "rl", True] == 1
    assert counts(found, "clusters_at_n")["p", "rl", True] == 1.0


def test_empty_generations_are_one_cluster_apart_from_the_rest() -> None:
    found = run(rollout(""), rollout("  "), rollout(LONG["sum"]))
    assert found.cluster.tolist() == [0, 0, 1]


def test_curves_start_at_accuracy_and_end_at_the_counts() -> None:
    rollouts = [
        rollout(LONG[way], problem=problem, correct=way == "sum")
        for problem in "ab"
        for way in ("sum", "guess", "table", "guess")
    ]
    found = run(*rollouts)
    curve = found.curves().set_index(["correct", "n"])["clusters"]
    assert curve[True, 1] == pytest.approx(0.25)
    assert curve[False, 1] == pytest.approx(0.75)
    assert curve[True, 4] == 1
    assert curve[False, 4] == 2


def test_verifier_is_asked_only_where_nobody_has_judged() -> None:
    asked = []

    def verify(problem: str, text: str) -> bool:
        asked.append((problem, text))
        return text == "yes"

    found = run(rollout("yes", correct=None), rollout("no", correct=True), verify=verify)
    assert found.correct.tolist() == [True, True]
    assert asked == [("p", "yes")]


def test_saved_record_loads(tmp_path: Path) -> None:
    found = run(rollout("a"), rollout("b", model="rl", correct=False))
    loaded = probes.Trajectories.load(found.save(tmp_path / "t"))
    assert torch.equal(loaded.cluster, found.cluster)
    assert loaded.table().equals(found.table())


def test_plot_draws_a_curve_for_each_model_and_side() -> None:
    import matplotlib

    matplotlib.use("Agg")
    axes = run(rollout("a"), rollout("b", model="rl", correct=False)).plot()
    assert [line.get_label() for line in axes.lines] == [
        "base, correct", "base, incorrect", "rl, correct", "rl, incorrect",
    ]  # fmt: skip
    matplotlib.pyplot.close(axes.figure)


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([], "no traces"),
        ([{"problem": "1", "model": "base"}], "trace 0 lacks text"),
        ([{"problem": "1", "model": "base", "text": 3}], "the text of trace 0 is a int"),
        ([{"problem": 1, "model": "base", "text": "x"}], "does not say whether it is correct"),
    ],
)
def test_bad_traces_are_named(traces: list[Any], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        probes.trajectories(traces, progress=False)


def test_a_cut_outside_0_to_100_is_refused() -> None:
    with pytest.raises(InterpError, match="between 0 and 100"):
        run(rollout("a"), similarity=101.0)


def test_compare_tells_fewer_wrong_ways_from_fewer_wrong_samples() -> None:
    # base: three wrong ways, four samples each. rl: as many wrong ways among its few wrong samples.
    def samples(problem: str, model: str, right: int, wrong: list[str]):
        return [rollout("all is well here", problem=problem, model=model)] * right + [
            rollout(LONG[way], problem=problem, model=model, correct=False) for way in wrong
        ]

    traces = []
    for problem in "abcd":
        traces += samples(problem, "base", 0, ["sum", "guess", "table"] * 4)
        traces += samples(problem, "rl", 9, ["sum", "guess", "table"])
    rows = run(*traces).compare("base").set_index(["model", "correct", "at"])
    whole, side = rows.loc[("rl", False, "samples")], rows.loc[("rl", False, "side")]
    assert whole["ratio"] == 1.0 and whole["clusters"] == 3  # 12 samples each
    at_three = 3 * (1 - (8 * 7 * 6) / (12 * 11 * 10))  # of base's twelve wrong ones
    assert side["clusters_base"] == pytest.approx(at_three) and side["clusters"] == 3
    assert side["ratio"] == pytest.approx(3 / at_three) and side["problems"] == 4
    right = rows.loc[("rl", True, "samples")]
    assert np.isnan(right["ratio"]) and right["clusters_base"] == 0 and right["clusters"] == 1
    assert rows.loc[("rl", True, "side"), "problems"] == 0
    with pytest.raises(InterpError, match=r"no model 'bse' .*'base'"):
        run(*traces).compare("bse")
