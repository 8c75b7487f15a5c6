"""The tensors of a decoder by name, arranged as the edit algebra meets them.

Works on meta-device modules too: only names and shapes are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from interp._anatomy import Anatomy, Block
from interp._edit.parameters import Parameter, named_parameters

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_SHARED = ("shared_experts", "shared_expert", "shared_mlp")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2", "wo")
_EMBEDDING_NORMS = ("word_embeddings_layernorm", "embed_layer_norm", "embedding_norm")


@dataclass(frozen=True)
class Linear:
    """A projection, or the projections of all experts of a layer.

    `bias` is the name that a bias has or would have.
    """

    weight: str
    bias: str
    d_in: int
    d_out: int
    transposed: bool  # stored [in out]
    experts: int = 0

    def columns(self, vector: Any) -> Any:
        """A vector over inputs ([in] or [expert in]) such that it multiplies the stored matrix."""
        return vector[..., :, None] if self.transposed else vector[..., None, :]

    def rows(self, vector: Any) -> Any:
        """A vector over outputs such that it multiplies the stored matrix."""
        return vector[None, :] if self.transposed else vector[:, None]


@dataclass(frozen=True)
class Norm:
    """A norm's weight and bias; `offset` is 1 where it multiplies by 1 + weight (Gemma)."""

    weight: str
    bias: str
    offset: float


@dataclass(frozen=True)
class Branch:
    """What one half of a block adds to the stream: `multiplier * norm(sum of outputs)`.

    The first output is the one whose input is z or mlp_post, where it is readable (`inner`).
    """

    outputs: tuple[Linear, ...]
    inner: bool
    norm: Norm | None
    multiplier: float


class Parts:
    """Parts of a decoder by the names of their tensors.

    Args:
        module: the decoder, perhaps on the meta device.
        anatomy: its anatomy.
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        self.module, self.anatomy = module, anatomy
        self._paths = {id(m): path for path, m in module.named_modules(remove_duplicate=False)}

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Every parameter, tied ones under each name."""
        return named_parameters(self.module)

    @cached_property
    def canonical(self) -> dict[str, str]:
        """Each name -> the first name of the same tensor."""
        first: dict[int, str] = {}
        return {name: first.setdefault(id(p.tensor), name) for name, p in self.parameters.items()}

    def tied_to(self, name: str) -> list[str]:
        """All names of a tensor."""
        return [n for n, c in self.canonical.items() if c == self.canonical[name]]

    def name(self, module: nn.Module, attribute: str) -> str:
        """The name of a module's parameter, whether or not it has one."""
        path = self._paths[id(module)]
        return f"{path}.{attribute}" if path else attribute

    def linear(self, module: Any) -> Linear:
        """A dense projection."""
        transposed = isinstance(module, Conv1D)
        shape = tuple(module.weight.shape)
        d_in, d_out = shape if transposed else shape[::-1]
        names = self.name(module, "weight"), self.name(module, "bias")
        return Linear(*names, d_in, d_out, transposed)

    def norm(self, module: nn.Module) -> Norm:
        """A norm that scales each coordinate."""
        offset = 1.0 if _starts_at_zero(module) else 0.0
        return Norm(self.name(module, "weight"), self.name(module, "bias"), offset)

    def attention(self, block: Block) -> Branch | None:
        """The attention half of a block, linear attention included."""
        output = block.o_proj if block.o_proj is not None else _first(block.linear_attn, _OUTPUTS)
        if output is None:
            return None
        return self._branch(block, (self.linear(output),), block.o_proj, block.post_attn_norm)

    def mlp(self, block: Block) -> Branch | None:
        """The other half, dense or a mixture of experts."""
        if block.experts is not None and hasattr(block.experts, "down_proj"):
            shared = _first(_first(block.mlp, _SHARED), _DOWN)
            outputs = [self._experts(block.experts)]
            outputs += [] if shared is None else [self.linear(shared)]
            return self._branch(block, tuple(outputs), block.experts, block.post_mlp_norm)
        if block.down is None:
            return None
        return self._branch(block, (self.linear(block.down),), block.down, block.post_mlp_norm)

    def _branch(self, block: Block, outputs: Any, inner: Any, norm: Any) -> Branch:
        norm = None if norm is None else self.norm(norm)
        return Branch(outputs, inner is not None, norm, block.multiplier)

    def _experts(self, experts: Any) -> Linear:
        transposed = bool(getattr(experts, "is_transposed", False))
        count, *shape = experts.down_proj.shape
        d_in, d_out = shape if transposed else shape[::-1]
        weight = self.name(experts, "down_proj")
        return Linear(weight, f"{weight}_bias", d_in, d_out, transposed, count)

    @property
    def embedding(self) -> str:
        """The token embedding's table."""
        return self.name(self.anatomy.embedding, "weight")

    @property
    def embedding_scale(self) -> float:
        """What the model multiplies an embedding by before the first block reads it."""
        own = getattr(self.anatomy.embedding, "scalar_embed_scale", None)
        own = own if own is not None else getattr(self.anatomy.embedding, "embed_scale", None)
        return float(own or 1.0) * float(
            getattr(self.anatomy.config, "embedding_multiplier", None) or 1.0
        )

    @property
    def embedding_norm(self) -> Norm | None:
        """A norm right after the embedding (BLOOM)."""
        path = self._paths[id(self.anatomy.embedding)].rpartition(".")[0]
        found = _first(self.module.get_submodule(path), _EMBEDDING_NORMS)
        return None if found is None else self.norm(found)

    def norm_after(self, block: Block) -> Norm | None:
        """The norm whose output is the block's (OPT with `do_layer_norm_before=False`)."""
        module: Any = block.module
        if getattr(module, "do_layer_norm_before", True):
            return None
        return self.norm(module.final_layer_norm)


def _starts_at_zero(norm: Any) -> bool:
    """Whether this kind of norm stores its weight minus one: then it is initialised to zeros."""
    try:
        fresh = type(norm)(2)
    except TypeError:
        return False
    return not bool(fresh.weight.any()) if hasattr(fresh, "weight") else False


def _first(module: nn.Module | None, names: tuple[str, ...]) -> Any:
    found = (getattr(module, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Module)), None)
