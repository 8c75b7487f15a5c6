"""What a probe cannot be fitted on, said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp import InterpError
from interp._errors import nearest

KINDS = ("ridge", "logistic", "mean_difference", "rank_k")
# Of standardised features, strongest first, so that of equal scores the simpler probe wins.
PENALTIES = tuple(float(value) for value in np.logspace(5, -1, 13))
LOGISTIC_PENALTIES = tuple(float(value) for value in np.logspace(3, -2, 6))


def check_kind(kind: Any) -> str:
    """One of `KINDS`.

    Raises:
        InterpError: naming the nearest.
    """
    if kind not in KINDS:
        raise InterpError(f"no probe kind {kind!r}; {nearest(str(kind), KINDS)}")
    return str(kind)


def check_finite(x: np.ndarray, where: str = "X") -> None:
    """Refuse NaN and infinity, saying how many examples hold them.

    Raises:
        InterpError: there are some.
    """
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        raise InterpError(
            f"{where} has NaN or inf in {bad.sum()} of {len(x)} examples (the first is {first}); "
            f"leave them out, or capture in float32 if half precision overflowed"
        )


def check_classes(names: Sequence[Any]) -> None:
    """Refuse a single class.

    Raises:
        InterpError: fewer than two.
    """
    if len(names) < 2:
        raise InterpError(
            f"1 class only: every example has the label {names[0]!r}, and a probe needs two or more"
        )


def check_varies(x: np.ndarray, where: str = "X") -> None:
    """Refuse features that are all constant; single constant ones do no harm.

    Raises:
        InterpError: no feature differs between examples.
    """
    if (x == x[:1]).all():
        raise InterpError(
            f"every feature of {where} is constant over the {len(x)} examples, so nothing can be "
            f"read from it; is this a position at which all prompts are the same?"
        )


def checked_penalties(
    penalties: Sequence[int | float] | np.ndarray | None, kind: str
) -> tuple[float, ...]:
    """Those given, or the kind's own; `mean_difference` has none.

    Raises:
        InterpError: none, or one that is not positive and finite.
    """
    if kind == "mean_difference":
        return (float("nan"),)
    if penalties is None:
        return LOGISTIC_PENALTIES if kind == "logistic" else PENALTIES
    found = tuple(float(penalty) for penalty in np.atleast_1d(np.asarray(penalties, dtype=float)))
    bad = [penalty for penalty in found if not (np.isfinite(penalty) and penalty > 0)]
    if bad or not found:
        given = f"penalty {bad[0]:g}" if bad else "no penalties"
        raise InterpError(f"{given}: expected one or more positive numbers, such as [1000, 10]")
    return found


def checked_rank(rank: int | None, kind: str, classes: int) -> int:
    """The rank, by default classes - 1.

    Raises:
        InterpError: below 1, or more directions than `classes` can differ in.
    """
    if rank is None:
        return classes - 1
    if kind == "rank_k" and not 1 <= rank <= classes - 1:
        raise InterpError(
            f"rank={rank}: {classes} classes differ in at most {classes - 1} linear directions; "
            f"expected 1 to {classes - 1}"
        )
    return rank
