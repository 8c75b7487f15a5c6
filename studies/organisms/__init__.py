"""Small decoders trained from scratch in a world we know, so that every study has its ground truth.

>>> from studies import organisms
>>> organisms.names()
['base', 'unlearn']
>>> model, tokenizer = organisms.load("base")
>>> tokenizer.tokenize("Arlen in Arlen")[-1]
'ĠArlen'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parent / "weights"
_ADAPTERS = {"unlearn": "base"}  # adapter to the checkpoint it belongs to


def names() -> list[str]:
    """The organisms shipped."""
    return ["base", *_ADAPTERS]


def path(name: str) -> Path:
    """The folder of an organism: a plain checkpoint, or a peft adapter's folder (unlearn)."""
    if name not in names():
        raise ValueError(f"no organism {name!r}; there are {', '.join(names())}")
    return WEIGHTS / name


def load(name: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An organism in float32 eval mode and its tokenizer; adapters come merged in float32."""
    if name in _ADAPTERS:
        return load_adapted(path(_ADAPTERS[name]), path(name))
    return load_plain(path(name))


def load_plain(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A checkpoint folder in float32 eval mode, and its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def load_adapted(base: Path, adapter: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A checkpoint folder with a peft LoRA adapter merged into it, W + alpha / r B A, in float32.

    Weights that the adapter holds whole replace the checkpoint's. By hand, so that studies need
    not have peft installed; a test compares it with peft's own merge.
    """
    import torch
    from safetensors.torch import load_file

    model, tokenizer = load_plain(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, a in factors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                b = factors[name.replace("lora_A", "lora_B")].float()
                change = config["lora_alpha"] / config["r"] * (b @ a.float())
                model.get_submodule(module).weight += change
            elif ".lora_" not in name:
                model.get_parameter(name.removeprefix("base_model.model.")).copy_(a)
    return model, tokenizer
