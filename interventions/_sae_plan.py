"""What SAE to train."""

from __future__ import annotations

from dataclasses import dataclass

from interp import InterpError
from interp._errors import nearest
from interventions._sae import KINDS


@dataclass(frozen=True)
class SAEPlan:
    """One SAE to train.

    Args:
        site: where it reads.
        kind: `topk`, `batchtopk`, `jumprelu`, `gated` or `standard`.
        d_sae: features; eight times the width of the site by default.
        k: latents a token; the L0 that `jumprelu` aims at. `gated` and `standard` have whatever
            their `sparsity` gives.
        sparsity: weight of the sparsity term (not of `topk` and `batchtopk`): 0.3 by default for
            `jumprelu`, `0.6 / sqrt(d_in)` for `gated`, `0.4 / sqrt(d_in)` for `standard`.
        lr: of Adam; by default `0.09 / sqrt(d_in)` for `topk` and `batchtopk`, which is ours and
            was best or nearly so in 60 to 1000 steps (lower it for far more), and otherwise
            `2e-4 / sqrt(d_sae / 2^14)`.
        aux: weight of AuxK, by which dead latents come back (`topk` and `batchtopk`).
        k_aux: dead latents a token in it; half the width of the site by default.
        dead_after: tokens without firing after which a latent counts as dead; by default a
            twentieth of all, and no fewer than `100 d_sae / k`, a hundred times what the mean
            latent waits.
        bandwidth: of `jumprelu`'s straight-through estimate, in units of variance 1; the paper's
            0.001 is for activations of norm 1 and far more tokens.
        center: what b_dec begins as: the `"median"` (geometric) or `"mean"` of the first buffer.
        seed: of the decoder's directions at the start. For `topk` and `batchtopk` each is halfway
            between a random one and a row's, and the encoder is as long as fits the first batch
            best.
    """

    site: str
    kind: str = "topk"
    d_sae: int | None = None
    k: int = 32
    sparsity: int | float | None = None
    lr: int | float | None = None
    aux: int | float = 1 / 32
    k_aux: int | None = None
    dead_after: int | None = None
    bandwidth: int | float = 0.5
    center: str = "median"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InterpError(f"kind={self.kind!r}; {nearest(self.kind, KINDS)}")
        if self.center not in ("median", "mean"):
            raise InterpError(f"center={self.center!r}; {nearest(self.center, ('median', 'mean'))}")
        if self.k < 1 or (self.d_sae is not None and self.d_sae < self.k):
            raise InterpError(f"k={self.k} of d_sae={self.d_sae}: expected 1 to d_sae")
        if (self.lr is not None and not self.lr > 0) or self.aux < 0 or not self.bandwidth > 0:
            raise InterpError(
                f"lr={self.lr}, aux={self.aux}, bandwidth={self.bandwidth}: expected more than 0, "
                f"at least 0, more than 0"
            )
        if (self.sparsity or 0) < 0 or any(
            value is not None and value < 1 for value in (self.k_aux, self.dead_after)
        ):
            raise InterpError(
                f"sparsity={self.sparsity}, k_aux={self.k_aux}, dead_after={self.dead_after}: "
                f"expected at least 0, at least 1, at least 1 (or None)"
            )
