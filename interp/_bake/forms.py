"""Which biases a checkpoint may have: those it has, those a config flag adds, those of a Llama."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from interp._bake.parts import Parts
from interp._edit.parameters import named_parameters

_LLAMA_LIKE = ("qwen2", "mistral")
# What a Qwen2 or Mistral config says that a Llama's does not know, or says of itself.
_OWN_KEYS = {
    "model_type", "architectures", "transformers_version", "auto_map", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "attention_bias", "mlp_bias",
    "_name_or_path",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """The class and config of the checkpoint to write.

    Args:
        model_class: what transformers calls it.
        config: its config.
        changed: settings that differ from the base's, for the record.
        shapes: its tensors.
    """

    model_class: type[Any]
    config: Any
    changed: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


class Forms:
    """The forms that a decoder's checkpoint can take without computing anything else.

    A flag that adds biases is found by trying it on the meta device, so no table per architecture
    is needed; a bias of zeros changes nothing.
    """

    def __init__(self, parts: Parts) -> None:
        module: Any = parts.module
        self._class, self._config = type(module), module.config
        self.existing = {name: tuple(p.tensor.shape) for name, p in parts.parameters.items()}

    def has(self, name: str) -> bool:
        """Whether the base has this tensor."""
        return name in self.existing

    def means(self, name: str) -> str | None:
        """What gives this tensor: a config flag, "Llama", "" where it is there, None: nothing."""
        if name in self.existing:
            return ""
        for flag, shapes in self._flags.items():
            if name in shapes:
                return flag
        return "Llama" if name in self._llama else None

    def settle(self, needed: Iterable[str], *, untied: bool) -> Form:
        """The form that has the needed tensors and nothing more than it must."""
        new = {name: means for name in needed if (means := self.means(name))}
        if "Llama" in new.values():
            mlp_bias = any(".mlp." in name for name in new)
            config = self._as_llama(mlp_bias=mlp_bias)
            changed: dict[str, Any] = {"model_type": "llama", "attention_bias": True}
            changed |= {"mlp_bias": True} if mlp_bias else {}
            model_class = _llama_class()
        else:
            config = copy.deepcopy(self._config)
            changed = dict.fromkeys(sorted(set(new.values())), True)
            model_class = self._class
            _set(config, changed)
        if untied:
            changed["tie_word_embeddings"] = False
            _set(config, {"tie_word_embeddings": False})
        config.architectures = [model_class.__name__]
        shapes = _shapes(model_class, config) if changed else dict(self.existing)
        return Form(model_class, config, changed, shapes)

    @property
    def windowed(self) -> bool:
        """Whether only a sliding window keeps this model from being a Llama with biases."""
        return self._config.model_type in _LLAMA_LIKE and not self._llama

    @cached_property
    def _flags(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Config flag -> the tensors of the model when it is set."""
        found = {}
        text = self._config.get_text_config()
        for flag, value in text.to_dict().items():
            if "bias" in flag and value is False:
                config = copy.deepcopy(self._config)
                _set(config, {flag: True})
                shapes = _shapes(self._class, config)
                added = {n: s for n, s in shapes.items() if n not in self.existing}
                if added and self.existing.items() <= shapes.items():
                    found[flag] = added
        return found

    @cached_property
    def _llama(self) -> dict[str, tuple[int, ...]]:
        """Tensors of the same model as a Llama with biases; empty where it is none."""
        config = self._config
        if config.model_type not in _LLAMA_LIKE or config.sliding_window is not None:
            return {}
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            return {}
        shapes = _shapes(_llama_class(), self._as_llama(mlp_bias=True))
        same = all(shapes.get(name) == shape for name, shape in self.existing.items())
        return shapes if same else {}

    def _as_llama(self, *, mlp_bias: bool) -> Any:
        from transformers import LlamaConfig

        known = LlamaConfig().to_dict()
        settings = {
            key: copy.deepcopy(value)
            for key, value in self._config.to_dict().items()
            if key in known and key not in _OWN_KEYS
        }
        config = LlamaConfig(**settings, attention_bias=True, mlp_bias=mlp_bias)
        config._attn_implementation = self._config._attn_implementation
        return config


def meta_module(model_class: type[Any], config: Any) -> Any:
    """The module without its numbers."""
    with torch.device("meta"):
        return model_class(config)


def _shapes(model_class: type[Any], config: Any) -> dict[str, tuple[int, ...]]:
    module: nn.Module = meta_module(model_class, config)
    return {name: tuple(p.tensor.shape) for name, p in named_parameters(module).items()}


def _set(config: Any, settings: dict[str, Any]) -> None:
    """Settings of the language model, wherever a config of several models keeps them."""
    text = config.get_text_config()
    for key, value in settings.items():
        setattr(text, key, value)
        if text is not config and hasattr(config, key):
            setattr(config, key, value)


def _llama_class() -> type[Any]:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM
