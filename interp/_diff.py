"""`diff`: what training changed in the weights, read from disk; `compare`: across runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from interp._errors import InterpError, nearest
from interp._model import Model
from interp._record import provenance
from interp._weights.checkpoint import Checkpoint, local_folder, open_checkpoint
from interp._weights.engine import run_tasks
from interp._weights.measure import Task, added_rows, measure, spectral_names
from interp._weights.measurement import Measurement
from interp._weights.options import TIERS, Options
from interp._weights.plan import plan
from interp._weights.stored import DTYPES
from interp._weights.weight_diff import WeightDiff

Source = str | Path | nn.Module | Model
DiffOptions = Options


def diff(
    base: Source,
    tuned: Source | Mapping[str, Source] | Sequence[Source],
    metrics: str | Sequence[str] = "cheap",
    *,
    select: str | None = None,
    options: Options | None = None,
    workers: int = 1,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> WeightDiff:
    """What changed from one checkpoint to others, matrix by matrix, head by head.

    Weights are read from disk a piece at a time; no model is built, and two are never in memory.
    Names are canonical (`layers.3.q.weight`), fused tensors split, tied ones counted once, added
    vocabulary rows apart.

    Args:
        base: folder, hub id (`name` or `name@revision`), or a module or handle you hold.
        tuned: the same, or a LoRA adapter folder (its change, unmerged); several as a mapping
            from labels, or as a list, such as the checkpoints of one run.
        metrics: `cheap` (norms, cosine, sparsity, flips; one pass, constant memory); `spectral`
            (singular values, angles, ranks, energies); `overlap` (masks, with nulls); `all`; or
            several. `cheap` is always included.
        select: regular expression on canonical names.
        options: rank, alpha, draws, seed and the like; every one is stored with the result.
        workers: processes. The result does not depend on it.
        resume: a folder that keeps finished tensors, so that interrupted work continues.
        progress: a bar with bytes per second; by default when stderr is a terminal.

    Returns:
        A `WeightDiff`: `.table()`, `.plot()`, `.save()`.

    Raises:
        InterpError: before any weight is read, when the checkpoints are no pair (architecture,
            vocabulary, shapes, missing tensors or shards); after the cheap pass, when weights
            are NaN or infinite.

    Examples:
        >>> delta = interp.diff("base/", {"sft": "sft/", "rl": "rl/"})
        >>> delta.table("module").sort_values("relative_norm")
        >>> interp.diff("base/", "sft/", "all", options=interp.DiffOptions(alpha=0.3)).plot("nss")

    Sources: 2507.10616 (norms), 2511.08567 (bf16 sparsity, NSS, angles, overlap), 2506.00772
    (principal weights). The nulls are ours: published overlaps follow from density alone.
    """
    chosen = _options(metrics, options)
    runs = labelled(tuned)
    start = _source(base)
    sources = {label: _source(source, start) for label, source in runs.items()}
    names = {label: _plan(start, source, select) for label, source in sources.items()}
    settings: dict[str, Any] = {
        "workers": workers if all(_on_disk(s) for s in (start, *sources.values())) else 1,
        "resume": Path(resume) if resume is not None else None,
        "progress": progress,
    }
    cheap = replace(chosen, tiers=("cheap",))
    tasks = [_task(start, sources[label], name, cheap) for label in runs for name in names[label]]
    labels = [label for label in runs for _ in names[label]]
    found = run_tasks(measure, tasks, label="cheap", **settings)
    _refuse_nonfinite(found, labels, start)
    extra = [
        (label, added_rows(task))
        for label, task in zip(labels, tasks, strict=True)
        if task.tensor in ("embed.weight", "head.weight")
    ]
    heavy = _heavy(start, sources, names, chosen, settings)
    rows, heads, vectors = _merge(labels, found, heavy)
    rows += [{**row, "tuned": label} for label, row in extra if row is not None]
    meta = {
        "base": name_of(base),
        "tuned": {label: name_of(source) for label, source in runs.items()},
        "folders": {k: s for k, s in {"": start, **sources}.items() if isinstance(s, str)},
        "options": asdict(chosen),
        "select": select,
        **provenance(),
    }
    return WeightDiff(rows, heads, vectors, meta)


def labelled(tuned: Source | Mapping[str, Source] | Sequence[Source]) -> dict[str, Source]:
    """Several checkpoints with labels: the folder's name where that tells them apart."""
    if isinstance(tuned, str | Path | nn.Module | Model):
        tuned = [tuned]
    if not isinstance(tuned, Iterable):
        raise InterpError(
            f"tuned is of type {type(tuned).__name__}; expected a path, a model, a list or a "
            f"mapping"
        )
    if isinstance(tuned, Mapping):
        found = dict(tuned)
    else:
        names = [Path(name_of(source)).name or "tuned" for source in tuned]
        unique = len(set(names)) == len(names)
        found = {
            name if unique else f"{i}:{name}": source
            for i, (name, source) in enumerate(zip(names, tuned, strict=True))
        }
    if not found:
        raise InterpError("no tuned checkpoint given; expected a path, a list or a mapping")
    slashed = [label for label in found if "/" in label]
    if slashed:
        raise InterpError(f"the label {slashed[0]!r} holds a slash; give a plain word")
    return found


def _options(metrics: str | Sequence[str], options: Options | None) -> Options:
    words = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if "all" in words:
        words = TIERS
    unknown = [word for word in words if word not in TIERS]
    if unknown:
        raise InterpError(f"no metrics {unknown[0]!r}; {nearest(unknown[0], (*TIERS, 'all'))}")
    options = options or Options()
    kernel = options.kernel
    if kernel == "auto":
        kernel = "numba" if importlib.util.find_spec("numba") else "torch"
    tiers = tuple(t for t in TIERS if t == "cheap" or t in words)
    return replace(options, tiers=tiers, kernel=kernel)


def _source(source: Source, base: str | Checkpoint | None = None) -> str | Checkpoint:
    """A folder by its path, which any process can open; a module, or a change of one, opened."""
    source = _bare(source)
    if isinstance(source, nn.Module):
        return open_checkpoint(source)
    if not isinstance(source, str | Path):
        raise InterpError(
            f"a checkpoint is of type {type(source).__name__}; expected a folder, a hub id or a "
            f"model"
        )
    folder = local_folder(source).resolve()
    return open_checkpoint(folder, base) if isinstance(base, Checkpoint) else str(folder)


def _bare(source: Source) -> str | Path | nn.Module:
    """The module of a handle."""
    return source.module if isinstance(source, Model) else source


def _on_disk(source: str | Checkpoint) -> bool:
    return isinstance(source, str)


def name_of(source: Source | Checkpoint) -> str:
    if isinstance(source, Checkpoint):
        return source.source
    if isinstance(source, Model) and source.name:
        return source.name
    source = _bare(source)
    if isinstance(source, nn.Module):
        return str(getattr(source, "name_or_path", "") or type(source).__name__)
    return str(source)


def _plan(base: str | Checkpoint, tuned: str | Checkpoint, select: str | None) -> list[str]:
    return plan(open_checkpoint(base), open_checkpoint(tuned, base), select)


def _task(base: str | Checkpoint, tuned: str | Checkpoint, name: str, options: Options) -> Task:
    checkpoint = open_checkpoint(base)
    part = checkpoint.parts.get(name) or open_checkpoint(tuned, base).parts[name]
    size = 2 * part.numel * DTYPES[next(iter(checkpoint.tensors.values())).dtype].itemsize
    return Task(base, tuned, name, options, size)


def _heavy(
    base: str | Checkpoint,
    sources: Mapping[str, str | Checkpoint],
    names: Mapping[str, list[str]],
    options: Options,
    settings: Mapping[str, Any],
) -> dict[tuple[str, str], Measurement]:
    tiers = tuple(tier for tier in options.tiers if tier != "cheap")
    if not tiers:
        return {}
    keys = [(run, n) for run in sources for n in spectral_names(base, names[run], options)]
    chosen = replace(options, tiers=tiers)
    tasks = [_task(base, sources[run], name, chosen) for run, name in keys]
    found = run_tasks(measure, tasks, label=" and ".join(tiers), **settings)
    return dict(zip(keys, found, strict=True))


def _merge(
    labels: Sequence[str],
    cheap: Sequence[Measurement],
    heavy: Mapping[tuple[str, str], Measurement],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    rows, heads, vectors = [], [], {}
    for label, one in zip(labels, cheap, strict=True):
        name = one.row["tensor"]
        more = heavy.get((label, name), Measurement({}))
        rows.append({**one.row, "tuned": label, **more.row})
        heads += [{**head, "tuned": label} for head in one.heads]
        for key, vector in {**one.vectors, **more.vectors}.items():
            vectors[f"{label}/{name}/{key}"] = vector
    return rows, heads, vectors


def _refuse_nonfinite(
    found: Sequence[Measurement], labels: Sequence[str], base: str | Checkpoint
) -> None:
    bad = []
    for label, one in zip(labels, found, strict=True):
        for column, who in (("nonfinite_base", name_of(base)), ("nonfinite", label)):
            if one.row[column]:
                bad.append(f"{one.row['tensor']} in {who} ({one.row[column]})")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InterpError(
            f"weights are NaN or infinite: {', '.join(bad[:5])}{more}; this checkpoint is broken, "
            f"or leave these tensors out with select=..."
        )
