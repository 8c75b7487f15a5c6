"""A lens that maps each layer's stream before the unembedding: tuned lens, Jacobian lens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp._anatomy import Anatomy
from interp._errors import InterpError
from interp._record import load_record, save_record


@dataclass(frozen=True, eq=False)
class LinearLens:
    """lens_l(h) = W_l h + b_l, read before the model's final norm and unembedding.

    Args:
        weight: [layer d_model d_model]; layer l maps the stream after l blocks (0 the embedding).
            The model's own output is never mapped, so there are n_layers of them.
        bias: [layer d_model], or None.
        kind: what it is, for records: `"tuned"`, `"jacobian"`.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"] | None = None
    kind: str = "linear"

    def __repr__(self) -> str:
        n_layers, d_model = self.weight.shape[:2]
        return f"LinearLens({self.kind}: {n_layers} layers, d_model {d_model})"

    def __call__(self, stream: Float[Tensor, "row d_model"], layer: int) -> Tensor:
        """The mapped stream of one layer: [row d_model]."""
        weight = self.weight[layer].to(device=stream.device, dtype=stream.dtype)
        bias = None if self.bias is None else self.bias[layer].to(weight)
        return torch.nn.functional.linear(stream, weight, bias)

    def check(self, anatomy: Anatomy) -> None:
        """Refuse a lens of another model's size."""
        expected = (anatomy.n_layers, anatomy.d_model, anatomy.d_model)
        if tuple(self.weight.shape) != expected:
            raise InterpError(
                f"this lens has shape {list(self.weight.shape)} (layer, d_model, d_model); this "
                f"model needs {list(expected)}"
            )

    def save(self, path: str | Path) -> Path:
        """Write a folder that `LinearLens.load` reads back."""
        tensors = {"weight": self.weight}
        if self.bias is not None:
            tensors["bias"] = self.bias
        return save_record(path, "linear_lens", tensors, {"lens": self.kind})

    @staticmethod
    def load(path: str | Path) -> LinearLens:
        """Read what `save` wrote, or a folder of the tuned-lens library."""
        if (Path(path) / "params.pt").is_file():
            return _from_tuned_lens(Path(path))
        tensors, meta = load_record(path, "linear_lens")
        return LinearLens(tensors["weight"], tensors.get("bias"), meta["lens"])


def _from_tuned_lens(path: Path) -> LinearLens:
    """Their translator is h + A h + b, so the map is I + A; opened without running any pickle."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    params = torch.load(path / "params.pt", map_location="cpu", weights_only=True)
    layers = range(config["num_hidden_layers"])
    try:
        weight = torch.stack([params[f"{layer}.weight"] for layer in layers])
        bias = torch.stack([params[f"{layer}.bias"] for layer in layers])
    except KeyError as error:
        raise InterpError(f"{path} has no translator {error} in params.pt") from error
    return LinearLens(weight + torch.eye(weight.shape[-1]), bias, "tuned")
