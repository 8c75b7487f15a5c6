"""Methods that find or learn a change to a model and return it as an edit or a mask."""

from interp import Affine, Delta, Edit
from interventions import knowledge, masks, sae, weights
from interventions._ablate import ablate
from interventions._corda import tune_with_corda
from interventions._dcm import Desideratum, learn_head_mask
from interventions._detrimental_neurons import (
    DetrimentalNeurons,
    find_detrimental_neurons,
    prune_detrimental_neurons,
)
from interventions._head_edits import find_head_edits, learn_head_edits
from interventions._head_gates import HeadGates
from interventions._head_mask import HeadMask
from interventions._head_thinning import thin_head_edits
from interventions._heads import add_to_heads, scale_heads
from interventions._key_covariance import KeyCovariance, key_covariance
from interventions._localised_finetuning import localised_finetuning
from interventions._low_rank import lora, low_rank
from interventions._masked_tune import masked_tune
from interventions._masks import principal_mask
from interventions._memit import memit
from interventions._neurons import prune_neurons
from interventions._norm_matched_random import norm_matched_random
from interventions._questions import Question, answered_rightly
from interventions._reset import reset
from interventions._rewrite import Rewrite
from interventions._rome import rome
from interventions._sae import SAE
from interventions._sae_card import SAECard
from interventions._sae_features import ablate_features, clamp_features, scale_features
from interventions._sae_files import load_sae
from interventions._sae_measure import sae_card
from interventions._sae_plan import SAEPlan
from interventions._sae_train import train_sae, train_saes
from interventions._sae_tune import tune_with_sae
from interventions._steer import steer
from interventions._task_vector import task_vector
from interventions._transplant import transplant
from interventions._value import ValueSearch
from interventions._weight_mask import WeightMask

__all__ = [
    "SAE",
    "Affine",
    "Delta",
    "Desideratum",
    "DetrimentalNeurons",
    "Edit",
    "HeadGates",
    "HeadMask",
    "KeyCovariance",
    "Question",
    "Rewrite",
    "SAECard",
    "SAEPlan",
    "ValueSearch",
    "WeightMask",
    "ablate",
    "ablate_features",
    "add_to_heads",
    "answered_rightly",
    "clamp_features",
    "find_detrimental_neurons",
    "find_head_edits",
    "key_covariance",
    "knowledge",
    "learn_head_edits",
    "learn_head_mask",
    "load_sae",
    "localised_finetuning",
    "lora",
    "low_rank",
    "masked_tune",
    "masks",
    "memit",
    "norm_matched_random",
    "principal_mask",
    "prune_detrimental_neurons",
    "prune_neurons",
    "reset",
    "rome",
    "sae",
    "sae_card",
    "scale_features",
    "scale_heads",
    "steer",
    "task_vector",
    "thin_head_edits",
    "train_sae",
    "train_saes",
    "transplant",
    "tune_with_corda",
    "tune_with_sae",
    "weights",
]
