"""Activations for SAEs as shuffled batches of tokens, from texts or a store, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor

import interp
from interp import ActivationStore, InterpError, Model, Site, SiteNotFound, UnsupportedSite
from interp._batch import tokenize
from interp._edit.affine import HEAD_SITES
from interp._errors import nearest

Rows = dict[str, Tensor]  # site -> [token d_in], the same tokens at all sites


@dataclass(frozen=True)
class Chunks:
    """A corpus in chunks, each read anew when it is asked for: tokens by site.

    Args:
        count: how many chunks there are.
        read: one of them.
    """

    count: int
    read: Callable[[int], Rows]


def chunks_of(
    model: Model, data: Sequence[Any] | ActivationStore, sites: Sequence[Site],
    *, context: int | None, prompts: int, drop_first: bool, max_norm: int | float | None,
) -> Chunks:  # fmt: skip
    """Texts (or token ids) read by the model, `prompts` in a forward, or a store's files."""
    for site in sites:
        if site.kind in ("pattern", "head_out"):
            raise UnsupportedSite(f"no SAE reads {site}; its heads are one vector at z")
    if isinstance(data, ActivationStore):
        return _of_store(data, sites, drop_first, max_norm)
    if isinstance(data, str) or not isinstance(data, Sequence) or not len(data):
        raise InterpError("expected a list of texts (or of token ids), or an ActivationStore")
    limit = context or model.anatomy.max_positions

    def read(number: int) -> Rows:
        ids = [
            token_ids(model, one, limit) for one in data[number * prompts : (number + 1) * prompts]
        ]
        acts = interp.capture(model, ids, list(sites), device=None)
        found = {str(site): flattened(acts[site], site) for site in sites}
        return _kept(found, acts.mask, drop_first, max_norm)

    return Chunks(-(-len(data) // prompts), read)


def flattened(tensor: Tensor, site: Site) -> Float[Tensor, "batch pos d_in"]:
    """[batch pos d_in]: heads as one vector.

    Raises:
        UnsupportedSite: neurons of experts, which are other neurons at every token.
    """
    if site.kind in HEAD_SITES:
        return tensor.flatten(2)
    if tensor.ndim != 3:
        raise UnsupportedSite(f"{site} has other neurons at every token; choose mlp_out")
    return tensor


def _of_store(
    store: ActivationStore, sites: Sequence[Site], drop_first: bool, max_norm: int | float | None
) -> Chunks:
    names = store.meta["sites"]
    for site in sites:
        if str(site) not in names:
            raise SiteNotFound(f"{store.path} holds no {site}; {nearest(str(site), names)}")
    if drop_first and store.meta["positions"] != "all":
        raise InterpError(
            f"{store.path} holds positions {store.meta['positions']!r}, among which nobody knows "
            f"the first; say drop_first=False"
        )
    files = store.files

    def read(number: int) -> Rows:
        with safe_open(files[number], framework="pt") as opened:
            mask = opened.get_tensor("mask").bool()
            found = {str(s): flattened(opened.get_tensor(str(s)), s) for s in sites}
        return _kept(found, mask, drop_first, max_norm)

    return Chunks(len(files), read)


def token_ids(model: Model, one: Any, limit: int | None) -> list[int]:
    """A text, or token ids, as ids cut at a limit."""
    if not isinstance(one, str):
        return list(one)[:limit]
    if model.tokenizer is None:
        raise InterpError("this model has no tokenizer, so texts cannot be read; give token ids")
    return tokenize(one, model.tokenizer, True)[:limit]


def _kept(
    found: Rows, mask: Bool[Tensor, "batch pos"], drop_first: bool, max_norm: int | float | None
) -> Rows:
    """The real tokens, without each text's first and without those of massive norm anywhere."""
    keep = mask.clone()
    if drop_first:
        keep[:, 0] = False
    for name, tensor in found.items():
        if not bool(tensor[keep.to(tensor.device)].isfinite().all()):
            raise InterpError(
                f"activations at {name} are not finite; look for NaN in the weights, or load the "
                f"model in a wider dtype"
            )
    if max_norm is not None and bool(keep.any()):
        for tensor in found.values():
            norm = tensor.float().norm(dim=-1).to(keep.device)
            keep &= norm <= max_norm * norm[keep].median()
    return {name: tensor[keep.to(tensor.device)].float() for name, tensor in found.items()}


@dataclass
class Shuffled:
    """Batches of tokens drawn from a buffer that is refilled when half of it has been used.

    Memory holds `capacity` tokens and one chunk. The order depends on the seed alone.
    """

    chunks: Chunks
    capacity: int
    seed: int
    epoch: int = 0
    position: int = 0  # chunks read in this epoch
    rows: Rows = field(default_factory=dict)  # in a random order
    used: int = 0
    spare: Rows = field(default_factory=dict)  # read, without room in the buffer
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.seed)
        self._fill()

    @property
    def held(self) -> int:
        """Tokens in the buffer."""
        return len(next(iter(self.rows.values())))

    def draw(self, count: int) -> Rows:
        """The next tokens."""
        if self.held - self.used < max(count, self.capacity // 2):
            self._fill()
        if self.held - self.used < count:
            raise InterpError(
                f"a batch has {count} tokens and the buffer {self.capacity}; raise buffer"
            )
        drawn = {name: rows[self.used : self.used + count] for name, rows in self.rows.items()}
        self.used += count
        return drawn

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """All that decides what is drawn next."""
        tensors = {f"rows:{name}": rows.contiguous() for name, rows in self.rows.items()}
        tensors |= {f"spare:{name}": rows.contiguous() for name, rows in self.spare.items()}
        tensors["generator"] = self.generator.get_state()
        numbers = {"epoch": self.epoch, "position": self.position, "used": self.used}
        return tensors, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Back to a state, on the devices where rows are now."""
        for kind in ("rows", "spare"):
            held = {k.partition(":")[2]: t for k, t in tensors.items() if k.startswith(f"{kind}:")}
            homes = {name: rows.device for name, rows in self.rows.items()}
            setattr(self, kind, {name: rows.to(homes[name]) for name, rows in held.items()})
        self.generator.set_state(tensors["generator"])
        self.epoch, self.position = numbers["epoch"], numbers["position"]
        self.used = numbers["used"]

    def _fill(self) -> None:
        """Unused tokens and new ones up to the capacity, in a new random order."""
        parts = [{name: rows[self.used :] for name, rows in self.rows.items()}] if self.rows else []
        parts += [self.spare] if self.spare else []
        count = sum(_length(part) for part in parts)
        further = self._further()
        while count < self.capacity:
            parts.append(next(further))
            count += _length(parts[-1])
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}
        self.spare = {name: rows[self.capacity :].clone() for name, rows in joined.items()}
        count = min(count, self.capacity)
        order = torch.randperm(count, generator=self.generator)
        self.rows = {name: rows[order.to(rows.device)] for name, rows in joined.items()}
        self.used = 0

    def _further(self) -> Iterator[Rows]:
        """Chunks without end, every epoch in an order of its own."""
        while True:
            whole, read = self.position == 0, 0
            order = torch.randperm(
                self.chunks.count,
                generator=torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63),
            ).tolist()
            while self.position < self.chunks.count:
                chunk = self.chunks.read(order[self.position])
                self.position += 1
                read += _length(chunk)
                yield chunk
            self.epoch, self.position = self.epoch + 1, 0
            if whole and not read:
                raise InterpError(
                    "no tokens are left to train on: every text is one token long, or all of them "
                    "were dropped (drop_first, max_norm)"
                )


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))
