"""Probes equal scikit-learn's, find what was planted, and refuse what cannot be probed."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import interp
import interventions as iv
from interp import InterpError
from probes import LinearProbe
from probes._calibration import brier, expected_calibration_error, temperature, two_sided
from tests.architectures import build

PENALTIES = (1000.0, 100.0, 10.0, 1.0)


def data(
    n: int = 90, d: int = 12, classes: int = 2, noise: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Classes of unequal size; features of very unequal scale, correlated, far from zero."""
    rng = np.random.default_rng(0)
    y = np.minimum(rng.integers(0, classes + 1, n), classes - 1)
    means = rng.standard_normal((classes, d))
    x = (means[y] + noise * rng.standard_normal((n, d))) @ rng.standard_normal((d, d))
    return x * np.logspace(-2, 2, d) + 50, y


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("d", [12, 150])  # more examples than features, and fewer
@pytest.mark.parametrize("standardize", [True, False])
def test_ridge_is_ridge_classifier_cv(classes: int, d: int, standardize: bool) -> None:
    x, y = data(d=d, classes=classes)
    folds = StratifiedKFold(4, shuffle=True, random_state=1)
    theirs = make_pipeline(
        StandardScaler() if standardize else "passthrough",
        RidgeClassifierCV(PENALTIES, cv=folds, scoring="balanced_accuracy"),
    ).fit(x, y)
    mine = LinearProbe(penalties=PENALTIES, cv=folds, standardize=standardize).fit(x, y)
    ridge = theirs[-1]
    assert mine.penalty_ == ridge.alpha_
    assert mine.inner_score_ == pytest.approx(ridge.best_score_, abs=1e-12)
    np.testing.assert_allclose(
        mine.decision_function(x), theirs.decision_function(x), rtol=1e-7, atol=1e-8
    )
    assert (mine.predict(x) == theirs.predict(x)).all()
    scale = theirs[0].scale_ if standardize else 1.0
    np.testing.assert_allclose(
        mine.coef_, np.atleast_2d(ridge.coef_) / scale, rtol=1e-6, atol=1e-10
    )


def test_inner_folds_never_split_a_group() -> None:
    x, y = data(n=120)
    groups = np.arange(120) // 5
    y = y[groups * 5]
    mine = LinearProbe(penalties=PENALTIES, cv=4, seed=3).fit(x, y, groups=groups)
    folds = list(StratifiedGroupKFold(4, shuffle=True, random_state=3).split(x, y, groups))
    assert all(not set(groups[a]) & set(groups[b]) for a, b in folds)
    theirs = make_pipeline(
        StandardScaler(), RidgeClassifierCV(PENALTIES, cv=folds, scoring="balanced_accuracy")
    ).fit(x, y)
    assert mine.inner_score_ == pytest.approx(theirs[-1].best_score_, abs=1e-12)
    assert mine.penalty_ == theirs[-1].alpha_


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_a_grid_search_over_logistic_regression(classes: int) -> None:
    x, y = data(classes=classes)
    folds = KFold(3)
    scaler = StandardScaler().fit(x)
    grid = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": [1 / penalty for penalty in PENALTIES]},
        cv=folds,
        scoring="balanced_accuracy",
    ).fit(scaler.transform(x), y)
    mine = LinearProbe("logistic", penalties=PENALTIES, cv=folds).fit(x, y)
    assert mine.penalty_ == pytest.approx(1 / grid.best_params_["C"])
    assert mine.inner_score_ == pytest.approx(grid.best_score_, abs=1e-12)
    np.testing.assert_allclose(
        mine.predict_proba(x), grid.predict_proba(scaler.transform(x)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_mean_difference_is_the_nearest_centroid(classes: int, standardize: bool) -> None:
    x, y = data(classes=classes)
    mine = LinearProbe("mean_difference", standardize=standardize).fit(x, y)
    scaler = StandardScaler().fit(x) if standardize else None
    scaled = x if scaler is None else scaler.transform(x)
    assert (mine.predict(x) == NearestCentroid().fit(scaled, y).predict(scaled)).all()
    if classes == 2 and not standardize:
        gap = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
        torch.testing.assert_close(mine.direction, torch.from_numpy(gap).float())


def test_rank_k_spans_the_discriminants_of_lda() -> None:
    x, y = data(n=200, d=8, classes=5)
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(x, y)
    for rank in (1, 2, 3, 4):
        mine = LinearProbe("rank_k", rank=rank, penalties=[1e-7]).fit(x, y)
        found, theirs = mine.direction.double().numpy().T, lda.scalings_[:, :rank]
        assert found.shape == (8, rank)
        for number in range(rank):  # one by one, in order, up to scale
            cosine = found[:, number] @ theirs[:, number]
            cosine /= np.linalg.norm(found[:, number]) * np.linalg.norm(theirs[:, number])
            assert abs(cosine) == pytest.approx(1, abs=1e-5)
        assert np.linalg.matrix_rank(mine.coef_) == rank


@pytest.mark.parametrize("d", [12, 150])
def test_rank_k_at_full_rank_is_ridge(d: int) -> None:
    x, y = data(d=d, classes=4)
    full = LinearProbe("rank_k", rank=3, penalties=PENALTIES).fit(x, y)
    ridge = LinearProbe(penalties=PENALTIES).fit(x, y)
    np.testing.assert_allclose(full.coef_, ridge.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(full.intercept_, ridge.intercept_, rtol=1e-6)


def test_direction_is_in_activation_units() -> None:
    """The slope of the score by each raw feature, which standardised weights are not."""
    x, y = data()
    for kind in ("ridge", "logistic", "mean_difference"):
        probe = LinearProbe(kind).fit(x, y)
        base = probe.decision_function(x[:1])
        for feature in range(x.shape[1]):
            moved = x[:1].copy()
            moved[0, feature] += 0.5
            slope = (probe.decision_function(moved) - base)[0] / 0.5
            assert float(probe.direction[feature]) == pytest.approx(slope, rel=1e-4)
        shifted = x[:1] + probe.shift(1.5).double().numpy()
        assert (probe.decision_function(shifted) - base)[0] == pytest.approx(1.5, rel=1e-3)


def test_shift_of_a_label_raises_its_own_score() -> None:
    x, y = data(classes=3)
    names = np.array(["a", "b", "c"])[y]
    probe = LinearProbe().fit(x, names)
    moved = probe.decision_function(x[:1] + probe.shift(2.0, "b").double().numpy())
    gain = (moved - probe.decision_function(x[:1]))[0]
    assert gain[1] == pytest.approx(2.0, rel=1e-3)
    two = LinearProbe().fit(x[y < 2], names[y < 2])
    torch.testing.assert_close(two.shift(1.0, "a"), -two.shift(1.0))
    for wrong in ("d", None):
        with pytest.raises(InterpError, match="name one of the probe's classes, 'a', 'b', 'c'"):
            probe.shift(1.0, wrong)


def test_a_planted_direction_is_found_and_steers() -> None:
    """Examples differ along one direction of a stream; steering by the probe moves its score."""
    model = build("llama")
    ids = torch.randint(3, 90, (60, 5), generator=torch.Generator().manual_seed(0))
    x = interp.capture(model, ids, "resid_post.1", positions="last")["resid_post.1"][:, 0]
    y = torch.arange(60) % 2
    planted = torch.nn.functional.normalize(torch.arange(32.0) - 15.5, dim=0)
    separated = x + 400 * (2.0 * y[:, None] - 1) * planted
    probe = LinearProbe("mean_difference", standardize=False).fit(separated, y)
    assert float(torch.cosine_similarity(probe.direction, planted, dim=0)) > 0.999
    probe = LinearProbe().fit(x, y)
    with iv.steer("resid_post.1", probe.shift(3.0)).applied(model):
        moved = interp.capture(model, ids, "resid_post.1", positions="last")["resid_post.1"][:, 0]
    gain = probe.decision_function(moved) - probe.decision_function(x)
    np.testing.assert_allclose(gain, 3.0, rtol=1e-3)


def test_temperature_maximises_the_likelihood_and_never_reorders() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((400, 3))
    codes = (3 * scores + rng.gumbel(size=(400, 3))).argmax(axis=1)  # softmax(3 scores)
    assert temperature(scores, codes) == pytest.approx(3.0, rel=0.25)
    assert temperature(-scores, codes) == pytest.approx(1e-6)  # worse than nothing: ignored
    apart = np.where(codes[:, None] == np.arange(3), 1.0, 0.0)
    assert 1 < temperature(apart, codes) < 100  # separated, still finite


def test_probabilities_are_those_of_scikit_learn_s_temperature() -> None:
    x, y = data(n=300, noise=3.0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    theirs = CalibratedClassifierCV(
        make_pipeline(StandardScaler(), RidgeClassifier(10.0)),
        method="temperature",
        cv=folds,
        ensemble=False,
    ).fit(x, y)
    mine = LinearProbe(penalties=[10.0], cv=folds).fit(x, y)
    # Theirs standardises within each fold and does not smooth the targets.
    np.testing.assert_allclose(mine.predict_proba(x), theirs.predict_proba(x), atol=0.02)
    assert (mine.classes_[mine.predict_proba(x).argmax(axis=1)] == mine.predict(x)).all()


def test_calibration_scores() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=4000)
    codes = (rng.uniform(size=4000) < p).astype(int)
    both = np.stack([1 - p, p], axis=1)
    assert brier(both, codes) == pytest.approx(brier_score_loss(codes, p))
    assert expected_calibration_error(both, codes) < 0.03  # drawn from these very probabilities
    sure = np.stack([p < 0.5, p >= 0.5], axis=1).astype(float)
    error = expected_calibration_error(sure, codes)
    assert error == pytest.approx(1 - ((p >= 0.5) == codes).mean())
    np.testing.assert_array_equal(two_sided(np.array([[3.0]])), [[-1.5, 1.5]])


def test_same_predictions_as_a_cross_validated_pipeline() -> None:
    x, y = data(n=150, classes=3)
    groups = np.arange(150) // 3
    outer = GroupKFold(5)
    mine = cross_val_predict(LinearProbe("ridge", penalties=[10.0]), x, y, groups=groups, cv=outer)
    theirs = cross_val_predict(
        make_pipeline(StandardScaler(), RidgeClassifier(10.0)), x, y, groups=groups, cv=outer
    )
    assert (mine == theirs).all()
    assert balanced_accuracy_score(y, mine) > 0.5


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mean_difference", "rank_k"])
def test_scikit_learn_s_own_checks(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(LinearProbe(kind), on_fail=None)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    # It sets each argument to anything, which annotations checked at run time, as here, refuse.
    failed.pop("check_do_not_raise_errors_in_init_or_set_params", None)
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 40


def test_survives_pickling_and_takes_half_precision_tensors() -> None:
    x, y = data()
    probe = LinearProbe().fit(x, y)
    again = pickle.loads(pickle.dumps(probe))
    torch.testing.assert_close(again.direction, probe.direction, rtol=0, atol=0)
    half = torch.from_numpy(x).bfloat16()
    rounded = LinearProbe().fit(half, torch.from_numpy(y))
    np.testing.assert_array_equal(rounded.coef_, LinearProbe().fit(half.float().numpy(), y).coef_)


def test_constant_features_do_no_harm() -> None:
    x, y = data()
    wide = np.concatenate([x, np.full((len(x), 2), 7.3)], axis=1)
    probe, plain = LinearProbe().fit(wide, y), LinearProbe().fit(x, y)
    np.testing.assert_allclose(probe.coef_[:, :-2], plain.coef_, rtol=1e-6)
    np.testing.assert_allclose(probe.coef_[:, -2:], 0, atol=1e-12)


def test_bad_input_gives_one_clear_sentence() -> None:
    x, y = data()
    cases: list[tuple[str, Any, Any, Any, Any]] = [
        (
            "1 class only: every example has the label 0.0, .* two or more",
            {},
            x,
            np.zeros(90),
            None,
        ),
        ("NaN or inf in 1 of 90 examples .the first is 4", {}, _with(x, np.nan), y, None),
        ("NaN or inf in 1 of 90", {}, _with(x, np.inf), y, None),
        ("every feature of X is constant", {}, np.ones_like(x), y, None),
        ("89 groups for 90 examples", {}, x, y, range(89)),
        ("all 90 examples are of one group .'ann'.", {}, x, y, ["ann"] * 90),
        ("a class with 1 of the groups", {}, x, y, np.where(y == 0, "ann", "bo")),
        ("no probe kind 'rige'; nearest valid names: 'ridge'", {"kind": "rige"}, x, y, None),
        ("penalty -1: expected one or more positive", {"penalties": [-1]}, x, y, None),
        ("rank=2: 2 classes differ in at most 1", {"kind": "rank_k", "rank": 2}, x, y, None),
        ("cv=1: inner folds need two or more", {"cv": 1}, x, y, None),
        ("cv: expected two or more folds", {"cv": [([0], [1])]}, x, y, None),
    ]
    for match, options, features, labels, groups in cases:
        with pytest.raises(InterpError, match=match):
            LinearProbe(**options).fit(features, labels, groups=groups)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LinearProbe().fit(x[:-1], y)


def _with(x: np.ndarray, value: float) -> np.ndarray:
    found = x.copy()
    found[4, 2] = value
    return found
