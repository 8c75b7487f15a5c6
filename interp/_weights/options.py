"""What is measured, with every number that a result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp._errors import InterpError, nearest

TIERS = ("cheap", "spectral", "overlap")


@dataclass(frozen=True)
class Options:
    """The arguments of one measurement; equal options give equal bits.

    Args:
        tiers: `cheap` always; `spectral` and `overlap` when asked for.
        rank: k of the principal subspaces (at most a quarter of a matrix's short side).
        alpha: share of entries in the principal and the low-magnitude mask.
        draws: draws of each null; at least 5, or 0 for none.
        seed: of the nulls.
        eta: relative change below which a bfloat16 entry counts as unchanged.
        svd: `exact` (Gram matrix in float64), `randomised`, or `auto`: exact up to `exact_limit`.
        exact_limit: the longest short side decomposed exactly under `auto`.
        vocabulary: also decompose embedding and head.
        chunk: entries of a stored tensor in memory at a time.
        kernel: `numba`, `torch`, or `auto`: numba where it is installed (extra `fast`).
    """

    tiers: tuple[str, ...] = ("cheap",)
    rank: int = 64
    alpha: float = 0.5
    draws: int = 8
    seed: int = 0
    eta: float = 1e-3
    svd: Literal["auto", "exact", "randomised"] = "auto"
    exact_limit: int = 8192
    vocabulary: bool = False
    chunk: int = 1 << 16
    kernel: Literal["auto", "numba", "torch"] = "auto"

    def __post_init__(self) -> None:
        unknown = [tier for tier in self.tiers if tier not in TIERS]
        if unknown:
            raise InterpError(f"no metrics called {unknown[0]!r}; {nearest(unknown[0], TIERS)}")
        if 0 < self.draws < 5 or self.draws < 0:
            raise InterpError(
                f"draws={self.draws} gives no spread worth a z: give at least 5, or 0 for no nulls"
            )
        if not 0 < self.alpha < 1:
            raise InterpError(f"alpha={self.alpha} is no share of entries; give 0 < alpha < 1")
        if self.rank < 1:
            raise InterpError(f"rank={self.rank} is no number of directions; give at least 1")
