"""Norms, cosines, counts: everything about an update that one pass over the bytes can tell."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp._errors import InterpError
from interp._weights.nulls import generator, sparsity_draws, z_score
from interp._weights.options import Options
from interp._weights.pair import Side
from interp._weights.stored import Buffers

_SAMPLE = 4096  # entries a draw of the sparsity null sees

Row = dict[str, Any]


def measure_cheap(
    base: Side, tuned: Side, options: Options
) -> tuple[Row, list[Row], dict[str, Tensor]]:
    """The cheap metrics of one matrix, of its heads, and its row and column change ratios.

    norm = ||b - a||; relative_norm = norm / ||a||; rms = norm / sqrt(numel); cosine of a and b;
    unchanged = share of equal bits; sparsity = share of entries unchanged in bfloat16. Sums in
    float64, the difference taken directly and never from three squares.

    Returns:
        Columns of the matrix, columns of each head, and `row_changed` [out], `column_changed` [in].
    """
    tally, columns, sample = _tally(base, tuned, options)
    part = base.part
    rows = tally.sum(1)
    rows[:, 3] = tally[:, :, 3].amax(1)
    row: Row = _columns(tally.reshape(-1, 9), part.numel)
    row |= {"nonfinite_base": int(tally[..., 7].sum()), "nonfinite": int(tally[..., 8].sum())}
    row |= _sparsity_null(row, sample, tuned.dtype, part.tensor, options)
    ratios = (rows[:, 4] / part.n_columns).float(), (columns / part.n_rows).float()
    out, inner = ratios[::-1] if part.transposed else ratios
    heads = _heads(tally, part.heads, part.segments, part.numel)
    return row, heads, {"row_changed": out, "column_changed": inner}


def _tally(base: Side, tuned: Side, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Sums by row and segment [row segment 9], changed entries by column, a sample of the base."""
    part = base.part
    height = max(1, options.chunk // part.n_columns)
    out = torch.zeros(part.n_rows, part.segments, 9, dtype=torch.float64)
    columns = torch.zeros(part.n_columns, dtype=torch.int64)
    counted = np.zeros(part.n_columns, dtype=np.uint32)
    stride = max(1, part.numel // (_SAMPLE * max(options.draws, 1)))
    # One block for the whole sample: small pieces kept between chunks would fragment the heap.
    sample = torch.empty(-(-part.numel // stride) if options.draws else 0)
    seen, done, buffers = 0, 0, Buffers()
    scan = _numba() if options.kernel == "numba" else _torch()
    first = base.chunks(height, buffers, "base")
    second = tuned.chunks(height, buffers, "tuned")
    for a, b in zip(first, second, strict=True):
        target = out[done : done + len(a)]
        if options.kernel == "numba":
            bits = (a.numpy().view(np.uint32), b.numpy().view(np.uint32))
            scan(*bits, part.segments, np.float32(options.eta), target.numpy(), counted)
        else:
            scan(a, b, part.segments, options.eta, target, columns)
        if options.draws:
            taken = a.flatten()[-done * part.n_columns % stride :: stride]
            sample[seen : seen + len(taken)] = taken
            seen += len(taken)
        done += len(a)
    columns += torch.from_numpy(counted.astype(np.int64))
    return out, columns, sample


@lru_cache(maxsize=1)
def _numba() -> Any:
    try:
        from interp._weights.kernel_numba import scan
    except ImportError as error:
        raise InterpError(
            "kernel='numba' needs numba, which is not installed: pip install "
            "'interp-toolkit[fast]', or leave the kernel to torch"
        ) from error
    return scan


def _torch() -> Any:
    from interp._weights.kernel_torch import scan

    return scan


def _columns(sums: Tensor, numel: int) -> Row:
    """Columns from sums [any 9] over the same entries."""
    dd, aa, ad, _, changed, differ, flips, _, _ = sums.sum(0).tolist()
    bb = max(aa + 2 * ad + dd, 0.0)
    a, b = math.sqrt(aa), math.sqrt(bb)
    # 1 - cos = (|d|^2 - (|b| - |a|)^2) / (2 |a| |b|), with |b| - |a| from <a, d>: exact near 1.
    gap = (2 * ad + dd) / (a + b) if a + b else 0.0
    distance = max(dd - gap * gap, 0.0) / (2 * a * b) if a and b else math.nan
    if not dd:
        distance = 0.0
    return {
        "numel": numel,
        "norm": math.sqrt(dd),
        "relative_norm": math.sqrt(dd / aa) if aa else (math.inf if dd else 0.0),
        "rms": math.sqrt(dd / numel),
        "cosine": 1.0 - distance,
        "cosine_distance": distance,
        "max_abs": float(sums[:, 3].max()),
        "unchanged": 1.0 - differ / numel,
        "sparsity": 1.0 - changed / numel,
        "sign_flips": flips / numel,
        "norm_base": a,
        "norm_tuned": b,
    }


def _sparsity_null(row: Row, sample: Tensor, dtype: torch.dtype, name: str, o: Options) -> Row:
    if row["nonfinite_base"] or row["nonfinite"] or not o.draws:
        return {"sparsity_null": math.nan, "sparsity_z": math.nan}
    rng = generator(o.seed, "sparsity", name)
    draws = sparsity_draws(sample, row["rms"], dtype, o.draws, rng)
    null = float(np.mean(draws)) if draws else math.nan
    return {"sparsity_null": null, "sparsity_z": z_score(row["sparsity"], draws)}


def _heads(tally: Tensor, heads: int, segments: int, numel: int) -> list[Row]:
    """Per head: heads are groups of stored rows, or segments of them."""
    if not heads:
        return []
    if segments > 1:
        groups = [tally[:, head] for head in range(heads)]
    else:
        groups = list(tally.reshape(heads, -1, 9))
    return [{"head": i, **_columns(group, numel // heads)} for i, group in enumerate(groups)]
