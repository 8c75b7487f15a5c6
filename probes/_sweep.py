"""`sweep`: a linear probe at every site and position, with its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from interp import Activations, InterpError
from interp._record import provenance
from probes._calibration import brier, expected_calibration_error
from probes._probe_cells import Cell, Positions, cells, n_examples
from probes._probe_checks import check_varies
from probes._probe_folds import units_by_class
from probes._probe_null import one_label_a_group, shuffled
from probes._probe_scores import auroc, draws, interval, weighted_balanced_accuracy
from probes._sweep_control import Controls, selectivity
from probes._sweep_plan import HeldOut, Plan, held_out, plan_of
from probes._sweep_record import MEASURES, ProbeSweep

if TYPE_CHECKING:
    from probes._linear_probe import LinearProbe


def sweep(
    acts: Mapping[Any, Any],
    labels: Iterable[Any],
    probe: LinearProbe | None = None,
    *,
    groups: Iterable[Any] | None = None,
    types: Iterable[Any] | str | None = None,
    positions: Positions = "each",
    folds: int = 5,
    seed: int = 0,
    permutations: int | None = None,
    control_labels: int = 5,
    bootstrap: int = 1000,
    control_acts: Mapping[Any, Any] | None = None,
    progress: bool = True,
) -> ProbeSweep:
    """How well labels can be read linearly at each site and position, in groups never seen.

    The score is the balanced accuracy of out-of-fold predictions: folds are stratified and hold
    whole groups, the probe is fitted without one fold, and its penalty is chosen by the mean
    balanced accuracy over the folds that remain, each left out in turn. Beside it stand AUROC
    (pairs within a fold), calibration, a bootstrap interval over groups, the score on control
    labels (random, one a type, with a type's rows on both sides of the split) and a permutation
    null through all of the above; its maximum over all cells corrects for looking at many.

    A closed-form probe is fitted to all labellings at once; sites are read one after the other,
    and each fold's Gram matrix is computed once.

    Args:
        acts: what `interp.capture` returns, or a mapping from site (any name) to [example d] or
            [example pos ...].
        labels: [example], two classes or more.
        probe: its kind, penalties, rank and `standardize` are used (ridge by default); the inner
            folds are the outer ones that remain.
        groups: [example], what must not stand on both sides, such as the entity.
        types: [example], what gets one control label each; by default the groups. `"token"`: the
            token at the position, as in the source (captures only).
        positions: `"each"` captured one, the `"mean"` or the `"last"` of the real ones, or a list
            of captured ones. A position that too few prompts reach for the folds, or at which all
            prompts are the same, is skipped and named in `meta["skipped"]`.
        folds: outer folds, 3 or more.
        seed: of folds, shuffles, control labels and bootstrap.
        permutations: shuffled labellings; by default 200, but for logistic probes, which are
            fitted to them one by one, 0 (p is then NaN).
        control_labels: control labellings, whose scores are averaged; 0 leaves the control out.
        bootstrap: draws.
        control_acts: the same captures from another model, such as `probes.random_twin(model)`.
        progress: show a bar.

    Returns:
        ProbeSweep, whose table has one row a site and position.

    Raises:
        InterpError: labels or groups of another length, a single class or group, a class in fewer
            examples or groups than folds, NaN activations, features that are constant everywhere,
            control activations that lack a cell.

    Examples:
        >>> acts = interp.capture(model, texts, "resid_post.*", positions="last")
        >>> labels = ["even", "odd"] * 20
        >>> fit = probes.sweep(acts, labels, groups=range(40), permutations=20)
        >>> best = fit.table()[["site", "position", "score", "low", "high", "control", "p_max"]]

    Source: Hewitt and Liang 2019 (arXiv 1909.03368) for control tasks and selectivity, whose types
    are words; Westfall and Young 1993 for the maximum. Folds and intervals are ours.
    """
    if probe is None:
        from probes._linear_probe import LinearProbe

        probe = LinearProbe()
    n = n_examples(acts)
    plan = plan_of(n, labels, probe, groups, folds, seed)
    if permutations is None:
        permutations = 0 if plan.method.kind == "logistic" else 200
    null = shuffled(plan.codes, plan.groups, plan.folds, permutations, seed)
    labellings = np.concatenate([plan.codes[:, None], null], axis=1)
    controls = Controls(plan, types, control_labels, folds, seed)
    weights = draws(plan.units, bootstrap, seed)
    others = None if control_acts is None else cells(control_acts, positions)
    rows: list[dict[str, Any]] = []
    nulls, correct, probability = [], [], []
    skipped: list[tuple[str, InterpError]] = []
    for cell in tqdm(cells(acts, positions), desc="probes", disable=not progress):
        other = None if others is None else _same(cell, next(others, None), control_acts)
        problem = _unfit(cell, plan, folds)
        if problem is not None:
            skipped.append((cell.name, problem))
            continue
        task = controls.of(cell)
        mine = labellings[cell.rows]
        beyond = task[0] if task is not None and task[1] is None else mine[:, :0]
        found = held_out(cell, plan, np.concatenate([mine, beyond], axis=1))
        row = {"site": cell.site, "layer": cell.layer, "position": cell.position}
        row |= _scores(found, cell, plan, weights[:, cell.rows])
        if task is not None:
            codes, spread = task
            predicted = found.predicted[:, mine.shape[1] :]
            if spread is not None:
                predicted = held_out(cell, plan, codes, spread).predicted
            row |= selectivity(found, predicted, codes, cell, plan, weights[:, cell.rows])
        if other is not None:
            beside = held_out(other, plan, mine[:, :1])
            row |= _scores(beside, other, plan, weights[:, cell.rows], suffix="random_init")
        rows.append(row)
        nulls.append(found.balanced[1 : mine.shape[1]])
        correct.append(_spread(found.correct, cell, n))
        own = found.probabilities[np.arange(len(cell.rows)), plan.codes[cell.rows]]
        probability.append(_spread(own, cell, n))
    if not rows:
        raise skipped[0][1]
    values = {name: [row.get(name, float("nan")) for row in rows] for name in MEASURES}
    return ProbeSweep(
        site=[row["site"] for row in rows],
        layer=torch.tensor([row["layer"] for row in rows]),
        position=[row["position"] for row in rows],
        **{name: torch.tensor(column, dtype=torch.float64) for name, column in values.items()},
        null=torch.from_numpy(np.stack(nulls, axis=1)),
        correct=torch.from_numpy(np.stack(correct)),
        probability=torch.from_numpy(np.stack(probability)),
        meta={
            **(acts.meta if isinstance(acts, Activations) else {}),
            **{
                "probe": plan.method.kind,
                "rank": plan.method.rank,
                "standardize": plan.standardize,
            },
            **{"penalties": list(plan.method.penalties), "labels": [str(x) for x in plan.names]},
            **{"folds": folds, "seed": seed, "permutations": permutations, "bootstrap": bootstrap},
            "shuffled": "between groups"
            if one_label_a_group(plan.codes, plan.units)
            else "within groups",
            "skipped": [name for name, _ in skipped],
            "versions": provenance()["versions"],
        },
    )


def _unfit(cell: Cell, plan: Plan, folds: int) -> InterpError | None:
    """Why nothing can be fitted here, though perhaps at other positions."""
    if not plan.enough(cell.rows):
        return InterpError(
            f"only {len(cell.rows)} of {len(plan.codes)} examples reach {cell.name}, too few of "
            f"some class for {folds} folds; use fewer folds or positions='last'"
        )
    try:
        check_varies(cell.x, cell.name)
    except InterpError as error:
        return error
    return None


def _scores(
    found: HeldOut, cell: Cell, plan: Plan, weights: np.ndarray, suffix: str = ""
) -> dict[str, float]:
    """The first labelling's score with interval; without a suffix all that stands beside it."""
    codes, folds = plan.codes[cell.rows], plan.folds[cell.rows]
    units = plan.units[cell.rows]
    groups = units_by_class(codes, units)
    n_groups = len(np.unique(units))
    score = float(found.balanced[0])
    drawn = weighted_balanced_accuracy(found.correct, codes, weights)
    low, high = interval(score, drawn, groups, n_groups, pairs=False)
    if suffix:
        return {suffix: score, f"{suffix}_low": low, f"{suffix}_high": high}
    area = float(auroc(found.scores, codes, folds, np.ones((1, len(codes))))[0])
    areas = auroc(found.scores, codes, folds, weights)
    area_low, area_high = interval(area, areas, groups, n_groups, pairs=True)
    return {
        **{"score": score, "low": low, "high": high},
        **{"auroc": area, "auroc_low": area_low, "auroc_high": area_high},
        "ece": expected_calibration_error(found.probabilities, codes),
        "brier": brier(found.probabilities, codes),
        **{"penalty": found.penalty, "n": float(len(codes)), "groups": float(n_groups)},
    }


def _same(cell: Cell, other: Cell | None, given: Any) -> Cell:
    """The control model's cell, refused unless it is the same place and the same examples."""
    if (
        other is None
        or (other.site, other.position) != (cell.site, cell.position)
        or not np.array_equal(other.rows, cell.rows)
    ):
        there = ", ".join(map(str, list(given)[:5]))
        raise InterpError(
            f"control_acts lack {cell.name} for the same {len(cell.rows)} examples (they hold "
            f"{there}); capture the same sites and positions of the same prompts, in that order"
        )
    return other


def _spread(values: np.ndarray, cell: Cell, n: int) -> np.ndarray:
    """[example], NaN where the cell has none."""
    out = np.full(n, np.nan)
    out[cell.rows] = values
    return out
