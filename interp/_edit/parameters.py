"""From a parameter's name to the tensor in a module, also where peft has wrapped it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp._edit.change import Change, LowRank
from interp._errors import InterpError, nearest


@dataclass(frozen=True)
class Parameter:
    """A parameter where it stands: `getattr(owner, attribute)`."""

    name: str
    owner: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor:
        """The parameter itself."""
        return getattr(self.owner, self.attribute)

    @property
    def in_place(self) -> bool:
        """Whether its numbers are here to be changed: neither codes nor kept elsewhere."""
        return self.tensor.is_floating_point() and not self.tensor.is_meta


def plain_module(module: Any) -> nn.Module:
    """The decoder inside what peft has wrapped; the decoder itself otherwise."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def named_parameters(module: nn.Module) -> dict[str, Parameter]:
    """Every parameter by its name in the plain model's state dict; tied ones under each name."""
    found: dict[str, Parameter] = {}
    for path, owner in plain_module(module).named_modules(remove_duplicate=False):
        if any(word.startswith(("lora_", "modules_to_save")) for word in path.split(".")):
            continue
        plain = path.replace(".base_layer", "").replace(".original_module", "")
        for attribute, value in owner._parameters.items():
            if value is not None:
                name = f"{plain}.{attribute}" if plain else attribute
                found[name] = Parameter(name, owner, attribute)
    return found


def find(
    module: nn.Module, name: str, change: Change, parameters: Mapping[str, Parameter] | None = None
) -> Parameter:
    """The parameter that a change is meant for.

    Args:
        module: where.
        name: of the parameter.
        change: of which the shape is looked at.
        parameters: the module's `named_parameters`, where many are looked for.

    Raises:
        InterpError: no such name, another shape, one that an adapter replaces whole.
    """
    parameters = named_parameters(module) if parameters is None else parameters
    if name not in parameters:
        raise InterpError(f"this model has no parameter {name!r}; {nearest(name, parameters)}")
    parameter = parameters[name]
    if parameter.in_place and tuple(parameter.tensor.shape) != tuple(change.shape):
        raise InterpError(
            f"{name} has shape {list(parameter.tensor.shape)} here and {list(change.shape)} in the "
            f"edit: it was made for another model"
        )
    if _replaced_whole(plain_module(module), name):
        raise InterpError(
            f"{name} is replaced whole by the adapter on this model (modules_to_save), so a change "
            f"of the base would not be felt; merge the adapter first (merge_and_unload)"
        )
    return parameter


def output_change(parameter: Parameter, change: Change, x: Tensor) -> Tensor:
    """What a changed matrix adds to its module's output, where the matrix cannot be touched.

    Quantised and offloaded weights, and one end of a tied pair, are changed in this way. `x` is the
    module's input: [... in], or token ids at an embedding.
    """
    matrix = change.tensors()
    owner = parameter.owner
    embedding = isinstance(owner, nn.Embedding)
    dtype = parameter.tensor.dtype if parameter.tensor.is_floating_point() else x.dtype
    scale = getattr(owner, "embed_scale", 1) if embedding else 1  # Gemma's is in the embedding
    if isinstance(change, LowRank):
        left, right = (matrix[k].to(x.device, dtype) for k in ("left", "right"))
        if embedding:
            return F.embedding(x, left) @ right * scale
        return (x @ left) @ right if isinstance(owner, Conv1D) else (x @ right.T) @ left.T
    whole = matrix["dense"].to(x.device, dtype)
    if embedding:
        return F.embedding(x, whole) * scale
    return x @ (whole if isinstance(owner, Conv1D) else whole.T)


def is_tied(parameter: Parameter, parameters: Mapping[str, Parameter]) -> bool:
    """Whether another name has the same tensor."""
    tensor = parameter.tensor
    return any(p.tensor is tensor for p in parameters.values() if p.name != parameter.name)


def require_output_change(parameter: Parameter, change: Change) -> None:
    """Refuse where a change can be made neither in the weight nor in the output.

    Raises:
        InterpError: with the reason.
    """
    names = set(change.tensors())
    matrix = isinstance(parameter.owner, nn.Linear | Conv1D | nn.Embedding)
    whole = names in ({"left", "right"}, {"dense"}) and len(change.shape) == 2
    if parameter.attribute != "weight" or not matrix or not whole:
        raise InterpError(
            f"{parameter.name} is quantised, kept elsewhere or tied, where only a low-rank or "
            f"dense change of a whole matrix of a linear layer or embedding can act, and this one "
            f"is a {type(change).__name__} of a {type(parameter.owner).__name__}; "
            f"load the model in a floating-point dtype on one device"
        )


def _replaced_whole(module: nn.Module, name: str) -> bool:
    owner: Any = module
    for word in name.split(".")[:-1]:
        if getattr(owner, "modules_to_save", None) is not None:
            return True
        owner = getattr(owner, word, None) or getattr(
            getattr(owner, "base_layer", owner), word, None
        )
    return owner is not None and len(getattr(owner, "modules_to_save", None) or ()) > 0
