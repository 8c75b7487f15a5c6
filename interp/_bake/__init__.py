"""Folding an edit into weights: a planner, and two ways of carrying its plan out."""
