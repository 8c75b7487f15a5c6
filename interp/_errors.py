"""Errors a stranger can act on: what was given, what was expected, the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class InterpError(ValueError):
    """Something asked of the toolkit cannot be done; the message says what to do instead."""


class SiteNotFound(InterpError, KeyError):
    """A site name that this model does not have; a KeyError too, since records are mappings."""

    __str__ = Exception.__str__  # KeyError would quote the sentence


class UnsupportedSite(InterpError):
    """A site that exists in the vocabulary but cannot be named honestly in this architecture."""


def nearest(given: str, valid: Iterable[str], *, n: int = 3) -> str:
    """A phrase naming the valid names closest to `given`, or all of them when few.

    >>> nearest("resid_pots", ["resid_pre", "resid_post", "z"])
    "nearest valid names: 'resid_post', 'resid_pre'"
    """
    valid = list(valid)
    close = difflib.get_close_matches(given, valid, n=n, cutoff=0.5)
    if close:
        return "nearest valid names: " + ", ".join(repr(name) for name in close)
    return "valid names: " + ", ".join(repr(name) for name in valid)


def counted(n: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def neither_folder_nor_hub(source: str, reason: str) -> str:
    """The sentence for a name that is no folder here and that the hub does not give."""
    folder = Path(source)
    near = f" ({folders_near(folder)})" if folder.parent.is_dir() else ""
    return f"{source!r} is neither a folder here{near} nor a checkpoint the hub gives: {reason}"


def folders_near(folder: Path) -> str:
    """A phrase naming the folders beside a missing one whose names are close to its own."""
    if not folder.parent.is_dir():
        return f"{folder.parent} does not exist either"
    names = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
    close = difflib.get_close_matches(folder.name, names)
    return "nearest folders there: " + ", ".join(map(repr, close)) if close else "check the path"
