"""The run-time type checker of the test run: beartype, but not on functions inside functions.

Those are made anew at each call (every hook is one), and checking would be compiled anew each time:
milliseconds for a function that runs for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its annotations enforced, unless it is local to another."""
    inner = "<locals>" in getattr(function, "__qualname__", "")
    return function if inner else beartype(function)
