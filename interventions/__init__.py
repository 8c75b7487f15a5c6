"""Methods that find or learn a change to a model and return it as an edit or a mask."""

from interp import Affine, Delta, Edit
from interventions._ablate import ablate
from interventions._heads import add_to_heads, scale_heads
from interventions._neurons import prune_neurons
from interventions._steer import steer

__all__ = [
    "Affine",
    "Delta",
    "Edit",
    "ablate",
    "add_to_heads",
    "prune_neurons",
    "scale_heads",
    "steer",
]
