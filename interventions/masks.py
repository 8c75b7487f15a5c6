"""Masks over weights, and tuning inside them: `iv.masks`."""

from interventions._masked_tune import masked_tune
from interventions._masks import (
    change_mask,
    consensus_mask,
    half_mask,
    magnitude_mask,
    module_mask,
    principal_mask,
    random_mask,
    safe_mask,
)
from interventions._weight_mask import WeightMask

__all__ = [
    "WeightMask",
    "change_mask",
    "consensus_mask",
    "half_mask",
    "magnitude_mask",
    "masked_tune",
    "module_mask",
    "principal_mask",
    "random_mask",
    "safe_mask",
]
