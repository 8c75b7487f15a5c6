"""Many changed variants of a run, brought to the top together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp._patch.run import boundary
from interp._ports import Port, SiteFn
from interp._replay import Replay
from interp._site import Site


@dataclass(frozen=True)
class Write:
    """Values to stand at some (row, position) of a site.

    Args:
        row: which variants.
        position: which tokens of theirs, counted in the whole prompt.
        value: [entry *unit].
        mask: the units that take the value, [entry *unit] or broadcasting to it; None for all.
    """

    row: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    value: Tensor
    mask: Bool[Tensor, "entry ..."] | None = None

    def put(self, tensor: Tensor, start: int) -> None:
        """Write in place into [row pos *unit], whose first position is `start`."""
        at = self.row, self.position - start
        value = self.value.to(tensor)
        if self.mask is not None:
            value = torch.where(self.mask.to(tensor.device), value, tensor[at])
        tensor[at] = value


def sweep(
    recording: Replay,
    ports: Mapping[Site, Port],
    writes: Mapping[Site, Write],
    entry: Sequence[int],
    prompt: Int[Tensor, " row"],
    *,
    start: int = 0,
    reads: Mapping[Site, SiteFn] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """The last stream of every variant: each joins at its own layer, so that blocks run once.

    Args:
        recording: of the unchanged run.
        ports: of the sites that are written or read within blocks.
        writes: what is put where.
        entry: the block below which each variant is as recorded, ascending.
        prompt: which recorded prompt each varies.
        start: the recording's first position.
        reads: functions that see sites on the way.
    """
    n_layers = recording.anatomy.n_layers
    stream = recording.streams[entry[0]][:0]
    for layer in range(entry[0], n_layers + 1):
        base = recording.streams[layer]
        joining = prompt[len(stream) : bisect_right(entry, layer)]
        if len(joining):
            stream = torch.cat([stream.to(base.device), base[joining.to(base.device)]])
        for site, write in writes.items():
            if boundary(site) == layer:
                write.put(stream, start)
        if layer < n_layers:
            with ExitStack() as stack:
                for site, write in writes.items():
                    if site.layer == layer and boundary(site) is None:
                        fn = _writer(write, start)
                        stack.enter_context(ports[site].attach(fn, reads=False))
                for site, read in (reads or {}).items():
                    if site.layer == layer:
                        stack.enter_context(ports[site].attach(read, reads=True))
                rows = prompt[: len(stream)]
                stream = recording.run(layer, stream, rows=rows, until=layer + 1)
    return stream


def _writer(write: Write, start: int) -> SiteFn:
    def fn(tensor: Tensor, site: Site) -> Tensor:
        if site.kind == "pattern":  # [row head query key]: not ours alone, and axes swapped
            tensor = tensor.clone()
            write.put(tensor.transpose(1, 2), start)
        else:
            write.put(tensor, start)
        return tensor

    return fn
