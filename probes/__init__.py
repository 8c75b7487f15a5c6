"""Learned readouts of a model's activations, and measurements of its behaviour."""

from typing import TYPE_CHECKING, Any

from probes._adjacent_change import AdjacentChange, adjacent_change
from probes._ches import Ches, ches
from probes._chrf import chrf_matrix
from probes._conjugate import ConjugateCheck, conjugate, conjugate_check
from probes._cooccurrence import Cooccurrence, cooccurrence, pivot_ratio
from probes._decoding import Decoder, contrastive, logit_sum, proxy_tuning
from probes._decoding_iterative import Discovery, contrastive_discovery
from probes._displacement import Displacement, likelihood_displacement
from probes._divergence import divergence
from probes._divergence_record import Divergence
from probes._entropy_trace import EntropyTrace, entropy_trace
from probes._forgetting import forgetting
from probes._forgetting_fact import Fact
from probes._forgetting_fit import ForgettingFit, forgetting_fit
from probes._forgetting_record import Forgetting
from probes._loss_barrier import LossBarrier, loss_barrier
from probes._pivot_scores import PivotScores, pivot_scores
from probes._provenance import Provenance, provenance
from probes._random_twin import random_twin
from probes._reasoning_graph import reasoning_graph
from probes._reasoning_graph_record import ReasoningGraph
from probes._rollouts import Rollout
from probes._sweep import sweep
from probes._sweep_record import ProbeSweep
from probes._task_forgetting import TaskChange, TaskForgetting, forgetting_measure, task_forgetting
from probes._trajectories import trajectories
from probes._trajectories_record import Trajectories
from probes._transfer import transfer
from probes._transfer_record import ProbeTransfer
from probes._tuned_lens import TunedLens, tuned_lens
from probes._vocabulary import token_class

if TYPE_CHECKING:
    from probes._linear_probe import LinearProbe

__all__ = [
    "AdjacentChange",
    "Ches",
    "ConjugateCheck",
    "Cooccurrence",
    "Decoder",
    "Discovery",
    "Displacement",
    "Divergence",
    "EntropyTrace",
    "Fact",
    "Forgetting",
    "ForgettingFit",
    "LinearProbe",
    "LossBarrier",
    "PivotScores",
    "ProbeSweep",
    "ProbeTransfer",
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
    "cooccurrence",
    "divergence",
    "entropy_trace",
    "forgetting",
    "forgetting_fit",
    "forgetting_measure",
    "likelihood_displacement",
    "logit_sum",
    "loss_barrier",
    "pivot_ratio",
    "pivot_scores",
    "provenance",
    "proxy_tuning",
    "random_twin",
    "reasoning_graph",
    "sweep",
    "task_forgetting",
    "token_class",
    "trajectories",
    "transfer",
    "tuned_lens",
]


def __getattr__(name: str) -> Any:
    # A scikit-learn estimator by inheritance, and importing probes must not load scikit-learn.
    if name == "LinearProbe":
        from probes._linear_probe import LinearProbe

        return LinearProbe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
