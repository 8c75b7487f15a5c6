"""Which entries of which parameters: layers, modules and heads by their canonical names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import InterpError, LowRank
from interp._errors import nearest
from interp._weights.parameters import Held, rows_of
from interp._weights.part import Part

Layers = int | Iterable[int] | None
Modules = str | Iterable[str] | None
Heads = Iterable[tuple[int, int]] | None
Piece = tuple[Tensor, Tensor]  # stored rows and columns, by number

ATTENTION = ("q", "q_gate", "k", "v", "o")
GROUPS = {"attn": ATTENTION, "mlp": ("gate", "up", "down", "router")}


@dataclass(frozen=True)
class Block:
    """Entries of one parameter seen as stored rows: some rows, some columns, or where they cross.

    Args:
        rows: which; None for all.
        columns: which; None for all.
    """

    rows: Bool[Tensor, " row"] | None = None
    columns: Bool[Tensor, " column"] | None = None

    def mask(self, shape: tuple[int, ...]) -> Tensor | None:
        """A mask of the parameter's shape, in the memory of a row and a column; None for all."""
        if self.rows is None and self.columns is None:
            return None
        width = shape[-1] if len(shape) > 1 else 1
        if self.rows is None:
            assert self.columns is not None
            return self.columns.expand(shape)
        rows = self.rows[:, None].expand(-1, width)
        return (rows if self.columns is None else rows & self.columns).view(shape)

    def low_rank(self, left: Tensor, right: Tensor) -> LowRank:
        """`left @ right` in these rows and columns only."""
        if self.rows is not None:
            left = left * self.rows[:, None].to(left.device)
        return LowRank(
            left, right if self.columns is None else right * self.columns.to(right.device)
        )


def choose(
    parameters: Mapping[str, Held],
    layers: Layers = None,
    modules: Modules = None,
    heads: Heads = None,
) -> dict[str, Block]:
    """The parameters chosen, and which of their entries.

    Args:
        parameters: by name.
        layers: indices, negative ones from the end; None for all, and for what is in no layer.
        modules: `q k v o gate up down embed head norm` and the like, or `attn`, `mlp`.
        heads: (layer, head) pairs instead of layers.

    Raises:
        InterpError: a layer, module or head that is not there; a choice of nothing.
    """
    if heads is None:
        inside = choose_parts(parameters, layers, modules)
        return {name: merged(parameters[name], parts) for name, parts in inside.items()}
    if layers is not None:
        raise InterpError("heads are (layer, head) pairs, which name their layers: drop layers")
    parts = [part for held in parameters.values() for part in held.parts]
    names = _modules(modules, {part.module for part in parts})
    return _choose_heads(parameters, list(heads), names, _depth(parts))


def choose_parts(
    parameters: Mapping[str, Held], layers: Layers = None, modules: Modules = None
) -> dict[str, list[Part]]:
    """The matrices of some layers and modules, by the parameter that holds them."""
    parts = [part for held in parameters.values() for part in held.parts]
    names = _modules(modules, {part.module for part in parts})
    wanted = None if layers is None else _layers(layers, _depth(parts))
    found: dict[str, list[Part]] = {}
    for name, held in parameters.items():
        for part in held.parts:
            in_layers = wanted is None or part.layer in wanted
            if in_layers and (names is None or part.module in names):
                found.setdefault(name, []).append(part)
    if not found:
        raise InterpError(
            f"no tensor is in layers {sorted(wanted or ())} and of modules {sorted(names or ())}; "
            f"embed, head, positions and the final norm are in no layer"
        )
    return found


def merged(held: Held, parts: Sequence[Part]) -> Block:
    """Some parts of a parameter as one block."""
    return _union(held, [(rows_of(part), _columns(part)) for part in parts])


def _choose_heads(
    parameters: Mapping[str, Held],
    heads: Sequence[tuple[int, int]],
    names: set[str] | None,
    depth: int,
) -> dict[str, Block]:
    wanted = _by_layer(heads, depth)
    found: dict[str, list[Piece]] = {}
    seen = {layer: 0 for layer in wanted}
    counts = _head_counts(parameters)
    for name, held in parameters.items():
        for part in held.parts:
            layer = part.layer
            if layer not in wanted or not _per_head(part) or (names and part.module not in names):
                continue
            n_heads = counts.get(layer, 0)
            own = part.heads or 1
            if names is None and own < n_heads:
                continue  # keys and values that several heads share stay, unless they are named
            group = max(1, n_heads // own)
            units = sorted({head // group for head in wanted[layer]})
            found.setdefault(name, []).append(_of_heads(part, units, own))
            seen[layer] += 1
    for layer, chosen in wanted.items():
        if not counts.get(layer) or not seen[layer]:
            what = f" of modules {sorted(names)}" if names else ""
            raise InterpError(f"layer {layer} has no attention heads{what} to choose from")
        if not 0 <= min(chosen) <= max(chosen) < counts[layer]:
            raise InterpError(
                f"layer {layer} has heads 0 to {counts[layer] - 1}; got head "
                f"{max(chosen) if min(chosen) >= 0 else min(chosen)}"
            )
    return {name: _union(parameters[name], pieces) for name, pieces in found.items()}


def _head_counts(parameters: Mapping[str, Held]) -> dict[int, int]:
    """Query heads by layer."""
    parts = (part for held in parameters.values() for part in held.parts)
    return {
        part.layer: part.heads or 1
        for part in parts
        if part.layer is not None and part.tensor == f"layers.{part.layer}.q.weight"
    }


def _per_head(part: Part) -> bool:
    """Whether a part divides by heads: q, k, v and their biases, the weight of o."""
    label = f"layers.{part.layer}.{part.module}"
    if part.module not in ATTENTION or not part.tensor.startswith(f"{label}."):
        return False  # linear attention has heads of its own
    return part.module != "o" or part.tensor == f"{label}.weight"


def _of_heads(part: Part, units: Sequence[int], count: int) -> Piece:
    """Some heads of a part: rows or columns of its parameter."""
    rows, columns = rows_of(part), _columns(part)
    by_columns = (part.head_axis == "in") != part.transposed
    line = columns if by_columns else rows
    d_head = len(line) // count
    line = torch.cat([line[u * d_head : (u + 1) * d_head] for u in units if u < count] or [line])
    return (rows, line) if by_columns else (line, columns)


def _union(held: Held, pieces: Sequence[Piece]) -> Block:
    """Disjoint pieces as one block: parts of a tensor always are one, of heads or of modules."""
    width = held.parts[0].width
    height = torch.Size(held.source.shape).numel() // width
    rows, columns = torch.zeros(height, dtype=torch.bool), torch.zeros(width, dtype=torch.bool)
    for piece_rows, piece_columns in pieces:
        rows[piece_rows] = True
        columns[piece_columns] = True
    if sum(len(r) * len(c) for r, c in pieces) != int(rows.sum()) * int(columns.sum()):
        raise InterpError(f"the entries chosen of {held.name} are no block of rows and columns")
    return Block(None if bool(rows.all()) else rows, None if bool(columns.all()) else columns)


def _depth(parts: Iterable[Part]) -> int:
    return 1 + max((part.layer for part in parts if part.layer is not None), default=-1)


def _columns(part: Part) -> Int[Tensor, " column"]:
    return torch.arange(*part.columns)


def _modules(modules: Modules, known: set[str]) -> set[str] | None:
    if modules is None:
        return None
    named = [modules] if isinstance(modules, str) else list(modules)
    found: set[str] = set()
    for name in named:
        inside = known & set(GROUPS.get(name, (name,)))
        if not inside:
            raise InterpError(
                f"this model has no modules {name!r}; {nearest(name, sorted(known | set(GROUPS)))}"
            )
        found |= inside
    if not found:
        raise InterpError("modules names nothing; leave it out to mean all of them")
    return found


def _layers(layers: int | Iterable[int], depth: int) -> set[int]:
    named = [layers] if isinstance(layers, int) else list(layers)
    odd = next((layer for layer in named if not -depth <= layer < depth), None)
    if odd is not None:
        raise InterpError(f"there is no layer {odd}; this model has layers 0 to {depth - 1}")
    if not named:
        raise InterpError("layers names nothing; leave it out to mean all of them")
    return {layer % depth for layer in named}


def _by_layer(heads: Sequence[tuple[int, int]], depth: int) -> dict[int, set[int]]:
    wanted: dict[int, set[int]] = {}
    for head in heads:
        if not isinstance(head, tuple | list) or len(head) != 2:
            raise InterpError(f"a head is named (layer, head), such as (3, 5); got {head!r}")
        (layer,) = _layers(int(head[0]), depth)
        wanted.setdefault(layer, set()).add(int(head[1]))
    if not wanted:
        raise InterpError("heads names nothing; leave it out to mean all of them")
    return wanted
