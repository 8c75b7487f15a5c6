"""Intervals of the studies' numbers; they live lower down, because probes need them too."""

from interp._estimate import Estimate, cluster_mean

__all__ = ["Estimate", "cluster_mean"]
