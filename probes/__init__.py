"""Learned readouts of a model's activations, and measurements of its behaviour."""

from probes._chrf import chrf_matrix
from probes._decoding import Decoder, contrastive, logit_sum, proxy_tuning
from probes._divergence import divergence
from probes._divergence_record import Divergence
from probes._loss_barrier import LossBarrier, loss_barrier
from probes._reasoning_graph import reasoning_graph
from probes._reasoning_graph_record import ReasoningGraph
from probes._rollouts import Rollout
from probes._trajectories import trajectories
from probes._trajectories_record import Trajectories
from probes._tuned_lens import TunedLens, tuned_lens
from probes._vocabulary import token_class

__all__ = [
    "Decoder",
    "Divergence",
    "LossBarrier",
    "ReasoningGraph",
    "Rollout",
    "Trajectories",
    "TunedLens",
    "chrf_matrix",
    "contrastive",
    "divergence",
    "logit_sum",
    "loss_barrier",
    "proxy_tuning",
    "reasoning_graph",
    "token_class",
    "trajectories",
    "tuned_lens",
]
