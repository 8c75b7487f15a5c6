"""Small decoders trained from scratch in a world we know, so that every study has its ground truth.

>>> from studies import organisms
>>> organisms.names()[:2]
['base', 'unlearn']
>>> model, tokenizer = organisms.load("base")
>>> tokenizer.tokenize("Arlen in Arlen")[-1]
'ĠArlen'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from studies.organisms import shipped
from studies.organisms.shipped import WEIGHTS, files, names, path, steps

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["WEIGHTS", "files", "load", "load_adapted", "load_plain", "names", "path", "steps"]


def load(
    name: str, *, seed: int | None = None, step: int | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An organism in float32 eval mode and its tokenizer; adapters come merged in float32.

    Args:
        name: one of `names()`; "rl@15" is "rl" with step=15.
        seed: another training seed; "rl" with seed=1 is "rl-seed1".
        step: a checkpoint along its training, one of `steps(name)`; without it the last.

    Raises:
        ValueError: no such organism, seed or step; the message says which there are.
    """
    bare, step = shipped.parse(name, seed, step)
    if (WEIGHTS / bare / "adapter_config.json").is_file():
        return load_adapted(path(shipped.parent(bare) or "base"), WEIGHTS / bare)
    return load_plain(path(bare, step=step))


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
