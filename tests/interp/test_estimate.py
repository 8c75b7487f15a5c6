import math

import numpy as np
import pytest

from interp import InterpError
from interp._estimate import cluster_mean, share


def test_mean_is_over_observations_and_interval_covers_it() -> None:
    values, people = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "c", "d", "e"]
    got = cluster_mean(values, people)
    assert got.mean == pytest.approx(4 / 6)
    assert got.low <= got.mean <= got.high
    assert (got.clusters, got.n) == (5, 6)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(120):
        effects = np.repeat(rng.normal(0.3, 1.0, size=40), 4)
        values = effects + rng.normal(0, 0.2, size=160)
        got = cluster_mean(values.tolist(), np.repeat(np.arange(40), 4).tolist(), seed=trial)
        covered += got.low <= 0.3 <= got.high
    # Binomial(120, .95) is below 104 with probability under 1e-3 (percentile bootstraps of 40
    # clusters undercover slightly); resampling rows instead of people covers about 65 %.
    assert covered >= 104


def test_repeating_every_row_of_a_person_adds_no_evidence() -> None:
    people = [str(i) for i in range(30)]
    values = [float(i % 3 == 0) for i in range(30)]
    once = cluster_mean(values, people)
    often = cluster_mean(values * 10, people * 10)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)


@pytest.mark.parametrize("n", [5, 12, 20, 40])
def test_interval_of_a_rate_covers_it_even_with_few_people(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for trial in range(200):
        values = (rng.random(n) < 0.9).astype(float)
        got = cluster_mean(values.tolist(), list(range(n)), seed=trial)
        hits += got.low <= 0.9 <= got.high
    assert hits >= 180  # Binomial(200, .95) is below 180 with probability under 2e-3


def test_people_who_all_agree_still_leave_doubt() -> None:
    got = cluster_mean([1.0] * 5, list(range(5)))
    assert got.high == 1.0
    assert got.low == pytest.approx(0.025 ** (1 / 5))  # Clopper and Pearson's closed form
    mirrored = cluster_mean([-1.0] * 5, list(range(5)), bounds=(-1.0, 1.0))
    assert mirrored.low == -1.0
    assert mirrored.high == pytest.approx(1 - 2 * 0.025 ** (1 / 5))


def test_unbounded_quantities_get_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    got = cluster_mean(values, list(range(4)), bounds=None)
    half = 3.182446 * np.std(values, ddof=1) / 2  # t.975 with 3 degrees of freedom
    assert got.low == pytest.approx(3.0 - half, rel=1e-5)
    assert got.high == pytest.approx(3.0 + half, rel=1e-5)


def test_one_cluster_has_no_interval_and_says_so() -> None:
    got = cluster_mean([1.0, 0.0], ["a", "a"])
    assert math.isnan(got.low)
    assert "no interval" in str(got)


def test_no_observations_are_refused() -> None:
    with pytest.raises(InterpError, match="no observations"):
        cluster_mean([], [])


def test_students_interval_of_unequal_clusters_is_centred_on_the_mean_and_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        sizes = rng.integers(1, 9, 12)
        people = np.repeat(np.arange(12), sizes)
        values = rng.normal(0.3, 1.0, 12)[people] + rng.normal(0, 0.2, len(people))
        got = cluster_mean(values.tolist(), people.tolist(), bounds=None)
        assert (got.low + got.high) / 2 == pytest.approx(got.mean)
        covered += got.low <= 0.3 <= got.high
    assert covered >= 264  # Binomial(300, .93) is below with probability under 1e-3


def test_a_bound_that_is_infinite_on_one_side_only_cuts_the_interval() -> None:
    free = cluster_mean([0.0, 0.1, 3.0], [0, 1, 2], bounds=None)
    cut = cluster_mean([0.0, 0.1, 3.0], [0, 1, 2], bounds=(0.0, math.inf))
    assert free.low < 0 == cut.low
    assert cut.high == free.high


def test_share_is_clopper_and_pearsons() -> None:
    from scipy.stats import binomtest

    for hits, trials in ((0, 7), (3, 7), (7, 7)):
        got, expected = share(hits, trials), binomtest(hits, trials).proportion_ci(0.95, "exact")
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(InterpError, match="no observations"):
        share(0, 0)
