"""Methods that find or learn a change to a model and return it as an edit or a mask."""

from interp import Affine, Delta, Edit
from interventions import weights
from interventions._ablate import ablate
from interventions._dcm import Desideratum, learn_head_mask
from interventions._detrimental_neurons import (
    DetrimentalNeurons,
    find_detrimental_neurons,
    prune_detrimental_neurons,
)
from interventions._head_mask import HeadMask
from interventions._heads import add_to_heads, scale_heads
from interventions._low_rank import lora, low_rank
from interventions._neurons import prune_neurons
from interventions._norm_matched_random import norm_matched_random
from interventions._questions import Question, answered_rightly
from interventions._reset import reset
from interventions._steer import steer
from interventions._task_vector import task_vector
from interventions._transplant import transplant

__all__ = [
    "Affine",
    "Delta",
    "Desideratum",
    "DetrimentalNeurons",
    "Edit",
    "HeadMask",
    "Question",
    "ablate",
    "add_to_heads",
    "answered_rightly",
    "find_detrimental_neurons",
    "learn_head_mask",
    "lora",
    "low_rank",
    "norm_matched_random",
    "prune_detrimental_neurons",
    "prune_neurons",
    "reset",
    "scale_heads",
    "steer",
    "task_vector",
    "transplant",
    "weights",
]
