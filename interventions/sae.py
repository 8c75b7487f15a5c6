"""Sparse autoencoders, what their features do, and tuning through them: `iv.sae`."""

from interventions._sae import SAE
from interventions._sae import identity_sae as identity
from interventions._sae import random_sae as random
from interventions._sae_card import SAECard as Card
from interventions._sae_features import FeatureEdit, ablate_features, clamp_features, scale_features
from interventions._sae_files import load_sae as load
from interventions._sae_measure import sae_card as card
from interventions._sae_plan import SAEPlan as Plan
from interventions._sae_train import train_sae as train
from interventions._sae_train import train_saes as train_many
from interventions._sae_tune import tune_with_sae as tune

__all__ = [
    "SAE",
    "Card",
    "FeatureEdit",
    "Plan",
    "ablate_features",
    "card",
    "clamp_features",
    "identity",
    "load",
    "random",
    "scale_features",
    "train",
    "train_many",
    "tune",
]
