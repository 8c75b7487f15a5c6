"""`compare`: what several updates of one base share, beside what chance and the gate share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from interp._errors import InterpError
from interp._record import provenance
from interp._weights.across import AcrossTask, measure_across
from interp._weights.checkpoint import open_checkpoint
from interp._weights.comparison import WeightComparison
from interp._weights.engine import run_tasks
from interp._weights.measure import spectral_names
from interp._weights.options import Options
from interp._weights.plan import plan
from interp._weights.weight_diff import WeightDiff

Pairs = Literal["all", "consecutive", "final"]


def compare(
    *diffs: WeightDiff,
    pairs: Pairs = "all",
    spectral: bool = False,
    workers: int = 1,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> WeightComparison:
    """What updates of one base have in common: which entries, which bands, which directions.

    Jaccard of changed entries with its nulls, cosine of the updates, correlation of row and column
    change ratios, consensus over all. Weights are read again from the folders of the diffs.

    Args:
        diffs: one diff of several checkpoints, or several diffs of one base.
        pairs: `all`; `consecutive`, for the checkpoints of one run; `final`: each with the last.
        spectral: also compare the leading directions of the updates (early against final).
        workers: processes. The result does not depend on it.
        resume: a folder that keeps finished tensors.
        progress: a bar with bytes per second; by default when stderr is a terminal.

    Returns:
        A `WeightComparison`: `.table()`, `.table("consensus")`, `.plot()`, `.save()`.

    Raises:
        InterpError: fewer than two checkpoints, another base, a module that is not on disk.

    Examples:
        >>> both = interp.diff("base/", {"sft": "sft/", "rl": "rl/"})
        >>> interp.compare(both).table()[["tensor", "jaccard", "jaccard_null", "jaccard_z"]]

    Source: 2511.08567, which compares with independent masks only; the bfloat16 gate alone already
    gives most of the published Jaccard.
    """
    base, runs, options, select = _together(diffs)
    tiers = ("cheap", "spectral") if spectral else ("cheap",)
    options = replace(options, tiers=tiers)
    start = open_checkpoint(base)
    names = plan(start, open_checkpoint(next(iter(runs.values())), base), select)
    for source in runs.values():
        plan(start, open_checkpoint(source, base), select)
    names = spectral_names(base, names, options)
    chosen = _pairs(list(runs), pairs)
    items = tuple(runs.items())
    tasks = [
        AcrossTask(base, items, n, chosen, options, 4 * (len(runs) + 1) * start.parts[n].numel)
        for n in names
    ]
    folder = Path(resume) if resume is not None else None
    found = run_tasks(
        measure_across, tasks, workers=workers, resume=folder, progress=progress, label="compare"
    )
    rows: list[dict[str, Any]] = []
    consensus = []
    vectors: dict[str, Any] = {}
    for task, one in zip(tasks, found, strict=True):
        part = start.parts[task.tensor]
        where = {"layer": part.layer, "module": part.module, "expert": part.expert}
        rows += [{"tensor": task.tensor, **where, **row} for row in one.heads]
        consensus.append({"tensor": task.tensor, **where, **one.row})
        vectors |= {f"{task.tensor}/{key}": vector for key, vector in one.vectors.items()}
    meta = {"base": base, "tuned": runs, "options": asdict(options), "pairs": pairs}
    return WeightComparison(rows, consensus, vectors, {**meta, **provenance()})


def _together(
    diffs: Sequence[WeightDiff],
) -> tuple[str, dict[str, str], Options, str | None]:
    """The base, the checkpoints by label, and the options of diffs that belong together."""
    if not diffs:
        raise InterpError("compare needs a WeightDiff of two checkpoints, or several WeightDiffs")
    runs: dict[str, str] = {}
    bases = set()
    for found in diffs:
        if not isinstance(found, WeightDiff):
            raise InterpError(
                f"compare takes what diff returns, one after the other, and got a "
                f"{type(found).__name__}; of a list: compare(*diffs)"
            )
        folders = found.meta["folders"]
        held = [label for label in ["", *found.tuned] if label not in folders]
        if held:
            raise InterpError(
                f"{held[0] or 'the base'} was a module in memory, which compare cannot read again; "
                f"save_pretrained it and diff the folder"
            )
        bases.add(folders[""])
        clash = [label for label in found.tuned if label in runs]
        if clash:
            raise InterpError(
                f"two checkpoints are called {clash[0]!r}; label them: "
                f"diff(base, {{'one': ..., 'two': ...}})"
            )
        runs |= {label: folders[label] for label in found.tuned}
    if len(bases) > 1:
        raise InterpError(
            f"these diffs have different bases ({', '.join(sorted(bases))}); compare updates of one"
        )
    if len(runs) < 2:
        raise InterpError(f"only one checkpoint ({next(iter(runs))}); compare needs two or more")
    options = dict(diffs[0].meta["options"])
    options["tiers"] = tuple(options["tiers"])
    return bases.pop(), runs, Options(**options), diffs[0].meta["select"]


def _pairs(labels: list[str], pairs: Pairs) -> tuple[tuple[str, str], ...]:
    if pairs == "consecutive":
        return tuple(pairwise(labels))
    if pairs == "final":
        return tuple((label, labels[-1]) for label in labels[:-1])
    if pairs != "all":
        raise InterpError(f"pairs={pairs!r}; expected 'all', 'consecutive' or 'final'")
    return tuple(combinations(labels, 2))
