"""Putting an edit on a model, and taking it off again to the last bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp._edit.affine import Affine
from interp._edit.change import wide
from interp._edit.clock import Clock, PromptLength
from interp._edit.coefficients import coefficients, expert_coefficients
from interp._edit.delta import Delta
from interp._edit.parameters import (
    Parameter,
    find,
    is_tied,
    named_parameters,
    output_change,
    plain_module,
    require_output_change,
)
from interp._errors import InterpError
from interp._experts import ExpertPort
from interp._hooked import ports_of
from interp._model import Model
from interp._ports import Port
from interp._reading import refuse_compiled
from interp._site import Site


@dataclass
class Application:
    """An edit that is on a model now."""

    edit: Any
    stack: ExitStack = field(default_factory=ExitStack)
    # The weights as they were, by id of the parameter; the parameter is kept so that ids stay.
    originals: dict[int, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)


_ON: weakref.WeakKeyDictionary[nn.Module, list[Application]] = weakref.WeakKeyDictionary()


def applications(module: nn.Module) -> list[Application]:
    """What is on a module now, oldest first."""
    return _ON.setdefault(plain_module(module), [])


def originals(module: nn.Module) -> dict[int, Tensor]:
    """The weights that edits now on the module have changed, as they were before the first."""
    found: dict[int, Tensor] = {}
    for application in applications(module):
        for key, (_parameter, saved) in application.originals.items():
            found.setdefault(key, saved)
    return found


def put_on(
    edit: Any, atoms: Sequence[Affine | Delta], model: Model, prompt_len: PromptLength
) -> Application:
    """Apply atoms: every check first, then the deltas in order, then the affines in order."""
    refuse_compiled(model.module)
    affines = [atom for atom in atoms if isinstance(atom, Affine)]
    deltas = [atom for atom in atoms if isinstance(atom, Delta)]
    ports = [ports_of(model, affine.site)[affine.site] for affine in affines]
    parameters = named_parameters(model.module) if deltas else {}
    targets = [_target(model.module, delta, parameters) for delta in deltas]
    application = Application(edit)
    with application.stack as stack:  # unwound if anything below fails
        for delta, (parameter, outside) in zip(deltas, targets, strict=True):
            if outside:
                stack.enter_context(adding_to_output(parameter, delta))
            else:
                _change(application, delta, parameter)
        timed = any(a.positions != "all" or a.per_prompt for a in affines)
        clock = Clock(plain_module(model.module), prompt_len) if timed else None
        if clock is not None:
            stack.enter_context(clock.running())
        for affine, port in zip(affines, ports, strict=True):
            stack.enter_context(port.attach(_function(affine, port, clock), reads=False))
        application.stack = stack.pop_all()
    applications(model.module).append(application)
    return application


def take_off(application: Application, module: nn.Module) -> None:
    """Undo one application.

    Raises:
        InterpError: a later edit has since changed the same weights.
    """
    stack = applications(module)
    later = stack[stack.index(application) + 1 :]
    for other in later:
        shared = application.originals.keys() & other.originals.keys()
        if shared:
            raise InterpError(
                f"{len(shared)} of the weights that this edit changed were changed again by a "
                f"later one, {other.edit!r}; undo that one first"
            )
    stack.remove(application)
    application.stack.close()


def _target(
    module: nn.Module, delta: Delta, parameters: Mapping[str, Parameter]
) -> tuple[Parameter, bool]:
    """The parameter, and whether it must stay as it is while its module's output changes."""
    parameter = find(module, delta.parameter, delta.change, parameters)
    outside = not parameter.in_place or (delta.untie and is_tied(parameter, parameters))
    if outside:
        require_output_change(parameter, delta.change)
    return parameter, outside


def _change(application: Application, delta: Delta, parameter: Parameter) -> None:
    weight: Any = parameter.tensor
    with torch.no_grad():
        changed = delta.change.applied_to(weight.detach())
        if id(weight) not in application.originals:
            saved = weight.detach().clone()
            application.originals[id(weight)] = (weight, saved)
            application.stack.callback(_restore, weight, saved)
        weight.copy_(changed)


def _restore(weight: Tensor, saved: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(saved)


@contextmanager
def adding_to_output(parameter: Parameter, delta: Delta) -> Iterator[None]:
    """Let a module's own forward add the change: inside it, so that every hook comes after."""
    owner, change = parameter.owner, delta.change
    before = owner.__dict__.get("forward")
    plain: Callable[..., Tensor] = owner.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = plain(x, *args, **kwargs)
        return out + output_change(parameter, change, x).to(out.dtype)

    owner.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            owner.__dict__.pop("forward", None)
        else:
            owner.__dict__["forward"] = before


def _function(
    affine: Affine, port: Port, clock: Clock | None
) -> Callable[[Tensor, Site], Tensor | None]:
    """What the hook computes."""
    if isinstance(port, ExpertPort) and affine.per_prompt:
        raise InterpError(f"{affine.site}: expert neurons take no shift per prompt and token")
    kept: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = {}

    def edit(x: Tensor, _site: Site) -> Tensor:
        key = (x.device, x.dtype, x.shape[2:])
        if key not in kept:
            kept[key] = _coefficients(affine, port, x)
        scale, shift = kept[key]
        if isinstance(port, ExpertPort):  # the coefficients of every expert: those of each row
            ids = port.expert_ids
            scale = scale[ids] if scale is not None and scale.ndim == 2 else scale
            shift = shift[ids] if shift is not None else None
        if affine.per_prompt:
            assert clock is not None and shift is not None
            shift = _at_places(affine, shift, clock, x)
        new = x if scale is None else x * scale
        if shift is not None:
            new = new + shift
        new = new.to(x.dtype)
        if clock is None or affine.positions == "all":
            return new
        mask = clock.mask(affine.positions, x)
        return torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), new, x)

    return edit


def _coefficients(affine: Affine, port: Port, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) for tensors like `x`, where it lives; of every expert where there are any."""
    dtype = wide(x.dtype)
    if isinstance(port, ExpertPort):
        experts = int(port.experts.num_experts)
        found = expert_coefficients(affine, experts, x.shape[-1], dtype)
    else:
        found = coefficients(affine, tuple(x.shape[2:]), dtype)
    scale, shift = (None if c is None else c.to(x.device) for c in found)
    return scale, shift


def _at_places(affine: Affine, shift: Tensor, clock: Clock, x: Tensor) -> Tensor:
    """The shift [batch pos ...] of each column of this forward: [row column ...]."""
    places, present = clock.places(x)
    prompts, length = shift.shape[:2]
    if len(x) % prompts:
        raise InterpError(
            f"the shift at {affine.site} is for {prompts} prompts; the forward has {len(x)} rows"
        )
    wanted = clock.mask(affine.positions, x) & present
    beyond = int(places[wanted].max()) if bool(wanted.any()) else 0
    if beyond >= length:
        raise InterpError(
            f"the shift at {affine.site} holds {length} tokens a prompt, and the forward reached "
            f"token {beyond}; limit the edit with positions='prompt'"
        )
    rows = torch.arange(prompts, device=x.device).repeat_interleave(len(x) // prompts)
    found = shift[rows[:, None], places.clamp(0, length - 1)]
    return torch.where(wanted.reshape(*wanted.shape, *[1] * (x.ndim - 2)), found, 0.0)
