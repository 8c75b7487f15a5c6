"""A LoRA adapter as a change of its base, without merging: `W + scale * B @ A`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp._errors import InterpError
from interp._weights.stored import Stored, whole

# Ways to begin an adapter that take out of the base what they put into it.
_MOVES_THE_BASE = ("corda", "loftq", "olora", "pissa")
_PREFIX = "base_model.model."
_KINDS = {"lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one stored matrix: `scale * B @ A`, transposed for Conv1D."""

    a: Stored = field(repr=False)  # [rank in]
    b: Stored = field(repr=False)  # [out rank]
    scale: float
    transposed: bool

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the change as the matrix is stored, in float32."""
        a, b = whole(self.a).to(torch.float32), whole(self.b).to(torch.float32)
        if self.transposed:  # (B A)^T, so rows run over the input
            return self.scale * (a.T[start:stop] @ b.T)
        return self.scale * (b[start:stop] @ a)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def open_adapter(
    folder: Path, stored: Mapping[str, Stored], base: Mapping[str, Stored]
) -> tuple[dict[str, Stored], dict[str, LowRank]]:
    """The tensors an adapter replaces whole, and its low-rank changes, by the base's names.

    Raises:
        InterpError: an adapter that is not a plain LoRA, or that does not fit the base.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InterpError(f"{folder}/adapter_config.json is damaged: {error}") from error
    _check_plain(folder, config)
    pairs: dict[str, dict[str, Stored]] = {}
    replaced = {}
    for name, tensor in stored.items():
        inner = name.removeprefix(_PREFIX).replace(".base_layer", "")
        match = re.fullmatch(r"(.*)\.(lora_\w+?)(?:\.default)?(?:\.weight)?", inner)
        if match and match[2] in _KINDS:
            side = _KINDS[match[2]]
            embedding = "embedding" in match[2]
            pairs.setdefault(match[1], {})[side + ("*" if embedding else "")] = tensor
        else:
            target = _target(folder, inner.replace(".modules_to_save", ""), base)
            replaced[target] = tensor
    low_rank = {}
    for module, sides in pairs.items():
        target = _target(folder, f"{module}.weight", base)
        low_rank[target] = _pair(folder, config, module, sides, base[target])
    return replaced, low_rank


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA" or config.get("use_dora"):
        what = "DoRA" if config.get("use_dora") else kind
        raise InterpError(
            f"{folder} holds a {what} adapter; only plain LoRA is read as a low-rank change: merge "
            f"it (merge_and_unload, save_pretrained) and give the merged folder"
        )
    if config.get("bias", "none") != "none":
        raise InterpError(
            f"{folder} also trains biases (bias={config['bias']!r}); merge it "
            f"(merge_and_unload, save_pretrained) and give the merged folder"
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_MOVES_THE_BASE):
        raise InterpError(
            f"{folder} began as {start}, which moves the base's weights too, so its change is not "
            f"to the base you have; save it converted (path_initial_model_for_weight_conversion), "
            f"or merge it and give the merged folder"
        )


def _pair(
    folder: Path,
    config: Mapping[str, Any],
    module: str,
    sides: Mapping[str, Stored],
    target: Stored,
) -> LowRank:
    embedding = any(key.endswith("*") for key in sides)
    a, b = sides.get("A*" if embedding else "A"), sides.get("B*" if embedding else "B")
    if a is None or b is None:
        raise InterpError(f"{folder} has only one of lora_A and lora_B for {module}")
    rank = a.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    shape = (b.shape[0], a.shape[1])
    if tuple(target.shape) != (shape[::-1] if transposed else shape):
        raise InterpError(
            f"{folder} changes {module} as {shape} and the base stores {tuple(target.shape)}: this "
            f"adapter was trained on another base"
        )
    return LowRank(a, b, scale, transposed)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", module):
            return float(value)
    return float(default)


def _target(folder: Path, name: str, base: Mapping[str, Stored]) -> str:
    if name in base:
        return name
    stripped = name.split(".", 1)[-1]
    matches = [n for n in base if n.endswith(name) or n == stripped]
    if len(matches) == 1:
        return matches[0]
    raise InterpError(
        f"{folder} changes {name}, which the base does not have: this adapter was trained on "
        f"another base"
    )
