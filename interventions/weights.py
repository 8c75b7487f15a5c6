"""Edits of weights: task vectors, transplants, resets, low-rank changes, and their controls."""

from interventions._corda import tune_with_corda
from interventions._lineage import Lineage, lineage
from interventions._low_rank import lora, low_rank
from interventions._norm_matched_random import norm_matched_random
from interventions._reset import reset
from interventions._task_vector import task_vector
from interventions._transplant import transplant

__all__ = [
    "Lineage",
    "lineage",
    "lora",
    "low_rank",
    "norm_matched_random",
    "reset",
    "task_vector",
    "transplant",
    "tune_with_corda",
]
