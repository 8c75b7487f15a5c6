"""Ridge probes of every layer, nested cross-validation, beside scikit-learn's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import probes
from benchmarks._measure import Contestant, Held, Timing, alternate, disagreement
from benchmarks._report import Report, Section, row_of
from probes._linear_probe import LinearProbe
from probes._probe_checks import PENALTIES
from probes._probe_folds import outer_folds

SCIKIT = "scikit-learn: RidgeClassifierCV(cv=folds), a layer at a time"
FOLD = "scikit-learn: RidgeClassifierCV(cv=folds)"
FOLDS, ROWS_A_GROUP = 5, 5
NOTES = """\
Activations are random, with a power-law spectrum and one planted direction; two classes; groups of
five rows, never split. The first section is a sweep of one layer by nested cross-validation: 5
outer folds, in each the penalty chosen among 13 (1e5 to 0.1) by the mean balanced accuracy over the
other 4 folds, features standardised on the outer training rows. scikit-learn's loop is a pipeline
of StandardScaler and RidgeClassifierCV with those folds, in float64. 'leave-one-out' is
RidgeClassifierCV's own fast path, which chooses by other folds (single rows of the same group) and
so need not predict the same. probes.sweep gives AUROC, calibration and 1000 group-bootstrap draws
besides; the last contestant adds 200 shuffled labellings and 5 control labellings with folds of
their own, each with nested choice of the penalty. Layers are read one after the other, and
everyone's time is proportional to their number.

The second section is one outer fold of one layer at 5,000 examples and d = 2048, run once (its
interval says nothing): the fit on the other four folds, with the choice of the penalty. A sweep
shares its Gram matrices between outer folds as well, which this leaves out. Below it stands the
whole layer, all five outer folds, in multiples of scikit-learn's one.

The last column is 1 where any held-out prediction differs from the first contestant's. Target: at
most a tenth of scikit-learn's time."""


def data(layers: int, n: int, d: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Activations in float32, labels, groups."""
    rng = np.random.default_rng(0)
    groups = np.arange(n) // ROWS_A_GROUP
    y = (rng.permutation(groups.max() + 1) % 2)[groups]
    acts = {}
    for layer in range(layers):
        spectrum = np.arange(1, d + 1) ** -0.5
        x = rng.standard_normal((n, d), dtype=np.float32) * spectrum.astype(np.float32)
        x[:, d // 4] += 1.5 * spectrum[d // 4] * (y - 0.5)
        mix = rng.standard_normal((d, 8), dtype=np.float32)  # features correlate
        acts[f"resid_post.{layer}"] = x + (x @ mix) @ mix.T / d
    return acts, y, groups


def contestants(acts: dict[str, np.ndarray], y: np.ndarray, groups: np.ndarray) -> list[Contestant]:
    """Everyone, the reference first; predictions of every layer, as 0 and 1."""
    folds = outer_folds(y, groups, FOLDS, 0, [0, 1])
    double = {site: x.astype(np.float64) for site, x in acts.items()}
    controls = partial(_ours, acts, y, groups, permutations=200, control_labels=5)
    return [
        Contestant(SCIKIT, lambda: _loop(double, y, folds, inner=True)),
        Contestant("scikit-learn, in float32", lambda: _loop(acts, y, folds, inner=True)),
        Contestant("scikit-learn, leave-one-out", lambda: _loop(double, y, folds, inner=False)),
        Contestant("probes.sweep", lambda: _ours(acts, y, groups), target=(0.1, 0.1)),
        Contestant("probes.sweep with its controls", controls),
    ]


def _loop(acts: dict[str, np.ndarray], y: np.ndarray, folds: np.ndarray, *, inner: bool) -> Held:
    from sklearn.linear_model import RidgeClassifierCV

    predicted = np.empty((len(acts), len(y)))
    for layer, x in enumerate(acts.values()):
        for fold in range(FOLDS):
            train = folds != fold
            model = _pipeline(folds[train])
            if not inner:
                model.set_params(ridgeclassifiercv=RidgeClassifierCV(PENALTIES))
            predicted[layer, ~train] = model.fit(x[train], y[train]).predict(x[~train])
    return Held({"predictions": torch.from_numpy(predicted)})


def _ours(
    acts: dict[str, np.ndarray],
    y: np.ndarray,
    groups: np.ndarray,
    permutations: int = 0,
    control_labels: int = 0,
) -> Held:
    fit = probes.sweep(
        acts,
        y,
        LinearProbe(),
        groups=groups,
        folds=FOLDS,
        permutations=permutations,
        control_labels=control_labels,
        progress=False,
    )
    right = fit.correct.bool()
    labels = torch.from_numpy(y).expand_as(right)
    return Held({"predictions": torch.where(right, labels, 1 - labels).double()})


def one_fold(acts: dict[str, np.ndarray], y: np.ndarray, groups: np.ndarray) -> list[Contestant]:
    """The first layer without its first fold; held-out predictions as 0 and 1."""
    folds = outer_folds(y, groups, FOLDS, 0, [0, 1])
    (x, *_), train = acts.values(), folds != 0
    double = x.astype(np.float64)

    def theirs() -> Held:
        fitted = _pipeline(folds[train]).fit(double[train], y[train])
        return Held({"predictions": torch.from_numpy(fitted.predict(double[~train]))})

    def ours() -> Held:
        probe = LinearProbe(cv=_predefined(folds[train])).fit(x[train], y[train])
        return Held({"predictions": torch.from_numpy(probe.predict(x[~train]))})

    def whole() -> Held:
        _ours({"resid_post.0": x}, y, groups)
        return Held()

    return [
        Contestant(FOLD, theirs),
        Contestant("LinearProbe.fit", ours, target=(0.1, 0.1)),
        Contestant("probes.sweep, all five outer folds", whole),
    ]


def _predefined(folds: np.ndarray) -> Any:
    from sklearn.model_selection import PredefinedSplit

    return PredefinedSplit(folds)


def _pipeline(folds: np.ndarray) -> Any:
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inner = _predefined(folds)
    ridge = RidgeClassifierCV(PENALTIES, cv=inner, scoring="balanced_accuracy")
    return make_pipeline(StandardScaler(), ridge)


def once(everyone: list[Contestant]) -> tuple[Timing, dict[str, float]]:
    """One call each, for shapes at which a call takes minutes: times and disagreement."""
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def timed(one: Contestant, call: Callable[[], Held]) -> Held:
        began, spent = time.perf_counter(), time.process_time()
        held = call()
        wall[one.name] = [time.perf_counter() - began]
        cpu[one.name] = [time.process_time() - spent]
        return held

    kept = [Contestant(one.name, partial(timed, one, one.call)) for one in everyone]
    return Timing(wall, cpu), disagreement(kept)


def run(*, quick: bool, seconds: float) -> Report:
    """A sweep in rounds, and one outer fold of the large shape once."""
    report = Report("probe", NOTES)
    n, d = (120, 24) if quick else (1250, 512)
    everyone = contestants(*data(1, n, d))
    gaps = disagreement(everyone)
    timing = alternate(everyone, seconds=seconds, rounds=(3, 3 if quick else 20))
    report.sections.append(_section(f"a sweep of {n} examples, d = {d}", everyone, timing, gaps))
    n, d = (120, 24) if quick else (5000, 2048)
    everyone = one_fold(*data(1, n, d))
    title = f"one outer fold of {n} examples, d = {d}"
    report.sections.append(_section(title, everyone, *once(everyone)))
    return report


def _section(
    title: str, everyone: list[Contestant], timing: Timing, gaps: dict[str, float]
) -> Section:
    reference = everyone[0].name
    section = Section(title, reference, timing)
    for one in everyone:
        row: dict[str, Any] = row_of(one, timing, reference)
        section.rows.append(row | {"max_difference": gaps.get(one.name)})
    return section
