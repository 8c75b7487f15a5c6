"""Chosen entries of a model's weights as vectors that are trained; then every bit is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp import Delta, Edit, InterpError, Sparse
from interp._edit.change import wide
from interp._edit.parameters import named_parameters
from interp._errors import nearest
from interventions._checkpoint import part
from interventions._prior import Prior
from interventions._weight_mask import WeightMask

Pair = tuple[Tensor, Tensor]  # places in a flattened parameter, and values there


@dataclass
class Entries:
    """Those of a mask, as `Learned` wants them.

    Args:
        module: whose weights hold them, rounded to their dtype.
        weights: by name.
        index: the places chosen now, in the flattened weights.
        named: the vectors, which know more digits than the weights.
        begun: every place ever chosen, and what was stored there before.
        left: places no longer chosen, and what they had reached.
        hooks: which take the chosen entries out of each gradient.
    """

    module: nn.Module
    weights: dict[str, Tensor] = field(default_factory=dict)
    index: dict[str, Int[Tensor, " entry"]] = field(default_factory=dict)
    named: dict[str, Float[Tensor, " entry"]] = field(default_factory=dict)
    begun: dict[str, Pair] = field(default_factory=dict)
    left: dict[str, Pair] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    @contextmanager
    def of(module: nn.Module, mask: WeightMask) -> Iterator[Entries]:
        """Only the masked parameters require gradients meanwhile; then every bit is put back."""
        wanted = {p: (p.requires_grad, p.grad) for p in module.parameters()}
        entries = Entries(module)
        try:
            for parameter in wanted:
                parameter.requires_grad_(False)
                parameter.grad = None
            entries._choose(_checked(module, mask))
            yield entries
        finally:
            for hook in entries.hooks.values():
                hook.remove()
            entries._put_back()
            for parameter, (required, gradient) in wanted.items():
                parameter.requires_grad_(required)
                parameter.grad = gradient

    def bend(self, prior: Prior) -> None:
        """Gradients that lean towards a prior."""
        for name, value in self.named.items():
            if value.grad is not None:
                prior.bend(name, value.grad, self.index[name], self._before)

    @torch.no_grad()
    def write(self) -> None:
        """The vectors into the weights, rounded to their dtype."""
        for name, value in self.named.items():
            weight = self.weights[name]
            weight.view(-1)[self.index[name]] = value.to(weight.dtype)

    def state(self) -> dict[str, Tensor]:
        """Places and values, of the entries chosen and of those that were."""
        found = {f"places/{name}": places for name, places in self.index.items()}
        found |= {f"values/{name}": value.detach().clone() for name, value in self.named.items()}
        for name, (places, values) in self.left.items():
            found |= {f"left/{name}": places, f"kept/{name}": values}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Back to such a state."""
        self._put_back()
        left, kept = part(state, "left/"), part(state, "kept/")
        self._begin(left)  # so that they are put back in the end, and in the edit
        for name, places in left.items():
            weight = self.weights[name]
            weight.view(-1)[places.to(weight.device)] = kept[name].to(weight)
        self._choose(part(state, "places/"))
        for name, values in part(state, "values/").items():
            self.named[name].data.copy_(values)
        self.write()

    @torch.no_grad()
    def edit(self) -> Edit:
        """What has changed so far: the difference to the stored weights, entry by entry."""
        atoms = []
        for name, (places, before) in self.begun.items():
            weight = self.weights[name]
            now = weight.detach().reshape(-1)[places].to(wide(weight.dtype))
            if name in self.named:  # their vectors know more digits than the weights
                now[torch.searchsorted(places, self.index[name])] = self.named[name].detach()
            change = now - before.to(now.dtype)
            moved = change != 0
            if bool(moved.any()):
                sparse = Sparse(places[moved].cpu(), change[moved].cpu(), tuple(weight.shape))
                atoms.append(Delta(name, sparse))
        return Edit(atoms)

    def remask(self, mask: WeightMask, optimizer: torch.optim.Optimizer) -> None:
        """Another choice of entries; those that stay keep their state."""
        before = {name: (self.index[name], self.named[name]) for name in self.index}
        self._choose(_checked(self.module, mask))
        for group in optimizer.param_groups:
            group["params"] = list(self.named.values())
        for name, (old_places, old) in before.items():
            state = optimizer.state.pop(old, None)
            if not state or name not in self.index:
                continue
            places, new = self.index[name], self.named[name]
            stay = torch.isin(places, old_places)
            at = torch.searchsorted(old_places, places[stay])
            moments = {key: torch.zeros_like(new) for key in ("exp_avg", "exp_avg_sq")}
            for key, moment in moments.items():
                moment[stay] = state[key][at]
            new.data[stay] = old.detach()[at]
            optimizer.state[new] = {"step": state["step"], **moments}

    def _choose(self, chosen: Mapping[str, Tensor]) -> None:
        """Train these places and no others, from what the weights are now."""
        for name in self.index.keys() - chosen.keys():
            self.hooks.pop(name).remove()
            self.weights[name].requires_grad_(False)
            del self.index[name], self.named[name]
        self._begin(chosen)
        for name, asked in chosen.items():
            weight = self.weights[name]
            if name not in self.hooks:
                weight.requires_grad_()
                self.hooks[name] = weight.register_post_accumulate_grad_hook(self._taker(name))
            places = self.index[name] = asked.to(weight.device)
            self.named[name] = nn.Parameter(
                weight.detach().reshape(-1)[places].to(wide(weight.dtype))
            )
        self.left = {}
        for name, (places, _) in self.begun.items():
            gone = places[~torch.isin(places, self.index.get(name, places[:0]))]
            if len(gone):
                self.left[name] = gone, self.weights[name].detach().reshape(-1)[gone]

    def _begin(self, chosen: Mapping[str, Tensor]) -> None:
        """Keep what the weights are where none was ever chosen."""
        parameters = named_parameters(self.module)
        for name, asked in chosen.items():
            weight = self.weights[name] = parameters[name].tensor
            flat, places = weight.detach().reshape(-1), asked.to(weight.device)
            known, stored = self.begun.get(name, (places[:0], flat[:0]))
            new = places[~torch.isin(places, known)]
            merged, order = torch.cat([known, new]).sort()
            self.begun[name] = merged, torch.cat([stored, flat[new]])[order]

    def _before(self, name: str) -> Tensor:
        """A whole weight as it is stored."""
        places, stored = self.begun[name]
        weight = self.weights[name].detach().clone()
        weight.view(-1)[places] = stored
        return weight

    def _taker(self, name: str) -> Callable[[Tensor], None]:
        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            self.named[name].grad = weight.grad.view(-1)[self.index[name]].to(self.named[name])
            weight.grad = None  # the whole gradient lives only until the next layer's is made

        return take

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, (places, before) in self.begun.items():
            self.weights[name].view(-1)[places] = before
            self.weights[name].grad = None


def _checked(module: nn.Module, mask: WeightMask) -> Mapping[str, Tensor]:
    """The masked parameters by name, if they are here to be trained."""
    if not mask.count:
        raise InterpError("the mask chooses no entry, so there is nothing to train")
    parameters = named_parameters(module)
    ends: dict[int, str] = {}
    for name, shape in mask.shapes.items():
        if name not in parameters:
            raise InterpError(f"this model has no parameter {name!r}; {nearest(name, parameters)}")
        parameter = parameters[name]
        if not parameter.in_place:
            raise InterpError(
                f"{name} is quantised or offloaded, so its numbers are not here to be trained; "
                f"load the model whole, or train an adapter"
            )
        if tuple(parameter.tensor.shape) != tuple(shape):
            raise InterpError(
                f"{name} has shape {list(parameter.tensor.shape)} here and {list(shape)} in the "
                f"mask: it was made for another model"
            )
        other = ends.setdefault(id(parameter.tensor), name)
        if other != name:
            raise InterpError(
                f"{name} and {other} are one tensor here, and the mask names both; choose one"
            )
    return mask.index
