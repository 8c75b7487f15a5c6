"""Activation patching and what follows from it: one sweep engine under several questions."""
