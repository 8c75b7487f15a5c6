"""Edits of facts: ROME, MEMIT and localised fine-tuning, and what they are measured with."""

from interventions._key_covariance import KeyCovariance, key_covariance
from interventions._localised_finetuning import localised_finetuning
from interventions._memit import memit
from interventions._rewrite import Rewrite
from interventions._rome import rome, rome_each
from interventions._value import ValueSearch

__all__ = [
    "KeyCovariance",
    "Rewrite",
    "ValueSearch",
    "key_covariance",
    "localised_finetuning",
    "memit",
    "rome",
    "rome_each",
]
