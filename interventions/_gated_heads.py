"""Edits of heads while they are learned: vectors behind gates, one elementwise map a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import interp
from interp import Affine, Model, Site
from interventions import _hard_concrete as hard_concrete
from interventions._examples import Encoded


@dataclass
class Heads:
    """The heads of one layer."""

    shift: Float[Tensor, "head d_head"]
    factor: Float[Tensor, "head d_head"]
    additive: Float[Tensor, " head"]  # log alpha of the gates
    multiplicative: Float[Tensor, " head"]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that is learned."""
        return self.shift, self.factor, self.additive, self.multiplicative


@dataclass
class GatedHeads:
    """The edit while it is learned; heads of a layer are one elementwise map."""

    layers: dict[Site, Heads]
    depth: int
    generator: torch.Generator

    @staticmethod
    def on(
        model: Model,
        examples: Sequence[Encoded],
        spread: int | float,
        generator: torch.Generator,
        start: int | float | None = None,
    ) -> GatedHeads:
        """Vectors and gates for every layer that has heads."""
        acts = interp.capture(model, [list(examples[0].prompt)], "z.*", positions=-1)
        layers = {}
        for site in acts:
            heads, width = acts[site].shape[-2:]
            bound = math.sqrt(6 / (heads + 1))  # Xavier's for a matrix [head 1]
            made = [spread * torch.randn(heads, width, generator=generator) for _ in range(2)]
            drawn = [(2 * torch.rand(heads, generator=generator) - 1) * bound for _ in range(2)]
            made += [gate if start is None else torch.full_like(gate, start) for gate in drawn]
            layers[site] = Heads(*(tensor.requires_grad_() for tensor in made))
        return GatedHeads(layers, model.anatomy.n_layers, generator)

    def groups(self, lr: int | float, gate_lr: int | float) -> list[dict[str, Any]]:
        """Vectors and gates, each with its rate."""
        layers = self.layers.values()
        vectors = [tensor for layer in layers for tensor in (layer.shift, layer.factor)]
        switches = [tensor for layer in layers for tensor in (layer.additive, layer.multiplicative)]
        return [{"params": vectors, "lr": lr}, {"params": switches, "lr": gate_lr}]

    @property
    def parameters(self) -> list[Tensor]:
        """All that is learned."""
        return [tensor for layer in self.layers.values() for tensor in layer.tensors]

    def noisy(self, z: Tensor, site: Site) -> Tensor:
        """The map with sampled gates, the same for a whole batch."""
        layer = self.layers[site]
        uniform = torch.rand(2, len(layer.additive), generator=self.generator)
        gates = hard_concrete.sample(torch.stack([layer.additive, layer.multiplicative]), uniform)
        return _mapped(z, layer, gates[0], gates[1])

    def settled(self, z: Tensor, site: Site) -> Tensor:
        """The map with the gates of the edit."""
        layer = self.layers[site]
        open_, scaled = (hard_concrete.settled(a) for a in (layer.additive, layer.multiplicative))
        return _mapped(z, layer, open_, scaled)

    def prices(self) -> tuple[Tensor, Tensor]:
        """Mean over heads of P(gate != 0), of additive and multiplicative gates."""
        kinds = zip(*((at.additive, at.multiplicative) for at in self.layers.values()), strict=True)
        additive, multiplicative = (
            hard_concrete.open_probability(torch.cat(kind)).mean() for kind in kinds
        )
        return additive, multiplicative

    def open(self) -> dict[str, float | int | None]:
        """How many gates of the edit are not 0."""
        return {
            f"open {kind}": sum(
                int((hard_concrete.settled(getattr(layer, kind)) > 0).sum())
                for layer in self.layers.values()
            )
            for kind in ("additive", "multiplicative")
        }

    def gates(self) -> tuple[Tensor, Tensor]:
        """[layer head] of both kinds, NaN where a layer has no such head."""
        most = max(len(layer.additive) for layer in self.layers.values())
        found = torch.full((2, self.depth, most), torch.nan)
        for site, layer in self.layers.items():
            for kind, log_alpha in enumerate((layer.additive, layer.multiplicative)):
                settled = hard_concrete.settled(log_alpha.detach())
                found[kind, site.layer or 0, : len(settled)] = settled
        return found[0], found[1]

    def atoms(self) -> list[Affine]:
        """One a layer, with the heads whose gates are open."""
        atoms = []
        for site, layer in self.layers.items():
            shift, factor, additive, multiplicative = (t.detach() for t in layer.tensors)
            added = hard_concrete.settled(additive)[:, None] * shift
            scale = 1 + hard_concrete.settled(multiplicative)[:, None] * factor
            chosen = ((added != 0) | (scale != 1)).any(dim=1).nonzero()[:, 0].tolist()
            if chosen:
                atoms.append(Affine(site, chosen, scale[chosen], added[chosen]))
        return atoms

    def state(self) -> list[Tensor]:
        """A copy of all that is learned."""
        return [tensor.detach().clone() for tensor in self.parameters]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Back to a copy."""
        for tensor, value in zip(self.parameters, state, strict=True):
            tensor.copy_(value)


def _mapped(z: Tensor, layer: Heads, additive: Tensor, multiplicative: Tensor) -> Tensor:
    scale = 1 + multiplicative[:, None] * layer.factor
    shift = additive[:, None] * layer.shift
    wide = z if z.dtype == torch.float64 else z.float()
    return (wide * scale.to(wide) + shift.to(wide)).to(z.dtype)
