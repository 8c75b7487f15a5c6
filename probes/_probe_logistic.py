"""Logistic probes, by scikit-learn: one labelling, split and penalty at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from probes._probe_labels import Fitted, Labels, Method
from probes._ridge import Base, Design


def fit_logistic(
    design: Design, labels: Labels, method: Method, test_fold: int | None = None
) -> Fitted:
    """As `fit_without`, with LogisticRegression(C=1/penalty) on features standardised once."""
    base = Base(design, () if test_fold is None else (test_fold,))
    split, inner = base.split(), design.kept(base.excluded)
    scaled = split.scaled(np.arange(len(design.x)))
    n_labellings, width = labels.codes.shape[1], labels.width
    scores = np.empty((len(method.penalties), len(inner), n_labellings))
    kept: list[list[np.ndarray]] = [[] for _ in method.penalties]
    for place, fold in enumerate(inner):
        rows = design.rows[fold]
        train = np.concatenate([design.rows[other] for other in inner if other != fold])
        for index, penalty in enumerate(method.penalties):
            found = np.stack(
                [
                    _scores(_fit(scaled[train], labels, number, train, penalty), scaled[rows])
                    for number in range(n_labellings)
                ],
                axis=1,
            )
            scores[index, place] = labels.balanced_accuracy(found, rows)
            kept[index].append(found[:, 0])
    means = np.stack([np.average(scores[..., i], axis=1) for i in range(n_labellings)], axis=1)
    chosen = means.argmax(axis=0)
    train = split.train
    models = [
        _fit(scaled[train], labels, number, train, method.penalties[index])
        for number, index in enumerate(chosen)
    ]
    test = None
    if test_fold is not None:
        rows = design.rows[test_fold]
        test = np.stack([_scores(model, scaled[rows]) for model in models], axis=1)
    weights, offset = models[0]
    coef = weights / base.scale
    return Fitted(
        chosen=chosen,
        inner_scores=scores,
        inner_rows=np.concatenate([design.rows[fold] for fold in inner]),
        inner_decisions=np.concatenate(kept[chosen[0]]).reshape(-1, width),
        test_decisions=test,
        coef=coef,
        intercept=offset - coef @ (design.origin + split.mean),
        directions=coef,
    )


def fit_logistic_once(design: Design, labels: Labels, method: Method) -> np.ndarray:
    """Raw weights [width d] of the first labelling on all rows, at the method's one penalty."""
    base = Base(design)
    rows = np.arange(len(design.x))
    return _fit(base.split().scaled(rows), labels, 0, rows, method.penalties[0])[0] / base.scale


def _fit(x: np.ndarray, labels: Labels, number: int, train: np.ndarray, penalty: float) -> Any:
    """Weights [width d] and intercepts [width] of one labelling."""
    from sklearn.linear_model import LogisticRegression

    codes = labels.codes[train, number]
    model = LogisticRegression(C=1 / penalty, max_iter=5000).fit(x, codes)
    if len(model.classes_) == labels.classes:
        return model.coef_, model.intercept_
    # A class that these rows lack (under a shuffled labelling) can never be predicted.
    weights = np.zeros((labels.width, x.shape[1]))
    offset = np.full(labels.width, -1e9)
    if len(model.classes_) == 2:
        weights[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        offset[model.classes_] = np.array([-model.intercept_[0], model.intercept_[0]]) / 2
    else:
        weights[model.classes_], offset[model.classes_] = model.coef_, model.intercept_
    return weights, offset


def _scores(model: Any, x: np.ndarray) -> np.ndarray:
    return x @ model[0].T + model[1]
