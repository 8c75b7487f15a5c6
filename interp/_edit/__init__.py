"""The edit algebra: two kinds of atom, an ordered list of them, and how they act on a model."""
