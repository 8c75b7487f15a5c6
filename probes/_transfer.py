"""`transfer`: does a probe of one checkpoint read another, and do their directions agree?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from interp import Activations, InterpError
from probes._probe_cells import Cell, Positions, cells, n_examples
from probes._probe_checks import check_finite
from probes._probe_folds import stratified, units_by_class
from probes._probe_labels import Fitted, Labels, Method
from probes._probe_scores import auroc, draws, interval, weighted_balanced_accuracy
from probes._ridge import Design
from probes._sweep_plan import Plan, plan_of
from probes._transfer_record import COSINES, ProbeTransfer

if TYPE_CHECKING:
    from probes._linear_probe import LinearProbe


def transfer(
    acts_a: Mapping[Any, Any],
    acts_b: Mapping[Any, Any],
    labels: Iterable[Any],
    probe: LinearProbe | None = None,
    *,
    groups: Iterable[Any] | None = None,
    positions: Positions = "each",
    folds: int = 5,
    splits: int = 10,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> ProbeTransfer:
    """Train on one checkpoint's activations, test on another's, in groups never seen.

    Each fold's probe of a and of b is tested as it is on the held-out examples of both, so there
    are four scores a site and position: a on a, a on b, b on a, b on b. Balanced accuracy falls
    when the threshold moves, AUROC only when the direction does.

    The directions' cosine is taken between probes fitted to disjoint halves of the groups, one
    half of a and the other of b; its null is the cosine between halves of the *same* checkpoint,
    below 1 by noise alone. `corrected` is the first over the geometric mean of the second: 1 means
    the same direction, up to noise.

    Args:
        acts_a: captures of one checkpoint, as for `sweep`.
        acts_b: the same sites, positions and prompts from another.
        labels: [example].
        probe: as for `sweep`.
        groups: [example], what must not stand on both sides.
        positions: as for `sweep`.
        folds: outer folds, 3 or more.
        splits: random halvings for the cosines.
        bootstrap: draws for the scores' intervals.
        seed: of folds, halves and bootstrap.
        progress: show a bar.

    Returns:
        ProbeTransfer, with a table of scores and one of angles. Positions that `sweep` would skip
        are left out.

    Raises:
        InterpError: as for `sweep`; captures that differ in sites, positions, examples or width.

    Examples:
        >>> acts = interp.capture(model, texts, "resid_post.*", positions="last")
        >>> other = interp.load("rl", tokenizer=model.tokenizer)
        >>> tuned = interp.capture(other, texts, "resid_post.*", positions="last")
        >>> moved = probes.transfer(acts, tuned, ["even", "odd"] * 20, splits=2)
        >>> moved.table(), moved.angles()

    Source: our specification; the correction for attenuation is Spearman's (1904).
    """
    if probe is None:
        from probes._linear_probe import LinearProbe

        probe = LinearProbe()
    n = n_examples(acts_a)
    plan = plan_of(n, labels, probe, groups, folds, seed)
    weights = draws(plan.units, bootstrap, seed)
    halves = [_halves(plan, seed + number) for number in range(splits)]
    others = cells(acts_b, positions)
    places: list[Cell] = []
    scores, cosines = [], []
    for a in tqdm(cells(acts_a, positions), desc="transfer", disable=not progress):
        b = _matching(a, next(others, None))
        if not plan.enough(a.rows) or any((cell.x == cell.x[:1]).all() for cell in (a, b)):
            continue
        places.append(a)
        codes = plan.codes[a.rows]
        labelled = Labels(codes[:, None], len(plan.names))
        sides = [_design(cell, plan, labelled) for cell in (a, b)]
        scores.append(_four(sides, labelled, plan, a, weights[:, a.rows]))
        cosines.append(_cosines(sides, labelled, plan, [half[a.rows] for half in halves]))
    if not places:
        raise InterpError(
            f"at every position prompts are all the same, or too few for {folds} folds; capture "
            f"where they differ, or use fewer folds"
        )
    return ProbeTransfer(
        site=[cell.site for cell in places],
        layer=torch.tensor([cell.layer for cell in places]),
        position=[cell.position for cell in places],
        scores=torch.tensor(np.array(scores)),
        cosines=torch.tensor(np.array(cosines)).reshape(len(places), splits, len(COSINES)),
        meta={
            "models": [
                acts.meta.get("model") if isinstance(acts, Activations) else None
                for acts in (acts_a, acts_b)
            ],
            **{"probe": plan.method.kind, "standardize": plan.standardize, "folds": folds},
            **{"splits": splits, "seed": seed, "labels": [str(name) for name in plan.names]},
        },
    )


def _matching(a: Cell, b: Cell | None) -> Cell:
    if (
        b is None
        or (b.site, b.position) != (a.site, a.position)
        or not np.array_equal(b.rows, a.rows)
        or b.x.shape != a.x.shape
    ):
        there = "nothing" if b is None else f"{b.name} of shape {list(b.x.shape)}"
        raise InterpError(
            f"the first checkpoint has {a.name} of shape {list(a.x.shape)} and the second {there} "
            f"in its place; capture the same sites and positions of the same prompts, in one order"
        )
    return b


def _design(cell: Cell, plan: Plan, labels: Labels) -> Design:
    check_finite(cell.x, cell.name)
    folds = plan.folds[cell.rows]
    return Design(cell.x, folds, labels.targets, standardize=plan.standardize)


def _four(
    sides: list[Design], labels: Labels, plan: Plan, cell: Cell, weights: np.ndarray
) -> list[list[float]]:
    """Of a on a, a on b, b on a, b on b: score, low, high, auroc, low, high."""
    from probes._linear_probe import fit_fold

    codes, folds = plan.codes[cell.rows], plan.folds[cell.rows]
    groups = units_by_class(codes, plan.units[cell.rows])
    n_groups = len(np.unique(plan.units[cell.rows]))
    found = []
    for trained in sides:
        fits: list[Fitted] = [
            fit_fold(trained, labels, plan.method, fold) for fold in range(len(trained.rows))
        ]
        for tested in sides:
            ahead = np.empty((len(codes), labels.width))
            for fit, rows in zip(fits, tested.rows, strict=True):
                ahead[rows] = (tested.x[rows] + tested.origin) @ fit.coef.T + fit.intercept
            predicted = labels.predicted(ahead[:, None])[:, 0]
            once, row = np.ones((1, len(codes))), []
            correct = predicted == codes
            for pairs in (False, True):
                values = [
                    auroc(ahead, codes, folds, weighted)
                    if pairs
                    else weighted_balanced_accuracy(correct, codes, weighted)
                    for weighted in (once, weights)
                ]
                value = float(values[0][0])
                row += [value]
                row += interval(value, values[1], groups, n_groups, pairs=pairs)
            found.append(row)
    return found


def _halves(plan: Plan, seed: int) -> np.ndarray:
    """0 or 1 for each example, groups whole, classes even."""
    return stratified(plan.codes, plan.groups, 2, seed)


def _cosines(
    sides: list[Design], labels: Labels, plan: Plan, halves: list[np.ndarray]
) -> list[list[float]]:
    """Of each halving: across checkpoints, within a, within b; means over classes."""
    from probes._linear_probe import fit_fold

    # The penalty that the whole data would choose, so that halves differ by noise only.
    chosen = []
    for side in sides:
        fitted = fit_fold(side, labels, plan.method)
        chosen.append(plan.method.penalties[fitted.chosen[0]])
    found = []
    for half in halves:
        directions = [
            [
                _direction(side, labels, plan, penalty, np.flatnonzero(half == part))
                for part in (0, 1)
            ]
            for side, penalty in zip(sides, chosen, strict=True)
        ]
        (a0, a1), (b0, b1) = directions
        across = (_cosine(a0, b1) + _cosine(a1, b0)) / 2
        found.append([across, _cosine(a0, a1), _cosine(b0, b1)])
    return found


def _direction(
    side: Design, labels: Labels, plan: Plan, penalty: float, rows: np.ndarray
) -> np.ndarray:
    """Weights of raw features [width d] fitted to some rows at one penalty."""
    from probes._linear_probe import fit_once

    part = Labels(labels.codes[rows], labels.classes)
    design = Design(
        side.x[rows], np.zeros(len(rows), dtype=int), part.targets, standardize=plan.standardize
    )
    return fit_once(design, part, Method(plan.method.kind, (penalty,), plan.method.rank))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, np.finfo(float).tiny)).mean())
