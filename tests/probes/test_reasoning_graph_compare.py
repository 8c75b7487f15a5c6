"""Ratios of rates: a planted squeeze is found, equals are called equal, intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes._ratio import ratio_of_means
from probes._reasoning_graph_compare import compare, difference, smape
from tests.probes.reasoning_graphs import random_walks


def model(seed: int, steep: float, problems: int = 30, **options: int):
    return {p: random_walks(100 * seed + p, steep=steep, **options) for p in range(problems)}


def test_a_planted_squeeze_is_found_at_equal_visits_and_length() -> None:
    rows = compare(model(0, 0.1, count=20), model(1, 0.5, count=20), draws=6, seed=0)
    assert [(row["quantity"], row["sampling"]) for row in rows] == [
        (quantity, sampling)
        for sampling in ("as sampled", "visits", "length")
        for quantity in ("visits", "degree", "betweenness")
    ]
    for row in rows:
        if row["quantity"] != "betweenness":
            assert row["low"] > 1.3, row
            assert row["z"] > 2.5, row
            assert row["problems"] == 30
            assert row["ratio"] == pytest.approx(row["beta"] / row["beta_base"])
            assert row["ratio_null"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_equals_are_within_their_null_and_their_interval() -> None:
    # z over repetitions is about standard normal, and the interval covers 1 about 95 % of the time.
    rows = [
        compare(model(2 * i, 0.2, count=12), model(2 * i + 1, 0.2, count=12), draws=20, seed=i)[0]
        for i in range(12)
    ]
    z = np.array([row["z"] for row in rows])
    assert abs(z.mean()) < 3 / math.sqrt(len(z))
    assert z.std() < 1.8
    assert sum(row["low"] < 1 < row["high"] for row in rows) >= 9


def test_only_problems_that_both_have_count() -> None:
    base, tuned = model(0, 0.2, problems=5, count=15), model(1, 0.2, problems=8, count=15)
    assert compare(base, tuned, draws=2, seed=0)[0]["problems"] == 5
    none = compare(base, {}, draws=2, seed=0)[0]
    assert none["problems"] == 0
    assert math.isnan(none["ratio"]) and math.isnan(none["low"])


@pytest.mark.parametrize("n", [12, 60])
def test_interval_of_a_ratio_covers(n: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        base = rng.gamma(4.0, 1.0, n)
        tuned = 1.5 * base * rng.gamma(8.0, 1 / 8, n)
        _, low, high = ratio_of_means(base, tuned, seed)
        covered += low < 1.5 < high
    assert 0.90 <= covered / 200 <= 0.99


def test_ratio_defined_values() -> None:
    one = np.ones(4)
    assert ratio_of_means(one, 2 * one, 0) == (2.0, 2.0, 2.0)
    assert all(math.isnan(v) for v in ratio_of_means(np.zeros(4), one, 0))
    assert all(math.isnan(v) for v in ratio_of_means(np.full(4, math.nan), one, 0))
    ratio, low, high = ratio_of_means(np.ones(2), np.ones(2), 0)
    assert ratio == 1 and math.isnan(low) and math.isnan(high)
    known = ratio_of_means(np.array([1.0, math.nan, 1.0]), np.array([3.0, 9.0, 3.0]), 0)
    assert known[0] == 3.0


def test_smape_by_hand() -> None:
    x, y = np.array([1.0, 0.0, 0.0, 3.0]), np.array([1.0, 2.0, 0.0, 1.0])
    assert smape(x, y) == pytest.approx((0 + 200 + 100 * 2 / 2) / 3)
    assert smape(x, x) == 0
    assert math.isnan(smape(np.zeros(3), np.zeros(3)))


def test_visit_differences_stand_beside_what_sampling_gives() -> None:
    same = difference(model(0, 0.2), model(1, 0.2), nodes=12, draws=20, seed=0)
    other = difference(model(0, 0.2), model(1, 0.6), nodes=12, draws=20, seed=0)
    assert abs(same["z"]) < 3
    assert other["z"] > 3
    assert other["smape"] > same["smape"] > 0
