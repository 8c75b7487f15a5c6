"""What a checkpoint's config says about its tensors, defaults included, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp._errors import InterpError


def read_config(folder: Path) -> dict[str, Any]:
    """The text model's config as a plain dict; empty when the folder has none.

    Through transformers, which knows the defaults that a saved config leaves out; an unknown
    model type gives the file as it stands.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InterpError(f"{file} is damaged: {error}; fetch the checkpoint anew") from error
    from transformers import CONFIG_MAPPING

    if raw.get("model_type") in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
            text = config.get_text_config().to_dict()
            return {**text, "quantization_config": raw.get("quantization_config")}
        except (TypeError, ValueError, KeyError, AttributeError):
            pass  # a config newer than this transformers: read what is written
    return {**raw, **(raw.get("text_config") or {})}


def first(config: Any, *names: str, default: Any = None) -> Any:
    """The first of several spellings that a config has: `num_attention_heads`, `n_head`."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return default


def head_counts(config: Any) -> tuple[int, int]:
    """(query heads, key-value heads); (0, 0) when the config does not say."""
    heads = int(first(config, "num_attention_heads", "n_head", "num_heads", default=0))
    kind = config.get("model_type", "")
    if kind == "falcon":
        if config.get("new_decoder_architecture"):
            return heads, int(config.get("num_kv_heads") or heads)
        return heads, 1 if config.get("multi_query") else heads
    return heads, int(first(config, "num_key_value_heads", "num_kv_heads", default=heads))
