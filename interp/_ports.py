"""From a site to the place in the module tree where it is read and written.

A port turns a module's raw tensor into the site's tensor and back. `open_port` refuses, with the
reason, where an architecture has no such site or none that can be named honestly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp._anatomy import Anatomy, Block, Qkv
from interp._errors import InterpError, UnsupportedSite
from interp._experts import ExpertPort
from interp._hooks import Side, Visitor, visiting
from interp._pattern import PatternPort
from interp._site import Site

SiteFn = Callable[[Tensor, Site], Tensor | None]


@runtime_checkable
class Port(Protocol):
    """Anything that can let a function see, and perhaps replace, a site's tensor."""

    @property
    def site(self) -> Site:
        """The site it opens."""
        ...

    def attach(self, fn: SiteFn, *, reads: bool) -> AbstractContextManager[None]:
        """Call `fn(tensor, site)` in every forward while the context is open."""
        ...


@dataclass(frozen=True)
class ModulePort:
    """A site that is one side of one module, seen through a view.

    Args:
        view: raw tensor -> the site's tensor, as a view where `partial`.
        partial: the site is only part of the raw tensor, which must keep the rest.
        multiplier: the site is `multiplier * raw` (Granite's residual multiplier).
        fragile: the model later overwrites the raw tensor in place, or shares it with another
            path, so readers get a copy and writers give one.
        in_place: writing must change the very tensor, because the skip path holds it too.
        flattened_in: the block, where it flattens batch and pos into one axis before this module
            (OPT); its own input then tells their sizes.
    """

    site: Site
    module: nn.Module
    side: Side
    view: Callable[[Tensor], Tensor] = lambda raw: raw
    partial: bool = False
    multiplier: float = 1.0
    fragile: bool = False
    in_place: bool = False
    flattened_in: nn.Module | None = None

    @contextmanager
    def attach(self, fn: SiteFn, *, reads: bool) -> Iterator[None]:
        visitor = self._visitor(fn, reads)
        if self.flattened_in is None:
            with visiting(self.module, self.side, visitor, reads=reads):
                yield
            return
        sizes: list[torch.Size] = []

        def unflattened(raw: Tensor) -> Tensor | None:
            if raw.ndim == 3:  # XGLM and BioGPT name the parts alike, and flatten nothing
                return visitor(raw)
            new = visitor(raw.unflatten(0, sizes[-1]))
            return None if new is None or self.in_place else new.flatten(0, 1)

        with (
            visiting(self.flattened_in, "input", _note_sizes(sizes), reads=True),
            visiting(self.module, self.side, unflattened, reads=reads),
        ):
            yield

    def read(self, raw: Tensor) -> Tensor:
        """The site's tensor."""
        seen = self.view(raw)
        if self.multiplier != 1.0:
            return seen * self.multiplier
        return seen.clone() if self.fragile or (self.partial and seen is not raw) else seen

    def write(self, raw: Tensor, new: Tensor) -> Tensor:
        """The raw tensor with the site's part replaced by `new`."""
        if self.multiplier != 1.0:
            new = new / self.multiplier
        if self.partial:
            out = raw.clone()
            target = self.view(out)
            target.copy_(new.reshape(target.shape))
            return out
        new = new.to(device=raw.device, dtype=raw.dtype).reshape(raw.shape)
        if self.in_place:
            return raw.copy_(new)
        return new.clone() if self.fragile else new

    def _visitor(self, fn: SiteFn, reads: bool) -> Visitor:
        def visitor(raw: Tensor) -> Tensor | None:
            seen = self.read(raw)
            if not reads or (self.in_place and self.flattened_in is not None):
                # An edit is what the function returns: what it does to its own copy of the
                # tensor reaches neither the model nor an earlier capture.
                seen = seen.clone()
            new = fn(seen, self.site)
            if new is None or new is raw:
                return new
            if new.shape != seen.shape:
                raise InterpError(
                    f"the function on {self.site} returned shape {list(new.shape)}; expected "
                    f"{list(seen.shape)}, axes {' '.join(self.site.axes)}"
                )
            return self.write(raw, new)

        return visitor


def _note_sizes(sizes: list[torch.Size]) -> Visitor:
    def visitor(raw: Tensor) -> None:
        sizes[:] = [raw.shape[:2]]

    return visitor


@dataclass(frozen=True)
class HeadOutPort:
    """Each head's own output: `head_out[h] = z[h] @ W_O[h]`, read only."""

    site: Site
    z: ModulePort
    o_proj: nn.Module

    def attach(self, fn: SiteFn, *, reads: bool) -> AbstractContextManager[None]:
        def on_z(z: Tensor, _site: Site) -> None:
            if fn(head_outputs(self.o_proj, z), self.site) is not None and not reads:
                raise UnsupportedSite(
                    f"{self.site} is computed from z and cannot be written; write "
                    f"'z.{self.site.layer}' instead (a head is scaled or shifted there exactly)"
                )

        return self.z.attach(on_z, reads=reads)


def head_outputs(o_proj: nn.Module, z: Tensor) -> Tensor:
    """What each head adds through the output projection, bias excluded.

    Args:
        o_proj: the output projection.
        z: [batch pos head d_head].

    Returns:
        [batch pos head d_model]; the sum over heads is the projection's output minus its bias.
    """
    heads, d_head = z.shape[-2:]
    plain = type(o_proj).forward in (nn.Linear.forward, Conv1D.forward) or (
        isinstance(o_proj, nn.Linear) and type(o_proj).__module__.startswith("transformers.")
    )
    matrix = o_proj.weight if plain else None
    if isinstance(matrix, Tensor) and not matrix.is_meta:
        weight = matrix if isinstance(o_proj, Conv1D) else matrix.T
        return torch.einsum("bphd,hdm->bphm", z, weight.view(heads, d_head, -1))
    # Adapters, quantised and offloaded weights are no plain matrix here: run the projection
    # itself, one head at a time, and subtract what it gives for zero. Its forward, because
    # calling it would set off the very hooks that brought us here.
    empty = o_proj.forward(torch.zeros_like(z).flatten(-2))
    outputs = []
    for head in range(heads):
        only = torch.zeros_like(z)
        only[:, :, head] = z[:, :, head]
        outputs.append(o_proj.forward(only.flatten(-2)) - empty)
    return torch.stack(outputs, dim=2)


def open_port(anatomy: Anatomy, site: Site) -> Port:
    """The port of a site.

    Raises:
        UnsupportedSite: with the reason.
    """
    if site.layer is None:
        return _embed_port(anatomy, site)
    block = anatomy.blocks[site.layer]
    if site.kind == "resid_pre":
        return ModulePort(site, block.module, "input")
    if site.kind == "resid_post":
        return ModulePort(site, block.module, "output")
    if site.kind == "resid_mid":
        return _resid_mid_port(block, site)
    if site.kind == "attn_out":
        return _branch_port(block, block.attn_out_module, site)
    if site.kind == "mlp_out":
        return _branch_port(block, block.mlp_out_module, site)
    if site.kind == "mlp_post":
        return _neuron_port(block, site)
    return _attention_port(block, site)


def _embed_port(anatomy: Anatomy, site: Site) -> Port:
    if anatomy.positions is None:
        # Without a position table the first block reads exactly the scaled, normed embedding.
        return ModulePort(site, anatomy.blocks[0].module, "input")
    return ModulePort(site, anatomy.project_in or anatomy.embedding, "output")


def _resid_mid_port(block: Block, site: Site) -> Port:
    if block.parallel:
        raise UnsupportedSite(
            f"{site}: attention and MLP of this architecture read the same stream in parallel, so "
            f"there is no stream between them; use 'resid_pre.{site.layer}', "
            f"'attn_out.{site.layer}' or 'resid_post.{site.layer}'"
        )
    if block.pre_mlp is None:
        raise UnsupportedSite(f"{site}: found no module that reads the stream before the MLP")
    return ModulePort(
        site, block.pre_mlp, "input", in_place=True, flattened_in=_flattened_in(block)
    )


def _flattened_in(block: Block) -> nn.Module | None:
    return block.module if block.mlp is None else None


def _branch_port(block: Block, module: nn.Module | None, site: Site) -> Port:
    if module is None:
        raise UnsupportedSite(f"{site}: this block has no such part")
    if site.kind == "attn_out":
        return ModulePort(site, module, "output", multiplier=block.multiplier)
    return ModulePort(
        site,
        module,
        "output",
        multiplier=block.multiplier,
        fragile=block.parallel,  # Falcon adds attention onto it in place
        flattened_in=_flattened_in(block),
    )


def _neuron_port(block: Block, site: Site) -> Port:
    if block.experts is not None and block.mlp is not None:
        return ExpertPort(site, block.mlp, block.experts)
    if block.down is None:
        raise UnsupportedSite(f"{site}: found no down projection in this block")
    return ModulePort(site, block.down, "input", flattened_in=_flattened_in(block))


def _attention_port(block: Block, site: Site) -> Port:
    if block.attn is None or block.o_proj is None:
        raise UnsupportedSite(
            f"{site}: block {site.layer} uses linear attention, which has no heads in the sense of "
            f"{site.kind}; its output can be read at 'attn_out.{site.layer}'"
        )
    if site.kind == "pattern":
        return PatternPort(site, block.attn)
    if site.kind in ("q", "k", "v"):
        if block.qkv is None:
            raise UnsupportedSite(
                f"{site}: this architecture compresses queries, keys and values into shared "
                f"low-rank latents (MLA), so no projection gives them per head; 'z.{site.layer}' "
                f"and 'pattern.{site.layer}' exist"
            )
        kind: Literal["q", "k", "v"] = site.kind  # type: ignore[assignment]
        return _qkv_port(block.qkv, kind, site)
    z = ModulePort(Site("z", site.layer), block.o_proj, "input", view=_heads_view(block.n_heads))
    return z if site.kind == "z" else HeadOutPort(site, z, block.o_proj)


def _heads_view(n_heads: int) -> Callable[[Tensor], Tensor]:
    # The projection's own width, never config.head_dim: MLA and others differ from it.
    return lambda raw: raw.reshape(*raw.shape[:-1], n_heads, raw.shape[-1] // n_heads)


def _qkv_port(qkv: Qkv, kind: Literal["q", "k", "v"], site: Site) -> Port:
    module = qkv.modules["qkv".index(kind)]
    whole = qkv.layout == "separate" and not (kind == "q" and qkv.gated_query)
    if qkv.layout == "grouped" and kind == "q":
        return _GroupedQueryPort(site, module, "output", lambda raw: qkv.view("q", raw), True)
    return ModulePort(site, module, "output", lambda raw: qkv.view(kind, raw), not whole)


class _GroupedQueryPort(ModulePort):
    """Falcon 40B: queries lie between the keys, so their heads cannot be one view."""

    def read(self, raw: Tensor) -> Tensor:
        return self.view(raw).flatten(2, 3)
