"""The same sites through other toolkits: TransformerLens, and nnsight (NDIF included).

    from interp.adapters import nnsight, transformer_lens

Neither package is imported before a function that needs it is called.
"""

from interp.adapters import nnsight, transformer_lens

__all__ = ["nnsight", "transformer_lens"]
