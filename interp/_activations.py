"""Activations: what `capture` returns, a mapping from site to tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp._errors import SiteNotFound, nearest
from interp._record import load_record, save_record
from interp._site import KINDS, Site

if TYPE_CHECKING:
    import pandas as pd

_EXPERTS = "expert_ids:"
_ORDER = "order"  # of the sites, in meta.json


@dataclass(frozen=True, eq=False)
class Activations(Mapping[Site, Tensor]):
    """Tensors by site; `acts["z.3"]` and `acts[Site("z", 3)]` are the same.

    Positions count real tokens: column 0 is each prompt's first token whatever the padding, and
    beyond a prompt's end the values are zero.

    Args:
        tensors: site -> [batch pos ...] with the axes of `Site.axes`.
        tokens: [batch pos], the token at each captured position, -1 beyond the prompt's end.
        mask: [batch pos], True where a position is real.
        expert_ids: for expert neurons, site -> [batch pos k], -1 beyond the prompt's end.
        logits: [batch pos vocab] where asked for.
        meta: the model, positions and arguments they came from.
    """

    tensors: dict[Site, Tensor]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    expert_ids: dict[Site, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    # A Mapping would compare values, and tensors cannot be compared to one truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, site: Site | str) -> Tensor:
        key = Site.parse(site)
        if key.layer is not None and key.layer < 0:  # from the last, as when it was captured
            key = Site(key.kind, key.layer + self.meta.get("n_layers", 0))
        if key not in self.tensors:
            raise SiteNotFound(
                f"{key} was not captured; {nearest(str(key), [str(s) for s in self.tensors])}"
            )
        return self.tensors[key]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, site: object) -> bool:
        try:
            return isinstance(site, str | Site) and self[site] is not None
        except SiteNotFound:
            return False

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {list(t.shape)}" for site, t in list(self.tensors.items())[:4])
        more = "" if len(self) <= 4 else f", ... {len(self)} sites"
        return f"Activations({sites}{more})"

    def stack(self, kind: str) -> Tensor:
        """All captured layers of one kind: [layer batch pos ...], in the order of layers.

        Examples:
            >>> interp.capture(model, "Once upon", "resid_post.*").stack("resid_post").shape
            torch.Size([6, 1, 10, 128])
        """
        chosen = sorted((s for s in self.tensors if s.kind == kind), key=lambda s: s.layer or 0)
        if not chosen:
            raise SiteNotFound(
                f"no {kind!r} was captured; {nearest(kind, {s.kind for s in self.tensors})}"
            )
        return torch.stack([self.tensors[site] for site in chosen])

    def table(self) -> pd.DataFrame:
        """One row a site: `site layer axes shape bytes rms`, the rms over real positions."""
        import pandas as pd

        rows = []
        for site, tensor in self.tensors.items():
            axes = site.axes
            if site in self.expert_ids:
                axes = ("batch", "pos", "expert", "d_mlp")
            real = tensor if site.kind == "pattern" else tensor[self.mask.to(tensor.device)]
            rows.append(
                {
                    "site": str(site),
                    "layer": site.layer,
                    "axes": " ".join(axes),
                    "shape": list(tensor.shape),
                    "bytes": tensor.numel() * tensor.element_size(),
                    "rms": float(real.detach().float().square().mean().sqrt()),
                }
            )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Activations.load` reads back, whole or not at all."""
        tensors = {str(site): tensor for site, tensor in self.tensors.items()}
        tensors |= {f"{_EXPERTS}{site}": ids for site, ids in self.expert_ids.items()}
        tensors |= {"tokens": self.tokens, "mask": self.mask}
        if self.logits is not None:
            tensors["logits"] = self.logits
        meta = {**self.meta, _ORDER: [str(site) for site in self.tensors]}
        return save_record(path, "activations", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> Activations:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "activations")
        return from_saved(tensors, meta, meta.pop(_ORDER, ()))


def from_saved(
    tensors: dict[str, Tensor], meta: dict[str, Any], order: Sequence[str] = ()
) -> Activations:
    """Activations from named tensors, as `save` and the corpus store lay them out.

    A file holds its tensors by name, layer 10 before layer 2. Where `order` does not say how the
    sites stood (records from before it was kept), they stand as a forward pass meets them.
    """
    special = {"tokens", "mask", "logits"}
    names = [name.removeprefix(_EXPERTS) for name in tensors if name not in special]
    place = {name: index for index, name in enumerate(order)}
    sites = sorted(map(Site.parse, dict.fromkeys(names)), key=_as_met)
    sites.sort(key=lambda site: place.get(str(site), len(place)))
    return Activations(
        {site: tensors[str(site)] for site in sites if str(site) in tensors},
        tokens=tensors["tokens"],
        mask=tensors["mask"].bool(),
        expert_ids={
            site: tensors[f"{_EXPERTS}{site}"] for site in sites if f"{_EXPERTS}{site}" in tensors
        },
        logits=tensors.get("logits"),
        meta=meta,
    )


def _as_met(site: Site) -> tuple[int, int]:
    """Sorts sites in the order in which a forward pass meets them."""
    return -1 if site.layer is None else site.layer, KINDS.index(site.kind)
