"""Checkpoints compared from disk: reading, canonical names, measures, nulls, workers."""
