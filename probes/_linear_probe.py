"""`LinearProbe`: a linear classifier of activations whose direction can be used for steering."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from interp import InterpError
from probes._calibration import softmax, temperature, two_sided
from probes._probe_checks import (
    check_classes,
    check_finite,
    check_kind,
    check_varies,
    checked_penalties,
    checked_rank,
)
from probes._probe_fit import fit_once as fit_closed_once
from probes._probe_fit import fit_without
from probes._probe_folds import inner_folds
from probes._probe_labels import Fitted, Labels, Method
from probes._probe_logistic import fit_logistic, fit_logistic_once
from probes._ridge import Design


class LinearProbe(ClassifierMixin, BaseEstimator):
    """A linear classifier `score = coef . x + intercept`, its penalty chosen within the data given.

    Features are standardised on the training data, the penalty is chosen by the mean balanced
    accuracy over inner folds (grouped, where groups are given), and weights are returned for the
    features as they came: `coef = w_standardised / sigma`, so that `direction` is in activation
    units.

    - `"ridge"`: least squares on -1 and 1; scikit-learn's RidgeClassifierCV(cv=folds) after a
      StandardScaler, in closed form.
    - `"logistic"`: scikit-learn's LogisticRegression(C=1/penalty).
    - `"mean_difference"`: the nearest class mean; with two classes and `standardize=False` its
      direction is the difference of the class means itself.
    - `"rank_k"`: ridge through its `rank` most discriminating directions (penalised discriminant
      analysis; the canonical variates of LDA as the penalty goes to 0). At most classes - 1.

    Classes are not reweighted: of classes of very different size the larger is favoured.

    Args:
        kind: one of the above.
        penalties: candidates, in the order in which ties are broken; one alone is taken as it is.
            By default 1e5 to 0.1 in half decades, for logistic 1e3 to 0.01 in decades.
        rank: directions of rank_k; by default classes - 1, which is ridge.
        standardize: divide features by their standard deviation on the training data.
        cv: inner folds (fewer where a class has fewer members), or a scikit-learn splitter whose
            test folds cover each example once.
        seed: of the inner folds.

    Attributes:
        coef_: [1 d] for two classes, else [class d]; score per unit of activation.
        intercept_: [1] or [class].
        classes_: labels, sorted.
        penalty_: the penalty chosen; NaN for mean_difference.
        inner_score_: its mean balanced accuracy over the inner folds.
        temperature_: factor of the scores in `predict_proba`, from the inner folds.

    Examples:
        >>> acts = interp.capture(model, texts, "resid_post.3", positions="last")
        >>> x, y = acts["resid_post.3"][:, 0], ["even", "odd"] * 20
        >>> probe = probes.LinearProbe().fit(x, y, groups=range(40))
        >>> edit = iv.steer("resid_post.3", probe.shift(2.0))  # the score rises by 2
        >>> edit = iv.steer("resid_post.3", probe.direction)  # by |direction|^2

    Source: Alain and Bengio 2016 (arXiv 1610.01644) for probing, Marks and Tegmark 2023 (arXiv
    2310.06824) for the mean difference. Dividing by sigma and the grouped inner folds are ours.
    """

    def __init__(
        self,
        kind: str = "ridge",
        *,
        penalties: Sequence[int | float] | np.ndarray | None = None,
        rank: int | None = None,
        standardize: bool = True,
        cv: Any = 5,
        seed: int = 0,
    ) -> None:
        self.kind = kind
        self.penalties = penalties
        self.rank = rank
        self.standardize = standardize
        self.cv = cv
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Iterable[Any] | None = None) -> LinearProbe:
        """Choose the penalty, fit on all examples, return self.

        Args:
            X: [example d], a tensor or an array.
            y: [example] labels, of two classes or more.
            groups: [example], such as the entity; inner folds never split a group.

        Raises:
            InterpError: one class only, NaN or inf, too few examples or groups for inner folds,
                every feature constant, an unknown kind, a rank beyond classes - 1.
        """
        X, y = validate_data(
            self, plain(X), plain(y), dtype=[np.float64, np.float32], ensure_all_finite=False
        )
        check_finite(X)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        check_classes(self.classes_.tolist())
        method = method_of(self, len(self.classes_))
        check_varies(X)
        folds = inner_folds(self.cv, X, codes, groups, self.seed)
        labels = Labels(codes[:, None], len(self.classes_))
        design = Design(X, folds, labels.targets, standardize=self.standardize)
        fitted = fit_fold(design, labels, method)
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self._directions = fitted.directions
        self.penalty_ = float(method.penalties[fitted.chosen[0]])
        self.inner_score_ = float(fitted.inner_scores[fitted.chosen[0], :, 0].mean())
        scores = two_sided(fitted.inner_decisions)
        # A logistic probe is fitted to likelihood already.
        own = self.kind == "logistic"
        self.temperature_ = 1.0 if own else temperature(scores, codes[fitted.inner_rows])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: [example] for two classes (positive means the second), else [example class]."""
        check_is_fitted(self)
        X = validate_data(
            self, plain(X), dtype=[np.float64, np.float32], reset=False, ensure_all_finite=False
        )
        check_finite(X)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.coef_) == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The label with the highest score: [example]."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the scores times `temperature_`: [example class]."""
        scores = self.decision_function(X)
        scores = two_sided(scores[:, None] if scores.ndim == 1 else scores)
        return softmax(self.temperature_ * scores)

    @property
    def direction(self) -> Tensor:
        """The probe's direction, in score per unit of activation: float32.

        [d] for two classes (from the first towards the second), [class d] for more, [rank d] for
        rank_k. Standardised weights divided by sigma: adding `t * direction` to an activation
        raises a two-class score by `t * |direction|^2`.
        """
        check_is_fitted(self)
        found = torch.from_numpy(self._directions).float()
        return found[0] if len(self.classes_) == 2 else found

    def shift(self, score: int | float = 1.0, label: Any = None) -> Float[Tensor, " d_model"]:
        """The shortest change of an activation that raises the score by `score`, for `iv.steer`.

        `score * coef / |coef|^2`, in units of activation.

        Args:
            score: how far; 2 takes a ridge probe from the first class' target to the second's.
            label: whose score, where there are more than two classes.

        Raises:
            InterpError: a label that the probe does not know, or none given among several.
        """
        check_is_fitted(self)
        coef = self.coef_[0]
        if len(self.classes_) == 2 and label is not None:
            coef = coef if self.classes_[1] == label else -coef
        if len(self.classes_) > 2 or label is not None:
            known = self.classes_.tolist()
            if label not in known:
                names = ", ".join(map(repr, known[:20]))
                raise InterpError(f"label {label!r}: name one of the probe's classes, {names}")
            if len(known) > 2:
                coef = self.coef_[known.index(label)]
        return torch.from_numpy(score * coef / np.square(coef).sum()).float()


def method_of(probe: LinearProbe, classes: int) -> Method:
    """A probe's kind with its penalties and rank checked.

    Raises:
        InterpError: an unknown kind, a penalty that is not positive, a rank beyond classes - 1.
    """
    kind = check_kind(probe.kind)
    penalties = checked_penalties(probe.penalties, kind)
    return Method(kind, penalties, checked_rank(probe.rank, kind, classes))


def fit_fold(
    design: Design, labels: Labels, method: Method, test_fold: int | None = None
) -> Fitted:
    """`fit_without` of the method's kind."""
    fit = fit_logistic if method.kind == "logistic" else fit_without
    return fit(design, labels, method, test_fold)


def fit_once(design: Design, labels: Labels, method: Method) -> np.ndarray:
    """Raw weights [width d] on all rows at the method's one penalty."""
    fit = fit_logistic_once if method.kind == "logistic" else fit_closed_once
    return fit(design, labels, method)


def plain(values: Any) -> Any:
    """A tensor as an array, bf16 included; anything else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    half = values.is_floating_point() and values.dtype.itemsize < 4
    return (values.float() if half else values).numpy()
