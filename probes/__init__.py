"""Learned readouts of a model's activations, and measurements of its behaviour."""

from probes._tuned_lens import TunedLens, tuned_lens

__all__ = ["TunedLens", "tuned_lens"]
