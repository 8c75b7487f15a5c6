"""Rates of known laws, and controls that keep what they promise to keep."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from interp._weights.nulls import z_score
from probes._reasoning_graph_controls import exchanged, match_length, match_visits, shuffled
from probes._reasoning_graph_rates import betas, decay_rate
from tests.probes.reasoning_graphs import random_walks, walks


def test_geometric_law_is_recovered_exactly_and_zeros_are_left_out() -> None:
    beta = 0.0217
    values = 10 ** (3 - beta * np.arange(1.0, 200.0))
    got = decay_rate(np.concatenate([np.random.default_rng(0).permutation(values), np.zeros(50)]))
    assert got.beta == pytest.approx(beta, rel=1e-10)
    assert got.r2 == pytest.approx(1.0)
    assert got.nodes == 199


def test_rate_of_geometric_visits_converges_to_the_truth() -> None:
    rng = np.random.default_rng(0)
    p = 10 ** (-0.0217 * np.arange(1, 60))
    visits = np.bincount(rng.choice(59, 200_000, p=p / p.sum()), minlength=59)
    got = decay_rate(visits.astype(float))
    assert got.beta == pytest.approx(0.0217, rel=0.03)
    assert got.r2 > 0.99


def test_rate_equals_scipy_on_any_values() -> None:
    from scipy.stats import linregress

    values = np.random.default_rng(1).exponential(size=40)
    fit = linregress(np.arange(1, 41), np.log10(np.sort(values)[::-1]))
    got = decay_rate(values)
    assert got.beta == pytest.approx(-fit.slope)
    assert got.r2 == pytest.approx(fit.rvalue**2)


def test_rate_of_a_power_law_falls_as_more_is_sampled() -> None:
    # Why matched subsets stand beside every rate.
    rng = np.random.default_rng(2)
    p = 1 / np.arange(1.0, 2001.0)
    rates = [
        decay_rate(np.bincount(rng.choice(2000, n, p=p / p.sum())).astype(float)).beta
        for n in (2_000, 20_000, 200_000)
    ]
    assert rates[0] > 1.3 * rates[1] > 1.3 * rates[2]


def test_defined_values_where_there_is_no_law() -> None:
    for few in ([], [3.0], [3.0, 1.0], [3.0, 1.0, 0.0]):
        got = decay_rate(np.array(few, dtype=float))
        assert math.isnan(got.beta) and math.isnan(got.r2)
    same = decay_rate(np.full(7, 2.0))
    assert same.beta == 0 and math.isnan(same.r2)


def test_shuffling_keeps_visits_and_lengths_and_never_stands_still() -> None:
    rng = np.random.default_rng(0)
    original = random_walks(0, count=200)
    got = shuffled(original, rng)
    np.testing.assert_array_equal(np.bincount(got.node), np.bincount(original.node))
    np.testing.assert_array_equal(got.start, original.start)
    assert not any((np.diff(got.node[a:b]) == 0).any() for a, b in pairwise(got.start))
    assert not np.array_equal(got.node, original.node)


def test_shuffling_ends_where_standing_still_cannot_be_avoided() -> None:
    stuck = walks([0, 1, 0, 2, 0, 3, 0], [0], [0])
    got = shuffled(stuck, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(got.node), np.bincount(stuck.node))
    source, target, _ = got.edges()
    assert (source != target).all()


def test_transitions_without_structure_are_not_told_from_shuffled_ones() -> None:
    # Over many graphs without structure z must be about standard normal.
    z = []
    for seed in range(40):
        data = random_walks(seed, count=60, nodes=15, steep=0.1)
        rng = np.random.default_rng(1000 + seed)
        null = [betas(shuffled(data, rng)) for _ in range(20)]
        observed = betas(data)
        z.append([z_score(observed[q], [draw[q] for draw in null]) for q in (1, 2)])
    assert np.abs(np.mean(z, axis=0)).max() < 3 / math.sqrt(40)
    assert 0.6 < np.std(z) < 1.5


def test_transitions_with_structure_are() -> None:
    # Always one step around a ring: degree is flat, which no shuffling of the visits is.
    starts = [start for start in range(20) for _ in range(1 + start % 5)]
    ring = walks(*[[(start + i) % 20 for i in range(6)] for start in starts])
    rng = np.random.default_rng(0)
    null = [betas(shuffled(ring, rng))[1] for _ in range(20)]
    assert betas(ring)[1] == 0
    assert z_score(0.0, null) < -3


def test_equal_visits_are_exactly_equal_and_of_whole_walks_but_one() -> None:
    parts = [random_walks(0, count=50), random_walks(1, count=20), random_walks(2, count=35)]
    smallest = min(len(part.node) for part in parts)
    for part, got in zip(parts, match_visits(parts, np.random.default_rng(0)), strict=True):
        assert len(got.node) == smallest
        whole = {tuple(part.node[a:b]) for a, b in pairwise(part.start)}
        pieces = [tuple(got.node[a:b]) for a, b in pairwise(got.start)]
        assert all(piece in whole for piece in pieces[:-1])
        assert any(walk[: len(pieces[-1])] == pieces[-1] for walk in whole)


def test_equal_length_cuts_windows_of_the_smallest_median() -> None:
    long = walks(*[list(range(10)) for _ in range(5)])
    short = walks(*[[0, 1, 2] for _ in range(20)])
    a, b = match_length([long, short], np.random.default_rng(0))
    assert a.lengths.max() == b.lengths.max() == 3
    assert len(a.node) == len(b.node) == 15
    assert all((np.diff(a.node[i:j]) == 1).all() for i, j in pairwise(a.start))  # contiguous
    assert len(set(a.node.tolist())) > 3  # not always the beginning


def test_matching_undoes_what_length_alone_does() -> None:
    # The same law sampled ten times as long: flatter as sampled, equal when matched.
    zipf = 1 / np.arange(1.0, 301.0)
    rng = np.random.default_rng(0)

    def sample(length: int):
        return walks(*[rng.choice(300, length, p=zipf / zipf.sum()).tolist() for _ in range(100)])

    short, long = sample(6), sample(60)
    ratio = betas(long)[0] / betas(short)[0]
    draws = [match_visits([short, long], rng) for _ in range(20)]
    matched = np.mean([betas(b)[0] for _, b in draws]) / np.mean([betas(a)[0] for a, _ in draws])
    assert ratio < 0.85
    assert matched == pytest.approx(1.0, abs=0.05)


def test_dealing_out_anew_keeps_all_walks() -> None:
    one, other = random_walks(0, count=10), random_walks(1, count=25)
    a, b = exchanged(one, other, np.random.default_rng(0))
    assert (len(a), len(b)) == (10, 25)

    def sorted_walks(*parts):
        return sorted(tuple(p.node[i:j]) for p in parts for i, j in pairwise(p.start))

    assert sorted_walks(a, b) == sorted_walks(one, other)
