"""The control task of a sweep: labels that mean nothing, one a type, and what is beyond them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from interp import InterpError
from interp._estimate import FEW
from probes._probe_cells import Cell
from probes._probe_folds import units_by_class
from probes._probe_null import control_task
from probes._probe_scores import weighted_balanced_accuracy
from probes._sweep_plan import HeldOut, Plan

Task = tuple[np.ndarray, np.ndarray | None]


class Controls:
    """Control labels of each cell, drawn once for cells with the same types."""

    def __init__(
        self, plan: Plan, types: Iterable[Any] | str | None, n: int, folds: int, seed: int
    ) -> None:
        self.plan, self.n, self.folds, self.seed = plan, n, folds, seed
        self.by_token = isinstance(types, str) and types == "token"
        if isinstance(types, str) and not self.by_token:
            raise InterpError(f"types={types!r}: expected 'token' or one type an example")
        self.types = plan.units
        if types is not None and not self.by_token:
            named = [str(one) for one in (types.tolist() if hasattr(types, "tolist") else types)]
            if len(named) != len(plan.codes):
                raise InterpError(
                    f"{len(named)} types for {len(plan.codes)} examples; give one type an example"
                )
            self.types = np.unique(named, return_inverse=True)[1]

    def of(self, cell: Cell) -> Task | None:
        """Labels [row labelling], and folds unless the plan's serve."""
        if self.n == 0:
            return None
        if self.by_token and cell.tokens is None:
            raise InterpError(
                f"types='token', but {cell.name} has no tokens; pass what `interp.capture` "
                f"returns, at single positions, or one type an example"
            )
        types = cell.tokens if self.by_token else self.types[cell.rows]
        assert types is not None
        found = control_task(self.plan.codes[cell.rows], types, self.folds, self.n, self.seed)
        # Each type once: nothing to spread over folds, so the probe's own folds serve.
        alone = len(np.unique(types)) == len(types) == len(np.unique(self.plan.units[cell.rows]))
        return None if found is None else (found[0], None if alone else found[1])


def selectivity(
    found: HeldOut,
    predicted: np.ndarray,
    codes: np.ndarray,
    cell: Cell,
    plan: Plan,
    weights: np.ndarray,
) -> dict[str, float]:
    """Score on control labels, and what the true one has beyond it."""
    once = np.ones((1, len(codes)))
    true = plan.codes[cell.rows]

    def beyond(weighted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        control = np.mean(
            [
                weighted_balanced_accuracy(predicted[:, i] == codes[:, i], codes[:, i], weighted)
                for i in range(codes.shape[1])
            ],
            axis=0,
        )
        return control, weighted_balanced_accuracy(found.correct, true, weighted) - control

    control, gap = (float(value[0]) for value in beyond(once))
    groups = units_by_class(true, plan.units[cell.rows])
    low = high = float("nan")
    if groups.min() >= FEW:  # with fewer, percentiles of a difference promise too much
        low, high = np.nanpercentile(beyond(weights)[1], [2.5, 97.5])
    return {
        **{"control": control, "selectivity": gap},
        **{"selectivity_low": float(low), "selectivity_high": float(high)},
    }
