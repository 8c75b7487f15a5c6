"""One matrix measured: a pure function of two checkpoints, a name and options."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from interp._weights.cheap import measure_cheap
from interp._weights.checkpoint import Checkpoint, open_checkpoint
from interp._weights.measurement import Measurement, job_key
from interp._weights.options import Options
from interp._weights.overlap import measure_overlap
from interp._weights.pair import Side
from interp._weights.plan import sides, vocabulary_change
from interp._weights.spectral import decompose, measure_spectral, subspace_rank

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One matrix of one pair of checkpoints, given as folders, or opened when they are modules.

    `measure(task)` depends on nothing else, so with folders it may run anywhere that sees them.
    """

    base: str | Checkpoint
    tuned: str | Checkpoint
    tensor: str
    options: Options
    nbytes: int = 0

    @property
    def on_disk(self) -> bool:
        """Whether another process, or a later one, can do this task."""
        return isinstance(self.base, str) and isinstance(self.tuned, str)

    def key(self) -> str:
        """A name for the result that changes with anything that could change it."""
        sources = [s for s in (self.base, self.tuned) if isinstance(s, str)]
        return job_key(sources, self.tensor, asdict(self.options))


def measure(task: Task) -> Measurement:
    """Run one task: the cheap tier, or the spectral and overlap tiers together."""
    base = open_checkpoint(task.base)
    tuned = open_checkpoint(task.tuned, task.base)
    first, second = sides(base, tuned, task.tensor)
    if "cheap" not in task.options.tiers:
        return _heavy(first, second, task)
    row, heads, vectors = measure_cheap(first, second, task.options)
    part = first.part
    names: Row = {
        "tensor": task.tensor,
        "layer": part.layer,
        "module": "head" if task.tensor == "head.weight" else part.module,
        "head": None,
        "expert": part.expert,
    }
    row = {**names, **row, "dtype_base": _dtype(first), "dtype": _dtype(second)}
    row["rows_added"] = vocabulary_change(base, tuned, task.tensor)
    return Measurement(row, [{**names, **head} for head in heads], vectors)


def added_rows(task: Task) -> Row | None:
    """What a grown vocabulary added, as a row of its own: there is nothing to compare it with."""
    base = open_checkpoint(task.base)
    tuned = open_checkpoint(task.tuned, task.base)
    added = vocabulary_change(base, tuned, task.tensor)
    if added <= 0:
        return None
    side = Side(tuned, tuned.parts.get(task.tensor) or tuned.parts["embed.weight"])
    rows = side.matrix()[-added:]
    return {
        "tensor": f"{task.tensor}[{len(side.matrix()) - added}:]",
        "layer": None,
        "module": f"{side.part.module}_added",
        "head": None,
        "expert": None,
        "numel": rows.numel(),
        "norm": math.nan,
        "norm_tuned": float(rows.double().norm()),
        "rows_added": added,
        "dtype": _dtype(side),
    }


def spectral_names(base: str | Checkpoint, names: list[str], options: Options) -> list[str]:
    """The matrices worth decomposing: of the blocks, and with `vocabulary` of both ends."""
    parts = open_checkpoint(base).parts
    ends = ("embed", "head") if options.vocabulary else ()
    kept = [parts[n] for n in names if n in parts]
    return [
        part.tensor
        for part in kept
        if min(part.shape) >= 2
        and part.tensor.endswith(".weight")
        and part.module not in ("norm", "conv1d")
        and (part.layer is not None or part.module in ends)
    ]


def _heavy(first: Side, second: Side, task: Task) -> Measurement:
    options, name = task.options, task.tensor
    a, b = first.matrix(), second.matrix()
    svd = decompose(a, name, options)
    row: Row = {"tensor": name}
    vectors: dict[str, Tensor] = {}
    if "spectral" in options.tiers:
        row_spectral, vectors = measure_spectral(a, b, svd, name, options)
        row |= row_spectral
    if "overlap" in options.tiers:
        k = subspace_rank(a.shape, options)
        row |= {"k": k, **measure_overlap(a, b, svd, k, name, options)}
    return Measurement(row, [], vectors)


def _dtype(side: Side) -> str:
    return str(side.dtype).removeprefix("torch.")
