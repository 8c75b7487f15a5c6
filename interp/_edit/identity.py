"""Which model an edit was made on: its config, and a hash of a sample of every weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp._edit.parameters import named_parameters, plain_module
from interp._errors import InterpError
from interp._weights.checkpoint import Checkpoint
from interp._weights.parameters import Assembled, entries, module_shapes, parameters_of
from interp._weights.stored import Stored

_SAMPLE = 128  # entries of each tensor
_GOLDEN = (5**0.5 - 1) / 2
# What a config says of its file, or of how the model is run, and not of what it computes.
_VOLATILE = {
    "_attn_implementation", "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label",
    "label2id", "output_attentions", "output_hidden_states", "return_dict", "transformers_version",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "experts_implementation",
    "_experts_implementation", "chunk_size_feed_forward", "problem_type", "is_encoder_decoder",
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """A model's config and a short hash of each weight, by name.

    Weights are hashed after rounding to bfloat16, so that one checkpoint loaded in two dtypes is
    one model.
    """

    name: str
    config: Mapping[str, Any] = field(repr=False)
    weights: Mapping[str, str] = field(repr=False)

    def check(self, other: Identity, *, transfer: bool) -> None:
        """Refuse another model than this one, naming what differs.

        Args:
            other: the model at hand.
            transfer: let other weights of the same architecture pass.

        Raises:
            InterpError: other tensors or shapes; other weights or config without `transfer`.
        """
        mine = f"this edit was made on {self.name or 'another model'}"
        kinds = [each.config.get("model_type") for each in (self, other)]
        if kinds[0] != kinds[1]:
            raise InterpError(f"{mine}, a {kinds[0]}, and this model is a {kinds[1]}")
        odd = sorted(set(self.weights) ^ set(other.weights))
        if odd:
            holder = "which has" if odd[0] in self.weights else "which lacks"
            raise InterpError(f"{mine}, {holder} {odd[0]}, unlike this model")
        for name, digest in self.weights.items():
            shape, here = digest.split(":")[0], other.weights[name].split(":")[0]
            if shape != here:
                raise InterpError(f"{mine}, where {name} has shape [{shape}]; here it is [{here}]")
        if transfer:
            return
        for key in sorted(set(self.config) | set(other.config)):
            if self.config.get(key) != other.config.get(key):
                raise InterpError(
                    f"{mine}, whose config has {key} = {self.config.get(key)!r} and not "
                    f"{other.config.get(key)!r}; pass transfer=True to use it here all the same"
                )
        differing = [n for n, digest in self.weights.items() if other.weights[n] != digest]
        if differing:
            raise InterpError(
                f"{mine}, whose weights differ from this model's in {len(differing)} of "
                f"{len(self.weights)} tensors, such as {differing[0]}; pass transfer=True to use "
                f"it here all the same"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.name, "config": dict(self.config), "weights": dict(self.weights)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Identity:
        """Read back what `to_json` gave."""
        return Identity(str(stored["name"]), dict(stored["config"]), dict(stored["weights"]))


def identity_of(module: Any, name: str = "", originals: Mapping[int, Tensor] = {}) -> Identity:
    """The identity of a module in memory.

    Args:
        module: a decoder, perhaps wrapped by peft (the base is identified).
        name: what to call it.
        originals: weights as they were before edits now applied, by `id` of the parameter.
    """
    config = getattr(plain_module(module), "config", None)
    weights = {}
    for key, parameter in named_parameters(module).items():
        tensor = originals.get(id(parameter.tensor), parameter.tensor)
        weights[key] = digest(tensor)
    return Identity(name, stable_config(config.to_dict() if config is not None else {}), weights)


def identity_on_disk(checkpoint: Checkpoint, name: str = "") -> Identity | None:
    """The identity that a module loaded from this checkpoint would have, from a few reads.

    None where the checkpoint has no config that transformers knows.
    """
    shapes = module_shapes(checkpoint)
    if shapes is None:
        return None
    held = parameters_of(checkpoint)
    embedding = next((h for h in held.values() if h.parts[0].module == "embed"), None)
    weights = {}
    for key in shapes:
        found = held.get(key, embedding)  # what is missing is the tied head
        weights[key] = digest_on_disk(found.source) if found is not None else ""
    return Identity(name or checkpoint.source, stable_config(checkpoint.config), weights)


def stable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that changes what a model computes, as plain JSON values."""
    return {
        key: _plain(value)
        for key, value in config.items()
        if key not in _VOLATILE and value is not None
    }


def digest(tensor: Tensor) -> str:
    """`shape:hash` of a tensor; only its shape where the numbers are not here."""
    shape = ",".join(map(str, tensor.shape))
    if tensor.is_meta or not tensor.is_floating_point():
        return f"{shape}:"
    flat = tensor.detach().reshape(-1)
    return f"{shape}:{_hash(flat[_places(flat.numel()).to(flat.device)])}"


def digest_on_disk(source: Stored | Assembled) -> str:
    """The digest of a tensor of which only the sample is read."""
    shape = ",".join(map(str, source.shape))
    numel = torch.Size(source.shape).numel()
    return f"{shape}:{_hash(entries(source, _places(numel)))}"


def _places(numel: int) -> Int[Tensor, " entry"]:
    """Spread over rows and columns alike: at even steps all would be of a column or two."""
    turns = _GOLDEN * torch.arange(_SAMPLE, dtype=torch.float64)
    return (turns.frac() * numel).long().unique()


def _hash(sample: Tensor) -> str:
    rounded = sample.to("cpu", torch.bfloat16).view(torch.int16)
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
