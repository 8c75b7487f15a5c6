"""Read a language model at every site, exactly."""

from interp._activations import Activations
from interp._answers import answer_logprob
from interp._attribute import attribute
from interp._attribute_target import Target
from interp._attribution import Attribution
from interp._bake.bake import bake
from interp._bake.report import BakeReport
from interp._batch import Batch
from interp._capture import capture, capture_corpus, capture_generation
from interp._compare import compare
from interp._diff import DiffOptions, diff
from interp._edit.affine import Affine
from interp._edit.change import Dense, LowRank, Sparse, Towards
from interp._edit.delta import Delta
from interp._edit.edit import Edit
from interp._errors import InterpError, SiteNotFound, UnsupportedSite
from interp._hooked import hooked
from interp._lens import logit_lens
from interp._lens_trace import LensTrace
from interp._linear_lens import LinearLens
from interp._load import load
from interp._logit_attribution import LogitAttribution, logit_attribution
from interp._model import Model
from interp._patch.causal_trace import causal_trace
from interp._patch.circuit import circuit_scores
from interp._patch.circuit_scores import CircuitScores
from interp._patch.effects import PatchEffects
from interp._patch.metric import Accuracy
from interp._patch.patch import patch
from interp._patch.path import path_patch
from interp._patch.plan import Place
from interp._patch.tokens import token_positions
from interp._replay import Replay, replay, replay_last
from interp._side_effects import side_effects
from interp._side_effects_record import SideEffects
from interp._site import Site
from interp._store import ActivationStore
from interp._weights.comparison import WeightComparison
from interp._weights.weight_diff import WeightDiff

__all__ = [
    "Accuracy",
    "ActivationStore",
    "Activations",
    "Affine",
    "Attribution",
    "BakeReport",
    "Batch",
    "CircuitScores",
    "Delta",
    "Dense",
    "DiffOptions",
    "Edit",
    "InterpError",
    "LensTrace",
    "LinearLens",
    "LogitAttribution",
    "LowRank",
    "Model",
    "PatchEffects",
    "Place",
    "Replay",
    "SideEffects",
    "Site",
    "SiteNotFound",
    "Sparse",
    "Target",
    "Towards",
    "UnsupportedSite",
    "WeightComparison",
    "WeightDiff",
    "answer_logprob",
    "attribute",
    "bake",
    "capture",
    "capture_corpus",
    "capture_generation",
    "causal_trace",
    "circuit_scores",
    "compare",
    "diff",
    "hooked",
    "load",
    "logit_attribution",
    "logit_lens",
    "patch",
    "path_patch",
    "replay",
    "replay_last",
    "side_effects",
    "token_positions",
]
