"""Sparse autoencoders, what their features do, and tuning through them: `iv.sae`."""

from interventions._sae import SAE
from interventions._sae import identity_sae as identity
from interventions._sae import random_sae as random
from interventions._sae_files import load_sae as load
from interventions._sae_plan import SAEPlan as Plan
from interventions._sae_train import train_sae as train
from interventions._sae_train import train_saes as train_many

__all__ = ["SAE", "Plan", "identity", "load", "random", "train", "train_many"]
