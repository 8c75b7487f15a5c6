"""Learned readouts of a model's activations, and measurements of its behaviour."""

from probes._chrf import chrf_matrix
from probes._reasoning_graph import reasoning_graph
from probes._reasoning_graph_record import ReasoningGraph
from probes._rollouts import Rollout
from probes._trajectories import trajectories
from probes._trajectories_record import Trajectories
from probes._tuned_lens import TunedLens, tuned_lens

__all__ = [
    "ReasoningGraph",
    "Rollout",
    "Trajectories",
    "TunedLens",
    "chrf_matrix",
    "reasoning_graph",
    "trajectories",
    "tuned_lens",
]
