"""The only module that unpacks what a hook receives and repacks what it returns.

In transformers 5 most blocks return a bare tensor and some a tuple, some modules are called with
keywords and some without; nobody else needs to know. One tap sits on each used side of a module
and is shared by everyone who writes or reads there: edits run in the order in which they were
entered, then the reads, so that a capture always sees values after edits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from interp._forward import every_module

Side = Literal["input", "output"]
Visitor = Callable[[Tensor], Tensor | None]  # raw tensor -> replacement, or None to leave it

_INPUT_NAMES = ("hidden_states", "x", "input", "inputs_embeds")


def unpack_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among a module's arguments."""
    if args:
        return args[0]
    return kwargs[_input_name(kwargs)]


def repack_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other hidden states."""
    if args:
        return (new, *args[1:]), kwargs
    return args, {**kwargs, _input_name(kwargs): new}


def unpack_output(output: Any) -> Tensor:
    """The hidden states among a module's results: a bare tensor, or a tuple's first entry."""
    return output[0] if isinstance(output, tuple | list) else output


def repack_output(output: Any, new: Tensor) -> Any:
    """The same results with other hidden states."""
    if isinstance(output, tuple | list):
        return type(output)((new, *output[1:]))
    return new


def _input_name(kwargs: dict[str, Any]) -> str:
    for name in _INPUT_NAMES:
        if name in kwargs:
            return name
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


@dataclass
class _Tap:
    edits: list[Visitor] = field(default_factory=list)
    reads: list[Visitor] = field(default_factory=list)
    handle: Any = None

    def visit(self, raw: Tensor) -> Tensor | None:
        """Run everyone in turn; None when nobody replaced the tensor."""
        current = raw
        for visitor in (*self.edits, *self.reads):
            replacement = visitor(current)
            if replacement is not None:
                current = replacement
        return None if current is raw else current


_TAPS: weakref.WeakKeyDictionary[nn.Module, dict[Side, _Tap]] = weakref.WeakKeyDictionary()


def _install(module: nn.Module, side: Side) -> _Tap:
    tap = _Tap()

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = tap.visit(unpack_input(args, kwargs))
        return None if new is None else repack_input(args, kwargs, new)

    def on_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        new = tap.visit(unpack_output(output))
        return None if new is None else repack_output(output, new)

    # Prepended, because transformers installs capture hooks of its own that stay for good: an
    # edit after them would move the logits but not the hidden states that they report.
    if side == "input":
        tap.handle = module.register_forward_pre_hook(on_input, prepend=True, with_kwargs=True)
    else:
        tap.handle = module.register_forward_hook(on_output, prepend=True)
    return tap


def in_use(module: nn.Module) -> bool:
    """Whether anybody visits the module or a part of it."""
    return any(_TAPS.get(part) for part in every_module(module))


@contextmanager
def visiting(module: nn.Module, side: Side, visitor: Visitor, *, reads: bool) -> Iterator[None]:
    """Let `visitor` see, and perhaps replace, a module's hidden states while this is open."""
    taps = _TAPS.setdefault(module, {})
    tap = taps.get(side)
    if tap is None:
        tap = taps[side] = _install(module, side)
    visitors = tap.reads if reads else tap.edits
    visitors.append(visitor)
    try:
        yield
    finally:
        # By identity: two equal functions may stand in the list.
        index = next(i for i in reversed(range(len(visitors))) if visitors[i] is visitor)
        del visitors[index]
        if not tap.edits and not tap.reads:
            tap.handle.remove()
            del taps[side]
