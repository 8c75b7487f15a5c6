"""Forgetting by task, its predictors, and conjugate prompting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

import interp
import probes
from interp._estimate import cluster_mean
from probes._task_forgetting import by_task
from probes._task_forgetting import outcomes as read_outcomes


def outcomes(n: int, seed: int, rate: float) -> list[bool]:
    return (np.random.default_rng(seed).random(n) < rate).tolist()


def test_accuracies_flips_and_their_intervals_are_the_textbooks() -> None:
    before, after = outcomes(80, 0, 0.8), outcomes(80, 1, 0.5)
    got = probes.task_forgetting({"facts": before}, {"facts": after}, chance=0.25).tasks["facts"]
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    for estimate, hits in (
        (got.before, sum(before)),
        (got.after, sum(after)),
        (got.negative_flips, lost),
        (got.positive_flips, won),
    ):
        exact = binomtest(hits, 80).proportion_ci(0.95, "exact")
        found = (estimate.mean, estimate.low, estimate.high)
        assert found == pytest.approx((hits / 80, exact.low, exact.high))
    assert got.change.mean == pytest.approx((won - lost) / 80)
    assert got.p == pytest.approx(binomtest(lost, lost + won).pvalue)
    assert got.gap.mean == pytest.approx(sum(after) / 80 - 0.25)
    ratio = (sum(before) - sum(after)) / (sum(before) - 20)
    assert got.ratio.mean == pytest.approx(ratio)
    assert got.ratio.low < ratio < got.ratio.high


def test_equal_accuracy_can_hide_flips() -> None:
    got = probes.task_forgetting({"a": [True, False] * 20}, {"a": [False, True] * 20}).tasks["a"]
    assert got.change.mean == 0.0
    assert got.negative_flips.mean == got.positive_flips.mean == 0.5
    assert got.p == 1.0


def test_nothing_changed_and_nothing_above_chance_are_defined() -> None:
    same = outcomes(30, 2, 0.5)
    got = probes.task_forgetting({"a": same}, {"a": same}, chance=0.9).tasks["a"]
    assert got.p == 1.0
    assert math.isnan(got.ratio.mean) and math.isnan(got.ratio.low)
    sure = probes.task_forgetting({"a": [True] * 30}, {"a": [False] * 30}).tasks["a"]
    assert (sure.ratio.mean, sure.ratio.low, sure.ratio.high) == (1.0, 1.0, 1.0)


def test_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(100):
        sides = {"a": outcomes(60, 2 * trial, 0.9)}, {"a": outcomes(60, 2 * trial + 1, 0.7)}
        ratio = probes.task_forgetting(*sides, chance=0.5, seed=trial).tasks["a"].ratio
        covered += ratio.low <= 0.5 <= ratio.high
    assert covered >= 88  # Binomial(100, .95) is below with probability under 5e-3


def test_items_of_one_person_are_one_piece_of_evidence() -> None:
    before, after = outcomes(40, 5, 0.8), outcomes(40, 6, 0.6)
    people = {"a": list(range(40)) * 3}
    sides = {"a": before * 3}, {"a": after * 3}
    once = probes.task_forgetting({"a": before}, {"a": after}, groups={"a": list(range(40))})
    often = probes.task_forgetting(*sides, groups=people)
    for name in ("before", "negative_flips", "change", "ratio"):
        one, two = getattr(once.tasks["a"], name), getattr(often.tasks["a"], name)
        assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=0.02)


def test_table_and_mean_over_tasks() -> None:
    before = {"facts": [True] * 10, "boxes": [True, False] * 5}
    after = {"facts": [False] * 10, "boxes": [True, False] * 5}
    got = probes.task_forgetting(before, after, chance={"facts": 0.0, "boxes": 0.25})
    assert got.mean_change == -0.5
    table = got.table().set_index("task")
    assert table.loc["facts", "negative_flips"] == 1.0
    assert table.loc["boxes", "gap"] == 0.25
    assert {"change_low", "change_high", "ratio", "p"} <= set(table.columns)


def test_forgetting_measure_is_its_formula() -> None:
    a = np.random.default_rng(0).random((5, 5))
    expected = sum(a[4, k] - a[k, k] for k in range(4)) / 4
    a[np.triu_indices(5, 1)] = np.nan  # not read
    assert probes.forgetting_measure(a.tolist()) == pytest.approx(expected)
    assert probes.forgetting_measure([[1.0, 0.0], [1.0, 1.0]]) == 0.0
    with pytest.raises(interp.InterpError, match="a square of two or more"):
        probes.forgetting_measure([[1.0]])
    with pytest.raises(interp.InterpError, match="no accuracy for task 0"):
        probes.forgetting_measure([[math.nan, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"a": [True]}, {"b": [True]}, "'a' was measured on one side only"),
        ({"a": [True]}, {"a": [True, False]}, "1 items before and 2 after"),
        ({"a": []}, {"a": []}, "no observations"),
        ({}, {}, "no tasks"),
    ],
)
def test_bad_outcomes_are_refused(
    before: dict[str, list[bool]], after: dict[str, list[bool]], message: str
) -> None:
    with pytest.raises(interp.InterpError, match=message):
        probes.task_forgetting(before, after)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": [0.2, 0.7]}, r"task 'a', after: expected .* True or False .* not \[0\.2, 0\.7\]"),
        ({"a": [1.0, math.nan]}, "for each item, not"),
        ({"a": [2, 1]}, "for each item, not"),
        ({"a": ["1", "0"]}, "for each item, not"),
        ({"a": [True, None]}, "for each item, not"),
        ({"a": True}, "expected a list .* not True"),
        ({"a": [[True, False]]}, "expected a list"),
        ([True, False], r"after is a list; expected task -> .* \{'facts': \[True, False\]\}"),
    ],
)
def test_only_right_and_wrong_can_be_forgotten(given: object, message: str) -> None:
    """Truncated to whole numbers, probabilities once gave another accuracy without a word."""
    with pytest.raises(interp.InterpError, match=message):
        read_outcomes("after", given)
    soft = {"a": np.array([0.2, 0.7])}
    with pytest.raises(interp.InterpError, match="of probabilities take which are above"):
        probes.task_forgetting({"a": [True, False]}, soft)


def test_right_and_wrong_may_be_numbers_or_arrays() -> None:
    kinds = ([True, False, True], [1, 0, 1], np.array([1.0, 0.0, 1.0]), np.array([1, 0, 1], bool))
    for one in kinds:
        got = probes.task_forgetting({"a": one}, {"a": [0, 0, 1]}).tasks["a"]
        assert (got.before.mean, got.after.mean) == pytest.approx((2 / 3, 1 / 3))


def test_groups_and_chances_that_do_not_fit_are_refused() -> None:
    sides = {"a": [True, False]}, {"a": [True, True]}
    with pytest.raises(interp.InterpError, match="task 'a' has 1 groups for 2 items"):
        probes.task_forgetting(*sides, groups={"a": ["ann"]})
    with pytest.raises(interp.InterpError, match="groups has nothing for task 'a'; it has b"):
        probes.task_forgetting(*sides, groups={"b": ["ann", "ben"]})
    with pytest.raises(interp.InterpError, match="chance has nothing for task 'a'; it has b"):
        probes.task_forgetting(*sides, chance={"b": 0.5})
    with pytest.raises(interp.InterpError, match="groups is a list; expected a mapping by task"):
        by_task("groups", ["ann", "ben"], "a")


# RL's Razor.


def test_fit_is_numpys_polyfit_and_an_exact_parabola_is_explained_wholly() -> None:
    rng = np.random.default_rng(0)
    kl = rng.random(20)
    noisy = 0.3 * kl + 0.5 * kl**2 + rng.normal(0, 0.05, 20)
    got = probes.forgetting_fit(noisy, {"kl": kl.tolist()}).table().iloc[0]
    residual = noisy - np.polyval(np.polyfit(kl, noisy, 2), kl)
    expected = 1 - (residual**2).sum() / ((noisy - noisy.mean()) ** 2).sum()
    assert got["r2"] == pytest.approx(expected)
    assert got["low"] < got["r2"] < got["high"] <= 1.0
    left = [
        noisy[i] - np.polyval(np.polyfit(np.delete(kl, i), np.delete(noisy, i), 2), kl[i])
        for i in range(20)
    ]
    out = 1 - np.square(left).sum() / ((noisy - noisy.mean()) ** 2).sum()
    assert got["r2_left_out"] == pytest.approx(out)
    exact = (
        probes.forgetting_fit((2 - kl + 3 * kl**2).tolist(), {"kl": kl.tolist()}).table().iloc[0]
    )
    assert exact["r2"] == pytest.approx(1.0)
    assert exact["p"] < 1e-3


def test_noise_explains_as_much_as_its_null_and_ranks_below_the_cause() -> None:
    rng = np.random.default_rng(1)
    kl, noise = rng.random(12), rng.random(12)
    forgetting = kl**2 + rng.normal(0, 0.02, 12)
    table = probes.forgetting_fit(forgetting, {"noise": noise, "kl": kl}).table()
    assert table["predictor"].tolist() == ["kl", "noise"]
    # With the predictor shuffled, R^2 of degree d on n points has mean d / (n - 1).
    assert table["r2_null"].tolist() == pytest.approx([2 / 11, 2 / 11], abs=0.03)
    assert table["p"][0] < 0.01 < table["p"][1]
    assert table["r2_left_out"][1] < table["r2"][1]


def test_checkpoints_of_one_run_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(8)
    kl = np.repeat(base, 5) + rng.normal(0, 1e-3, 40)
    forgetting = np.repeat(base + rng.normal(0, 0.15, 8), 5) + rng.normal(0, 1e-3, 40)
    runs = np.repeat(np.arange(8), 5).tolist()
    alone = probes.forgetting_fit(forgetting, {"kl": kl}).table().iloc[0]
    grouped = probes.forgetting_fit(forgetting, {"kl": kl}, groups=runs).table().iloc[0]
    assert grouped["r2"] == alone["r2"]
    assert grouped["high"] - grouped["low"] > 1.5 * (alone["high"] - alone["low"])
    assert grouped["r2_left_out"] < alone["r2_left_out"]
    assert grouped["groups"] == 8


@pytest.mark.parametrize(
    ("y", "x", "message"),
    [
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], "needs at least 4"),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0], "'kl' never varies"),
        ([0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 3.0, 4.0], "'forgetting' never varies"),
        ([0.1, 0.2, 0.3, math.nan], [1.0, 2.0, 3.0, 4.0], "not finite"),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0], "'kl' has 2 values for 4"),
    ],
)
def test_bad_fits_are_refused(y: list[float], x: list[float], message: str) -> None:
    with pytest.raises(interp.InterpError, match=message):
        probes.forgetting_fit(y, {"kl": x})
    with pytest.raises(interp.InterpError, match="no predictors"):
        probes.forgetting_fit([0.1, 0.2, 0.3, 0.4], {})


def test_fit_plots_its_points_and_curve() -> None:
    pytest.importorskip("matplotlib").use("agg")
    kl = [0.0, 0.1, 0.2, 0.4, 0.8]
    got = probes.forgetting_fit([k**2 for k in kl], {"kl": kl})
    ax = got.plot("kl")
    x, y = ax.lines[1].get_data()
    np.testing.assert_allclose(y, np.asarray(x) ** 2, atol=1e-9)


# Conjugate prompting.


def test_conjugate_undoes_what_it_does() -> None:
    def echo(prompts: list[str]) -> list[str]:
        return prompts

    turned = probes.conjugate(echo, lambda p: p[::-1], lambda p: p[::-1])
    assert turned(["abc", "de"]) == ["abc", "de"]


def test_a_suppressed_skill_comes_back_in_another_form_and_a_lost_one_does_not() -> None:
    prompts = [f"{i} plus one" for i in range(40)]
    right = [str(i + 1) for i in range(40)]

    def knows(asked: list[str]) -> list[str]:
        return [str(int(p.split()[0]) + 1) for p in asked]

    def suppresses(asked: list[str]) -> list[str]:  # but only where it sees English
        return ["no" if "plus" in p else str(int(p.split()[0]) + 1) for p in asked]

    def lost(asked: list[str]) -> list[str]:
        return ["no"] * len(asked)

    forms = {"french": (lambda p: p.replace("plus", "et"), str)}
    for after, recovered in ((suppresses, 1.0), (lost, 0.0)):
        check = probes.conjugate_check(knows, after, prompts, lambda i, out: out == right[i], forms)
        table = check.table().set_index("form")
        assert table.loc["plain", "drop"] == 1.0
        assert table.loc["french", "recovered"] == recovered
        assert table.loc["french", "drop"] == 1.0 - recovered


def test_recovered_is_paired_by_prompt() -> None:
    before = {"plain": outcomes(50, 0, 0.9), "other": outcomes(50, 1, 0.8)}
    after = {"plain": outcomes(50, 2, 0.3), "other": outcomes(50, 3, 0.6)}
    groups = [i // 2 for i in range(50)]
    table = probes.ConjugateCheck(before, after, groups).table().set_index("form")
    each = [
        (before["plain"][i] - after["plain"][i]) - (before["other"][i] - after["other"][i])
        for i in range(50)
    ]
    expected = cluster_mean([float(v) for v in each], groups, bounds=(-2.0, 2.0))
    found = table.loc["other", ["recovered", "recovered_low", "recovered_high"]].tolist()
    assert found == pytest.approx([expected.mean, expected.low, expected.high])


def test_bad_checks_are_refused() -> None:
    def short(prompts: list[str]) -> list[str]:
        return prompts[:1]

    forms = {"upper": (str.upper, str.lower)}
    with pytest.raises(interp.InterpError, match="1 outputs for 2 prompts"):
        probes.conjugate_check(short, short, ["a", "b"], lambda i, out: True, forms)
    with pytest.raises(interp.InterpError, match="at least one prompt"):
        probes.conjugate_check(short, short, [], lambda i, out: True, forms)
    with pytest.raises(interp.InterpError, match="prompts is one text; give a list of texts"):
        probes.conjugate_check(short, short, "ab", lambda i, out: True, forms)
    with pytest.raises(interp.InterpError, match="'plain' names"):
        probes.conjugate_check(short, short, ["a"], lambda i, out: True, {"plain": (str, str)})
