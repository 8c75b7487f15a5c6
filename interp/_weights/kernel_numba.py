"""The counts and sums of one chunk in two passes over it, compiled (extra `fast`).

The loops are written so that LLVM vectorises them: integer maxima instead of float ones, no
branches, one array a loop.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit  # type: ignore[import-not-found, unused-ignore]

f32, f64, u32 = np.float32, np.float64, np.uint32
_MAGNITUDE, _EXPONENT = u32(0x7FFFFFFF), u32(0x7F800000)
_FAST = {"fastmath": True, "error_model": "numpy", "cache": True, "nogil": True}


@no_type_check
@njit(**_FAST)
def _sums(x, y):
    dd = f64(0)
    aa = f64(0)
    ad = f64(0)
    peak = u32(0)
    for j in range(x.shape[0]):
        a = f32(u32(x[j]).view(f32))
        d = f32(u32(y[j]).view(f32) - a)
        dd += f64(d) * f64(d)
        aa += f64(a) * f64(a)
        ad += f64(a) * f64(d)
        peak = u32(max(peak, u32(f32(d).view(u32) & _MAGNITUDE)))
    return dd, aa, ad, u32(peak).view(f32)


@no_type_check
@njit(**_FAST)
def _bf16(bits):
    """The bits of a float32 after rounding to bfloat16, ties to even."""
    odd = u32(u32(bits >> u32(16)) & u32(1))
    return u32(u32(u32(bits + u32(0x7FFF)) + odd) & u32(0xFFFF0000))


@no_type_check
@njit(**_FAST)
def _counts(x, y, eta, columns):
    changed = u32(0)
    differ = u32(0)
    flips = u32(0)
    bad_a = u32(0)
    bad_b = u32(0)
    for j in range(x.shape[0]):
        p, q = u32(x[j]), u32(y[j])
        differ += u32(p != q)
        both = u32((p & _MAGNITUDE) != u32(0)) & u32((q & _MAGNITUDE) != u32(0))
        flips += ((p ^ q) >> u32(31)) & both
        bad_a += u32((p & _EXPONENT) == _EXPONENT)
        bad_b += u32((q & _EXPONENT) == _EXPONENT)
        a, b = _bf16(p), _bf16(q)
        d = u32(f32(u32(b).view(f32) - u32(a).view(f32)).view(u32) & _MAGNITUDE)
        larger = u32(max(u32(a & _MAGNITUDE), u32(b & _MAGNITUDE)))
        moved = u32(u32(d).view(f32) > f32(eta * u32(larger).view(f32)))
        changed += moved
        columns[j] += moved
    return changed, differ, flips, bad_a, bad_b


@no_type_check
@njit(**_FAST)
def scan(x, y, segments, eta, out, columns):
    """Fill out [row segment 9] and add to columns; x and y are the bits of float32 matrices."""
    width = x.shape[1] // segments
    for i in range(x.shape[0]):
        for s in range(segments):
            a = x[i, s * width : (s + 1) * width]
            b = y[i, s * width : (s + 1) * width]
            dd, aa, ad, peak = _sums(a, b)
            changed, differ, flips, bad_a, bad_b = _counts(
                a, b, eta, columns[s * width : (s + 1) * width]
            )
            out[i, s, 0] = dd
            out[i, s, 1] = aa
            out[i, s, 2] = ad
            out[i, s, 3] = peak
            out[i, s, 4] = changed
            out[i, s, 5] = differ
            out[i, s, 6] = flips
            out[i, s, 7] = bad_a
            out[i, s, 8] = bad_b
