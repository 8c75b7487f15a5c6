"""The counts and sums of one chunk in plain torch: the reference, and the way without numba."""

from __future__ import annotations

import torch
from torch import Tensor

from interp._weights.nulls import changed_bf16


def scan(x: Tensor, y: Tensor, segments: int, eta: float, out: Tensor, columns: Tensor) -> None:
    """Fill out [row segment 9] in float64 and add to columns; x and y are float32 [row width].

    The nine: sum of d^2, of a^2, of a*d, max |d|, changed in bfloat16, different bits, sign
    flips, non-finite in a, non-finite in b; d = b - a.
    """
    rows, width = x.shape
    shape = (rows, segments, width // segments)
    a, b = x.view(shape), y.view(shape)
    d = b - a
    size = d.abs()
    moved = changed_bf16(a, b, eta)
    columns += moved.view(rows, width).sum(0)
    wide, tall = d.double(), a.double()
    out[..., 0] = wide.square().sum(-1)
    out[..., 1] = tall.square().sum(-1)
    out[..., 2] = wide.mul_(tall).sum(-1)
    out[..., 3] = size.amax(-1)
    out[..., 4] = moved.sum(-1)
    out[..., 5] = (a.view(torch.int32) != b.view(torch.int32)).sum(-1)
    out[..., 6] = (torch.sign(a) * torch.sign(b) < 0).sum(-1)
    if not torch.isfinite(out[..., :2].sum()):  # float32 squares cannot overflow float64
        out[..., 7] = (~torch.isfinite(a)).sum(-1)
        out[..., 8] = (~torch.isfinite(b)).sum(-1)
