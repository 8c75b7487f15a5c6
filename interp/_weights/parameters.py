"""A checkpoint's tensors under the names that a module gives its parameters, read when needed.

The two differ where transformers renames or fuses on loading: experts stored one by one are one
parameter of the module, and GPT-NeoX stores its head as `embed_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from interp._errors import InterpError
from interp._weights.checkpoint import Checkpoint
from interp._weights.lora import LowRank
from interp._weights.names import parts_of
from interp._weights.part import Part
from interp._weights.stored import DTYPES, Stored, opened, read_blocks, whole


@dataclass(frozen=True)
class Assembled:
    """A parameter whose pieces lie apart on disk, put together when it is read.

    Args:
        shape: of the parameter.
        dtype: safetensors name, the same for all pieces.
        pieces: where each goes, the tensor it comes from, and which part of that tensor it is.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[Part, Stored, Part], ...] = field(repr=False)

    def read(self) -> Tensor:
        """The parameter in its stored dtype."""
        out = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        flat = out.view(-1, self.pieces[0][0].width)
        for place, stored, part in self.pieces:
            piece = whole(stored).view(-1, part.width)[rows_of(part)][:, slice(*part.columns)]
            flat[rows_of(place), slice(*place.columns)] = (
                piece.T if part.transposed != place.transposed else piece
            )
        return out

    def entries(self, index: Int[Tensor, " entry"]) -> Tensor:
        """Some entries of the flattened parameter, without reading the rest."""
        width = self.pieces[0][0].width
        rows, columns = index // width, index % width
        found = torch.empty(len(index), dtype=DTYPES[self.dtype])
        for place, stored, part in self.pieces:
            where = _positions(rows_of(place), rows), _positions(_columns(place), columns)
            here = (where[0] >= 0) & (where[1] >= 0)
            if not bool(here.any()):
                continue
            r, c = (position[here] for position in where)
            if part.transposed != place.transposed:
                r, c = c, r
            found[here] = entries(stored, rows_of(part)[r] * part.width + _columns(part)[c])
        return found


@dataclass(frozen=True)
class Held:
    """One parameter of a checkpoint: where its numbers are, and which matrices it holds."""

    name: str
    source: Stored | Assembled
    parts: tuple[Part, ...]  # in the parameter's own layout
    low_rank: LowRank | None = None  # what an adapter adds to it


def parameters_of(checkpoint: Checkpoint) -> dict[str, Held]:
    """The parameters that a module loaded from this checkpoint has, tied ones once.

    Raises:
        InterpError: a parameter that the checkpoint does not hold, an adapter on single experts.
    """
    shapes = None if checkpoint.in_memory else module_shapes(checkpoint)
    if shapes is None:  # the names are the module's own, or those of a model unknown here
        layout = checkpoint.parts
    else:
        stand_in = {name: Stored("F32", shape) for name, shape in shapes.items()}
        layout = parts_of(checkpoint.config, stand_in)
    by_name: dict[str, list[Part]] = {}
    for part in layout.values():
        by_name.setdefault(part.source, []).append(part)
    canonical = {id(part): label for label, part in layout.items()}
    found = {}
    for name, parts in by_name.items():
        shape = checkpoint.tensors[name].shape if shapes is None else shapes[name]
        labels = [canonical[id(part)] for part in parts]
        found[name] = _held(checkpoint, name, tuple(shape), parts, labels)
    lost = set(checkpoint.low_rank) - {h.name for h in found.values() if h.low_rank is not None}
    if lost:
        raise InterpError(
            f"{checkpoint.source} changes {min(lost)}, which is a piece of a larger parameter of "
            f"the module, so it is no low-rank change of one; merge the adapter first"
        )
    return found


def module_shapes(checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]] | None:
    """Shapes of the parameters that transformers would build, tied ones under each name.

    None without a config that transformers knows.
    """
    file = Path(checkpoint.source) / "config.json"
    adapted = Path(checkpoint.source) / "adapter_config.json"
    if not file.is_file() and adapted.is_file():  # its tensors are those of its base
        folders = {Path(s.file).parent for s in checkpoint.tensors.values() if s.file}
        file = next((f / "config.json" for f in folders if (f / "config.json").is_file()), file)
    return _built(str(file.parent), file.read_text("utf-8")) if file.is_file() else None


@lru_cache(maxsize=8)
def _built(folder: str, _text: str) -> Mapping[str, tuple[int, ...]] | None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from interp._edit.parameters import named_parameters

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    return {name: tuple(p.tensor.shape) for name, p in named_parameters(module).items()}


def _held(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], parts: list[Part], labels: list[str]
) -> Held:
    stored = checkpoint.tensors.get(name)
    if stored is not None:
        return Held(name, stored, tuple(parts), checkpoint.low_rank.get(name))
    sources = [checkpoint.parts.get(label) for label in labels]
    missing = [label for label, part in zip(labels, sources, strict=True) if part is None]
    if missing:
        raise InterpError(
            f"{checkpoint.source} lacks {name} ({missing[0]}), which a model of its config has; "
            f"fetch the checkpoint anew"
        )
    pieces = [
        (place, checkpoint.tensors[part.source], part)
        for place, part in zip(parts, sources, strict=True)
        if part is not None
    ]
    first = pieces[0][1]
    if len(pieces) == 1 and first.shape == shape:  # only the name differs
        low_rank = checkpoint.low_rank.get(pieces[0][2].source)
        return Held(name, first, tuple(parts), low_rank)
    return Held(name, Assembled(shape, first.dtype, tuple(pieces)), tuple(parts))


def entries(stored: Stored | Assembled, index: Int[Tensor, " entry"]) -> Tensor:
    """Some entries of a flattened tensor in its own dtype, without reading the rest."""
    if isinstance(stored, Assembled):
        return stored.entries(index)
    import numpy as np

    block = np.empty(len(index) * DTYPES[stored.dtype].itemsize, dtype=np.uint8)
    ranges = [(i, i + 1) for i in index.tolist()]
    with opened(stored) as descriptor:
        return read_blocks(stored, descriptor, ranges, width=1, block=block)[:, 0].clone()


def rows_of(part: Part) -> Int[Tensor, " row"]:
    """The stored rows of a part, in order."""
    return torch.cat([torch.arange(start, stop) for start, stop in part.blocks])


def _columns(part: Part) -> Int[Tensor, " column"]:
    return torch.arange(*part.columns)


def _positions(
    members: Int[Tensor, " member"], wanted: Int[Tensor, " entry"]
) -> Int[Tensor, " entry"]:
    """The place of each wanted number among the members; -1 for one that is not there."""
    order = members.argsort()
    at = torch.searchsorted(members[order], wanted).clamp(max=len(members) - 1)
    place = order[at]
    return torch.where(members[place] == wanted, place, -1)
