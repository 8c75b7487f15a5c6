"""Folding the maps at the sites of one block into its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interp._anatomy import Block
from interp._bake.ledger import Ledger, spread
from interp._bake.maps import Map
from interp._bake.parts import Branch, Linear, Norm, Parts
from interp._edit.affine import Affine

_KINDS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
Maps = Callable[[str], Map]  # kind of site in this block -> what the edit does there
NORM_FOLLOWS = "a norm without a bias follows, so nothing in the block adds a constant to it"
STREAM_SCALE = "scaling the stream would scale what every earlier block wrote"


@dataclass(frozen=True)
class _Half:
    """One half of a block with the maps at its two ends."""

    branch: Branch
    inner: Map  # at z or mlp_post
    outer: Map  # at attn_out or mlp_out

    @property
    def factor(self) -> Tensor:
        """What multiplies the raw output of the projections."""
        one = torch.ones((), dtype=torch.float64)
        return one if self.branch.norm is not None else self.outer.factor

    @property
    def entrance(self) -> str:
        """The bias that adds to what this half adds to the stream."""
        norm = self.branch.norm
        return norm.bias if norm is not None else self.branch.outputs[0].bias


def fold_block(parts: Parts, block: Block, maps: Maps, after: Map, ledger: Ledger) -> None:
    """Fold everything at one block.

    Args:
        parts: names of tensors.
        block: which block.
        maps: what the edit does at each kind of site here.
        after: what it does between this block and the next.
        ledger: where it goes.
    """
    z = maps("z")
    for kind in _KINDS:
        pushed = _fold_rows(parts, block, kind, maps(kind), ledger)
        if pushed is not None:
            z = z.before(*pushed)
    attention, mlp = parts.attention(block), parts.mlp(block)
    halves: list[_Half | None] = [
        None if branch is None else _Half(branch, inner, outer)
        for branch, inner, outer in (
            (attention, z, maps("attn_out")),
            (mlp, maps("mlp_post"), maps("mlp_out")),
        )
    ]
    for half, other in (halves, halves[::-1]):
        if half is not None:
            _fold_half(half, other if block.parallel else None, ledger)
    norm = parts.norm_after(block)
    if norm is not None:
        _fold_norm_after(norm, maps, after, ledger)
        return
    for half, other, stream in (
        (halves[0], halves[1], maps("resid_mid")),
        (halves[1], halves[0], after),
    ):
        ledger.refuse(stream.scaling, STREAM_SCALE)
        if stream.shift is not None:
            _shift_stream(half, other if block.parallel else None, stream, ledger)


def _fold_norm_after(norm: Norm, maps: Maps, after: Map, ledger: Ledger) -> None:
    """The block's last norm gives the stream, so it takes a map of the stream whole."""
    for kind in ("attn_out", "mlp_out", "resid_mid"):
        here = maps(kind)
        ledger.refuse(here.scaling + here.shifting, "norms follow the sums in this block")
    scale_norm(norm, after, ledger)
    if after.shift is not None:
        ledger.shift(norm.bias, after.shift, after.shifting)


def scale_norm(norm: Norm, by: Map, ledger: Ledger) -> None:
    """Multiply what a norm gives."""
    if by.scale is not None:
        ledger.scale(norm.weight, by.scale, by.scaling, offset=norm.offset)
        ledger.scale(norm.bias, by.scale, by.scaling)


def _fold_rows(
    parts: Parts, block: Block, kind: Literal["q", "k", "v"], here: Map, ledger: Ledger
) -> tuple[Tensor, tuple[Affine, ...]] | None:
    """Fold a map on queries, keys or values into rows of their projection.

    Returns:
        What is left to add at z, where values have no bias: attention averages values with weights
        that sum to one, so a constant passes through it.
    """
    qkv = block.qkv
    if qkv is None or (here.scale is None and here.shift is None):
        return None
    linear = parts.linear(qkv.modules["qkv".index(kind)])
    rows = qkv.view(kind, torch.arange(linear.d_out).view(1, 1, -1)).flatten()
    if here.scale is not None:
        factor = spread(rows, here.scale.flatten(), linear.d_out, 1.0)
        ledger.scale(linear.weight, linear.rows(factor), here.scaling)
        ledger.scale(linear.bias, factor, here.scaling)
    if here.shift is None:
        return None
    bias = ledger.choose([linear.bias])
    if bias is not None:
        added = spread(rows, here.shift.flatten(), linear.d_out, 0.0)
        ledger.shift(bias, added, here.shifting)
        return None
    if kind == "v" and _averages(block):
        group = qkv.n_heads // qkv.n_kv_heads
        return here.shift.repeat_interleave(group, dim=0), here.shifting
    ledger.refuse(here.shifting, ledger.no_bias())
    return None


def _averages(block: Block) -> bool:
    """Whether z is a plain average of v, its weights summing to one."""
    attn: Any = block.attn
    if block.qkv is None or block.qkv.gated_query or hasattr(attn, "sinks"):
        return False
    clips = getattr(getattr(attn, "config", None), "clip_qkv", None)
    width = getattr(block.o_proj, "in_features", block.n_heads * block.qkv.d_head)
    return clips is None and width == block.n_heads * block.qkv.d_head


def _fold_half(half: _Half, other: _Half | None, ledger: Ledger) -> None:
    """Fold what happens at the projection's input and at the half's output."""
    branch, inner, outer = half.branch, half.inner, half.outer
    main = branch.outputs[0]
    if inner.scale is not None:
        ledger.scale(main.weight, main.columns(_flat(inner.scale, main)), inner.scaling)
    if outer.scale is not None:
        if branch.norm is not None:
            scale_norm(branch.norm, outer, ledger)
        else:
            for linear in branch.outputs:
                ledger.scale(linear.weight, linear.rows(outer.scale), outer.scaling)
                ledger.scale(linear.bias, outer.scale, outer.scaling)
    if inner.shift is not None:
        _shift_input(half, other, ledger)
    if outer.shift is not None:
        _shift_stream(half, other, outer, ledger)


def _shift_input(half: _Half, other: _Half | None, ledger: Ledger) -> None:
    """A shift b at the input is W b at the output: in that bias, or the neighbour's."""
    main, inner = half.branch.outputs[0], half.inner
    assert inner.shift is not None
    places = {main.bias: 1.0}
    if other is not None and not main.experts and half.branch.norm is None:
        places[other.entrance] = half.branch.multiplier / other.branch.multiplier
    bias = ledger.choose(list(places))
    if bias is None:
        ledger.refuse(inner.shifting, ledger.no_bias())
        return
    factor = half.factor * places[bias]
    ledger.through(bias, main, _flat(inner.shift, main), factor, inner.shifting)


def _flat(vector: Tensor, linear: Linear) -> Tensor:
    """Heads side by side, as a projection reads them; experts stay apart."""
    return vector if linear.experts else vector.flatten()


def _shift_stream(half: _Half | None, other: _Half | None, by: Map, ledger: Ledger) -> None:
    """Add a constant to the stream where a half writes to it."""
    assert by.shift is not None
    places = {h.entrance: h.branch.multiplier for h in (half, other) if h is not None}
    bias = ledger.choose(list(places))
    if bias is None:
        norm = half is not None and half.branch.norm is not None
        ledger.refuse(by.shifting, NORM_FOLLOWS if norm else ledger.no_bias())
        return
    ledger.shift(bias, by.shift / places[bias], by.shifting)


def inner_shape(parts: Parts, block: Block, kind: str) -> tuple[tuple[int, ...], int]:
    """([head d_head], [d_mlp] or [d_model], number of experts) of a site of this block."""
    if kind in ("q", "k", "v") and block.qkv is not None:
        heads = block.qkv.n_heads if kind == "q" else block.qkv.n_kv_heads
        return (heads, block.qkv.d_head), 0
    branch = parts.attention(block) if kind == "z" else parts.mlp(block)
    if kind in ("z", "mlp_post") and branch is not None:
        main: Linear = branch.outputs[0]
        if kind == "z":
            return (block.n_heads, main.d_in // block.n_heads), 0
        return (main.d_in,), main.experts
    return (parts.anatomy.d_model,), 0
