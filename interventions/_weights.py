"""A checkpoint opened for editing: its parameters, its tokens, and which model it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interp import InterpError, Model
from interp._edit.change import Unread
from interp._edit.identity import Identity, identity_of, identity_on_disk
from interp._edit.parameters import named_parameters
from interp._weights.checkpoint import Checkpoint, local_folder, open_checkpoint
from interp._weights.lora import is_adapter
from interp._weights.parameters import Held, parameters_of
from interp._weights.stored import Stored
from interventions._choose import Block

Source = str | Path | nn.Module | Model  # a folder, a hub id, or a model in memory


@dataclass(frozen=True)
class Weights:
    """A checkpoint by the names that a module gives its parameters."""

    name: str
    checkpoint: Checkpoint = field(repr=False)
    parameters: Mapping[str, Held] = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    tokenizer: Any = field(default=None, repr=False)
    adapter: bool = False

    @cached_property
    def identity(self) -> Identity | None:
        """Which model this is; None where no config says so."""
        if self.module is not None:
            return identity_of(self.module, self.name)
        return identity_on_disk(self.checkpoint, self.name)

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """The id of every token, added ones included; empty without a tokenizer."""
        if self.tokenizer is not None:
            return self.tokenizer.get_vocab()
        file = Path(self.checkpoint.source) / "tokenizer.json"
        return token_ids(file.read_bytes()) if file.is_file() else {}

    def value(self, name: str) -> Tensor | Stored | Unread:
        """A parameter where it lies on disk; a copy of one in memory, since a module may change."""
        source = self.parameters[name].source
        if isinstance(source, Stored) and source.held is not None:
            return source.held.detach().clone()
        return source

    def mask_of(self, name: str, block: Block) -> Tensor | None:
        """Chosen entries of a parameter as a mask; None for all."""
        return block.mask(tuple(self.parameters[name].source.shape))


def open_weights(source: Source, base: Weights | None = None) -> Weights:
    """Open a checkpoint: headers are read, weights are not.

    Args:
        source: a folder, a hub id, a module or a handle; with `base`, an adapter folder too.
        base: the checkpoint that an adapter changes.

    Raises:
        InterpError: nothing there, a module that peft has wrapped, quantised weights.
    """
    if isinstance(source, Model):
        held = _of_module(source.module, source.name)
        return Weights(held.name, held.checkpoint, held.parameters, source.module, source.tokenizer)
    if isinstance(source, nn.Module):
        return _of_module(source)
    folder = local_folder(source)
    adapter = is_adapter(folder)
    checkpoint = open_checkpoint(folder, base.checkpoint if base is not None else None)
    return Weights(str(source), checkpoint, parameters_of(checkpoint), adapter=adapter)


def _of_module(module: nn.Module, name: str = "") -> Weights:
    if hasattr(module, "peft_config"):
        raise InterpError(
            "this model is wrapped by peft, so its weights are a base and an adapter; give the "
            "adapter's folder, or merge it (merge_and_unload)"
        )
    checkpoint = open_checkpoint(module)
    own = named_parameters(module)  # buffers are no parameters, and no edit changes them
    held = {key: one for key, one in parameters_of(checkpoint).items() if key in own}
    return Weights(name or checkpoint.source, checkpoint, held, module)


def token_ids(text: bytes) -> dict[str, int]:
    """The id of every token in a tokenizer.json; empty for a file that says otherwise."""
    try:
        content = json.loads(text)
        vocabulary = content["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # unigram: [token, score] in the order of their ids
            vocabulary = {str(entry[0]): row for row, entry in enumerate(vocabulary)}
        added = {str(t["content"]): int(t["id"]) for t in content.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError):
        return {}
    return {**vocabulary, **added}
