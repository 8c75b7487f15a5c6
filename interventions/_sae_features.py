"""Edits of an SAE's features, as functions for `interp.hooked`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Edit, InterpError, Site, SiteNotFound
from interp._batch import is_index
from interventions._sae import SAE

# What one would ask of an Edit.
_OF_EDITS = (
    "atoms", "affines", "deltas", "made_on", "notes", "applied", "apply_", "undo_", "save",
    "select", "on", "times",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """`x + sum_j (z'_j - z_j) d_j` over chosen features, with `z' = scale z + shift`.

    A function for `interp.hooked`, not an Edit: z depends on x by a topk or a threshold, so no
    affine map and no weights do the same. What the SAE misses of x stays in it.

    Args:
        sae: whose features.
        features: which.
        scale: [chosen].
        shift: [chosen], in the unit of the latents.
        keep_error: False gives `decode(z')` instead, without what the SAE misses.

    Raises:
        InterpError: when it runs at a site that is not the SAE's.
    """

    sae: SAE
    features: tuple[int, ...]
    scale: Float[Tensor, " chosen"]
    shift: Float[Tensor, " chosen"]
    keep_error: bool = True

    def __call__(self, tensor: Tensor, site: Site) -> Tensor:
        rows = self.sae.flat(tensor, site)
        _check_place(self.sae, site)
        at = torch.tensor(self.features, device=rows.device)
        if self.keep_error:
            before = self.sae.encode(rows, at)
            made = rows + ((self._after(before) - before) @ self.sae.W_dec[at]).to(rows.dtype)
        else:
            latents = self.sae.encode(rows)
            latents = latents.index_copy(-1, at, self._after(latents[..., at]))
            made = self.sae.decode(latents).to(rows.dtype)
        return made.view(tensor.shape)

    def _after(self, latents: Float[Tensor, "... chosen"]) -> Float[Tensor, "... chosen"]:
        return self.scale.to(latents) * latents + self.shift.to(latents)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_EDITS:
            _refuse(f"no {name}")
        raise AttributeError(name)

    def __add__(self, _other: Any) -> Any:
        _refuse("no sum with others")

    __radd__ = __add__


def scale_features(
    sae: SAE, scales: Mapping[int, int | float], *, keep_error: bool = True
) -> FeatureEdit:
    """Multiply features by numbers: `x + sum_j (s_j - 1) z_j d_j`, d_j the decoder's rows.

    Args:
        sae: whose features.
        scales: feature -> number; 1 leaves it as it is.
        keep_error: keep what the SAE misses of x.

    Returns:
        A function for `interp.hooked`.

    Raises:
        InterpError: a feature that is not there, no features.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=16, site="resid_post.3")
        >>> with interp.hooked(model, {sae.site: iv.scale_features(sae, {7: 2.0})}):
        ...     louder = model.module(input_ids).logits

    Source: feature steering, Templeton et al. 2024 (Scaling Monosemanticity), with the error kept.
    """
    return _edit(sae, list(scales), [float(s) for s in scales.values()], None, keep_error)


def ablate_features(sae: SAE, features: Sequence[int], *, keep_error: bool = True) -> FeatureEdit:
    """Set features to 0: `x - sum_j z_j d_j`.

    Args:
        sae: whose features.
        features: which.
        keep_error: keep what the SAE misses of x.

    Returns:
        A function for `interp.hooked`.

    Raises:
        InterpError: a feature that is not there, no features.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=16, site="resid_post.3")
        >>> with interp.hooked(model, {sae.site: iv.ablate_features(sae, [7, 9])}):
        ...     without = model.module(input_ids).logits

    Source: Marks et al. 2024 (arXiv 2403.19647), who keep the error term.
    """
    return _edit(sae, list(features), [0.0] * len(features), None, keep_error)


def clamp_features(
    sae: SAE, values: Mapping[int, int | float], *, keep_error: bool = True
) -> FeatureEdit:
    """Set features to given values at every token: `x + sum_j (v_j - z_j) d_j`.

    Args:
        sae: whose features.
        values: feature -> value, in the unit of the latents (the card's `mean` and `max`).
        keep_error: keep what the SAE misses of x.

    Returns:
        A function for `interp.hooked`.

    Raises:
        InterpError: a feature that is not there, no features.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=16, site="resid_post.3")
        >>> with interp.hooked(model, {sae.site: iv.clamp_features(sae, {7: 5.0})}):
        ...     steered = model.module(input_ids).logits

    Source: Templeton et al. 2024 (Scaling Monosemanticity).
    """
    given = [float(value) for value in values.values()]
    return _edit(sae, list(values), [0.0] * len(values), given, keep_error)


def _edit(
    sae: SAE, features: list[int], scale: list[float], shift: list[float] | None, keep_error: bool
) -> FeatureEdit:
    if not features:
        raise InterpError("no features to edit; name at least one")
    wrong = [j for j in features if not (is_index(j) and 0 <= j < sae.d_sae)]
    if wrong:
        raise InterpError(f"feature {wrong[0]} is not there: this SAE has 0 to {sae.d_sae - 1}")
    if not all(map(math.isfinite, (*scale, *(shift or ())))):
        raise InterpError(f"features cannot be set to NaN or infinity: {shift or scale}")
    if len(set(features)) < len(features):
        raise InterpError("a feature is named twice; once is enough")
    return FeatureEdit(
        sae, tuple(features), torch.tensor(scale), torch.tensor(shift or [0.0] * len(features)),
        keep_error,
    )  # fmt: skip


def _check_place(sae: SAE, site: Site) -> None:
    """Refuse another site: of the same width, it would be read without a word."""
    try:
        home = None if sae.site is None else Site.parse(sae.site)
    except SiteNotFound:  # another library's name for what we have no site for
        return
    if home is None or home == site or (home.layer or 0) < 0:
        return
    raise InterpError(
        f"this SAE reads {home}, and its edit is hooked at {site}; hook it at sae.site, or say "
        f"that it is meant with dataclasses.replace(sae, site={str(site)!r})"
    )


def _refuse(what: str) -> NoReturn:
    raise InterpError(
        f"an edit of an SAE's features has {what}: it is a function of the activation that no "
        f"{Edit.__name__} can hold, so it can be neither saved nor baked; use it with "
        f"interp.hooked(model, {{sae.site: edit}}), or save the SAE and name the features again"
    )
