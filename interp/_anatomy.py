"""The parts of a Hugging Face decoder that sites are made of, and its unembedding.

`interp._resolve` finds them; `interp._ports` turns them into sites.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp._errors import InterpError


@dataclass(frozen=True)
class Qkv:
    """How a block's queries, keys and values lie in the output of its projections.

    `layout` is `separate` (three modules, the query possibly followed by a gate of equal width),
    `blocks` (all queries, all keys, all values), `interleaved` (per head: query, key, value),
    `grouped` (per key head: its queries, key, value) or `multi_query` (all queries, one key, one
    value).
    """

    modules: tuple[nn.Module, nn.Module, nn.Module]
    layout: Literal["separate", "blocks", "interleaved", "grouped", "multi_query"]
    n_heads: int
    n_kv_heads: int
    d_head: int
    gated_query: bool = False

    def view(self, kind: Literal["q", "k", "v"], raw: Tensor) -> Tensor:
        """The heads of `kind` as a view [batch pos head d_head] into the projection's output."""
        batch, pos, _ = raw.shape
        index = "qkv".index(kind)
        heads = self.n_heads if kind == "q" else self.n_kv_heads
        if self.layout == "separate":
            width = 2 if kind == "q" and self.gated_query else 1
            return raw.view(batch, pos, heads, width * self.d_head)[..., : self.d_head]
        if self.layout == "blocks":
            start = (0, self.n_heads, self.n_heads + self.n_kv_heads)[index] * self.d_head
            return raw[..., start : start + heads * self.d_head].view(
                batch, pos, heads, self.d_head
            )
        if self.layout == "interleaved":
            return raw.view(batch, pos, self.n_heads, 3, self.d_head)[..., index, :]
        if self.layout == "multi_query":
            start, stop = ((0, -2), (-2, -1), (-1, None))[index]
            return raw.view(batch, pos, self.n_heads + 2, self.d_head)[:, :, start:stop]
        group = self.n_heads // self.n_kv_heads
        grouped = raw.view(batch, pos, self.n_kv_heads, group + 2, self.d_head)
        if kind == "q":
            # A view cannot merge (kv head, group) here; callers get five axes flattened by copy.
            return grouped[:, :, :, :-2]
        return grouped[:, :, :, -2 if kind == "k" else -1]


@dataclass(frozen=True)
class Block:
    """The named parts of one decoder block; None where the block has no such part."""

    index: int
    module: nn.Module
    attn: nn.Module | None
    linear_attn: nn.Module | None
    o_proj: nn.Module | None
    mlp: nn.Module | None
    down: nn.Module | None
    experts: nn.Module | None
    pre_mlp: nn.Module | None  # its input is the stream after attention
    post_attn_norm: nn.Module | None
    post_mlp_norm: nn.Module | None
    parallel: bool
    multiplier: float  # the block adds multiplier * output to the stream
    n_heads: int
    qkv: Qkv | None

    @property
    def attn_out_module(self) -> nn.Module | None:
        """The module whose output, times `multiplier`, attention adds to the stream."""
        if self.post_attn_norm is not None:
            return self.post_attn_norm
        if self.attn is not None and _adds_residual(self.attn):
            return self.o_proj
        return self.attn or self.linear_attn

    @property
    def mlp_out_module(self) -> nn.Module | None:
        """The module whose output, times `multiplier`, the MLP adds to the stream."""
        if self.post_mlp_norm is not None:
            return self.post_mlp_norm
        if self.mlp is None or _adds_residual(self.mlp):
            return self.down
        return self.mlp


def _adds_residual(module: nn.Module) -> bool:
    """Whether forward takes the residual stream and returns it with its own part added (BLOOM)."""
    return "residual" in type(module).forward.__code__.co_varnames[:4]


@dataclass(frozen=True)
class Anatomy:
    """The parts of one decoder, found once; `model.anatomy`.

    `unembed(resid)` maps the residual stream to the model's own logits: final norm, head,
    softcap and scale included.
    """

    # Weak, because anatomies are cached by their module: a strong one would keep it alive.
    module_ref: weakref.ref[nn.Module] = field(repr=False)
    config: Any = field(repr=False)
    blocks: tuple[Block, ...] = field(repr=False)
    embedding: nn.Module
    positions: nn.Module | None  # a learned table of absolute positions
    final_norm: nn.Module | None
    project_in: nn.Module | None
    project_out: nn.Module | None
    head: nn.Module
    n_heads: int
    d_model: int
    d_vocab: int

    @property
    def module(self) -> nn.Module:
        """The decoder itself."""
        module = self.module_ref()
        if module is None:
            raise InterpError("the model of this anatomy is gone; keep a reference to it")
        return module

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def embedding_weight(self) -> Tensor:
        """The token embedding: [vocab d_model]; it says where inputs live."""
        return torch.as_tensor(self.embedding.weight)

    @property
    def home(self) -> torch.device:
        """Where the model takes its inputs: never meta, where only offloaded weights live."""
        return _execution_device(self.embedding)

    @property
    def head_home(self) -> torch.device:
        """Where the unembedding takes its inputs."""
        return _execution_device(self.head)

    @cached_property
    def max_positions(self) -> int | None:
        """The longest input the model has positions for, or None where unlimited."""
        value = getattr(self.config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def logit_scales(self) -> tuple[float, float, float | None]:
        """(factor, divisor, softcap) applied to the head's output: Cohere, Granite, Gemma."""
        return (
            getattr(self.config, "logit_scale", None) or 1.0,
            getattr(self.config, "logits_scaling", None) or 1.0,
            getattr(self.config, "final_logit_softcapping", None),
        )

    def unembed(self, resid: Tensor) -> Tensor:
        """Logits of a residual stream: `scale * softcap(head(final_norm(resid)))`.

        Args:
            resid: [... d_model] at the end of a block (or anywhere, for the logit lens).

        Returns:
            [... vocab] in the head's dtype.
        """
        x = resid.to(self.head_home)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.unembed_normed(x)

    def unembed_normed(self, x: Tensor) -> Tensor:
        """Logits of a stream that has already passed the final norm."""
        if self.project_out is not None:
            x = self.project_out(x)
        return self.scaled(self.head(x))

    def scaled(self, logits: Tensor) -> Tensor:
        """What the model makes of its head's output: scale, divisor and softcap, entry by entry."""
        scale, divisor, softcap = self.logit_scales
        if scale != 1.0:
            logits = logits * scale
        if divisor != 1.0:
            logits = logits / divisor
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits


def _execution_device(module: nn.Module) -> torch.device:
    """The device a module computes on; weights that accelerate keeps elsewhere come there."""
    moved_to = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if moved_to is not None:
        return torch.device(moved_to)
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
