"""`hooked`: functions on sites, the primitive under everything."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from interp._errors import InterpError, UnsupportedSite
from interp._model import Model, as_model
from interp._ports import Port, SiteFn, open_port
from interp._reading import refuse_compiled
from interp._resolve import anatomy_of
from interp._selfcheck import verdicts
from interp._site import Site, expand


def ports_of(model: Model, patterns: str | Site | Iterable[str | Site]) -> dict[Site, Port]:
    """The ports of every site that the patterns name.

    A `*` skips layers that lack the site and refuses only when none has it; a layer named
    outright refuses.
    """
    refuse_compiled(model.module)
    anatomy = anatomy_of(model.module)
    distrusted = verdicts(anatomy) if model.check else {}
    found: dict[Site, Port] = {}
    refusals: dict[str, UnsupportedSite] = {}
    for site, starred in expand(patterns, anatomy.n_layers):
        reason = distrusted.get(site.kind) or distrusted.get("hooks")
        try:
            if reason is not None:
                raise UnsupportedSite(
                    f"{site} is not what its name promises in {type(model.module).__name__}: "
                    f"{reason}; other sites can be used, or interp.load(..., check=False)"
                )
            found[site] = open_port(anatomy, site)
        except UnsupportedSite as error:
            if not starred:
                raise
            refusals.setdefault(site.kind, error)
    for kind, refusal in refusals.items():
        if all(site.kind != kind for site in found):
            raise refusal
    return found


@contextmanager
def hooked(model: Model | nn.Module, functions: Mapping[str | Site, SiteFn]) -> Iterator[None]:
    """Run functions on sites in every forward while the context is open.

    Each function is called as `fn(tensor, site)` and returns a replacement of the same shape, or
    None to leave the tensor alone; it gets a copy, so what it does to that in place has no effect.
    Contexts nest: functions run in the order in which they were entered. On leaving, also by an
    exception, the module is exactly as it was. With gradient checkpointing call `backward` inside,
    because the recomputation must see the edit too.

    Args:
        model: a handle or a bare PreTrainedModel.
        functions: site pattern (`"z.3"`, `"resid_post.*"`) -> function. Tensors have the axes of
            `Site.axes`, padding included, and live where the module computes them.

    Raises:
        SiteNotFound: an unknown name, with the nearest valid ones.
        UnsupportedSite: a site that this architecture does not have, with the reason.
        InterpError: what cannot be called as `fn(tensor, site)`; in the forward, a result that is
            no tensor of the same shape.

    Examples:
        >>> def zero_head_5(z, site):          # [batch pos head d_head]
        ...     z = z.clone(); z[:, :, 5] = 0
        ...     return z
        >>> with interp.hooked(model, {"z.3": zero_head_5}):
        ...     logits = model.module(input_ids).logits
    """
    handle = as_model(model)
    if not isinstance(functions, Mapping):
        raise InterpError("expected a mapping from site to function, such as {'z.3': fn}")
    with ExitStack() as stack:
        for pattern, fn in functions.items():
            checked = _checked(fn, pattern)
            for port in ports_of(handle, pattern).values():
                stack.enter_context(port.attach(checked, reads=False))
        yield


def _checked(fn: SiteFn, pattern: str | Site) -> SiteFn:
    """The function, refused here where it cannot be called, and there where it gives no tensor."""
    if not callable(fn):
        raise InterpError(f"{fn!r} on {pattern} is no function; expected fn(tensor, site)")
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError as error:
        raise InterpError(
            f"the function on {pattern} cannot be called as fn(tensor, site): {error}"
        ) from error
    except ValueError:  # some compiled functions do not say what they take
        pass

    def checked(tensor: Tensor, site: Site) -> Tensor | None:
        new = fn(tensor, site)
        if new is not None and not isinstance(new, Tensor):
            raise InterpError(
                f"the function on {site} returned a {type(new).__name__}; expected a tensor of "
                f"shape {list(tensor.shape)}, axes {' '.join(site.axes)}, or None to leave it alone"
            )
        return new

    return checked
