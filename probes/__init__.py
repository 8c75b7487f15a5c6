"""Learned readouts of a model's activations, and measurements of its behaviour."""

from probes._adjacent_change import AdjacentChange, adjacent_change
from probes._ches import Ches, ches
from probes._chrf import chrf_matrix
from probes._conjugate import ConjugateCheck, conjugate, conjugate_check
from probes._decoding import Decoder, contrastive, logit_sum, proxy_tuning
from probes._decoding_iterative import Discovery, contrastive_discovery
from probes._displacement import Displacement, likelihood_displacement
from probes._divergence import divergence
from probes._divergence_record import Divergence
from probes._entropy_trace import EntropyTrace, entropy_trace
from probes._forgetting_fit import ForgettingFit, forgetting_fit
from probes._loss_barrier import LossBarrier, loss_barrier
from probes._provenance import Provenance, provenance
from probes._reasoning_graph import reasoning_graph
from probes._reasoning_graph_record import ReasoningGraph
from probes._rollouts import Rollout
from probes._task_forgetting import TaskChange, TaskForgetting, forgetting_measure, task_forgetting
from probes._trajectories import trajectories
from probes._trajectories_record import Trajectories
from probes._tuned_lens import TunedLens, tuned_lens
from probes._vocabulary import token_class

__all__ = [
    "AdjacentChange",
    "Ches",
    "ConjugateCheck",
    "Decoder",
    "Discovery",
    "Displacement",
    "Divergence",
    "EntropyTrace",
    "ForgettingFit",
    "LossBarrier",
    "Provenance",
    "ReasoningGraph",
    "Rollout",
    "TaskChange",
    "TaskForgetting",
    "Trajectories",
    "TunedLens",
    "adjacent_change",
    "ches",
    "chrf_matrix",
    "conjugate",
    "conjugate_check",
    "contrastive",
    "contrastive_discovery",
    "divergence",
    "entropy_trace",
    "forgetting_fit",
    "forgetting_measure",
    "likelihood_displacement",
    "logit_sum",
    "loss_barrier",
    "provenance",
    "proxy_tuning",
    "reasoning_graph",
    "task_forgetting",
    "token_class",
    "trajectories",
    "tuned_lens",
]
