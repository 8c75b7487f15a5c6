"""What a notebook shows of a record: names and shapes, not the numbers in them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

_MODELS = ("model", "base", "tuned", "before", "after", "distilled", "teacher", "student")
_SHOWN = 4


def brief(record: Any) -> str:
    """One line for `__repr__`: the models, the first fields with their shapes, how many there are.

    Args:
        record: a dataclass, perhaps with `meta`.

    Examples:
        >>> brief(probes.cooccurrence([["cat", "sat"]], ["cat", "sat"]))
        'Cooccurrence(words: 2, units: 1, joint: [2 2], tokens: [2], ... 5 in all)'
    """
    meta = getattr(record, "meta", {})
    names = ", ".join(meta[key][-40:] for key in _MODELS if isinstance(meta.get(key), str))
    parts = [
        f"{field.name}: {_short(getattr(record, field.name))}"
        for field in fields(record)
        if field.name != "meta"
    ]
    more = f", ... {len(parts)} in all" if len(parts) > _SHOWN else ""
    shown = ", ".join(parts[:_SHOWN]) + more
    return f"{type(record).__name__}({names + '; ' * bool(names)}{shown})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"[{' '.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        keys = [str(key) for key in value]
        return ", ".join(keys[:3]) + (f", ... ({len(keys)})" if len(keys) > 3 else "")
    if isinstance(value, list | tuple):
        return str(len(value))
    return f"{value:g}" if isinstance(value, int | float) else type(value).__name__
