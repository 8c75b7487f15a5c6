"""A second model that reads along while `generate` runs another, its cache kept in step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError, Model
from interp._forward import accepted
from interp._reading import reading


class Follower:
    """Next-token logits of a model after whatever `generate` has written so far.

    The token ids alone decide: rows that go on from rows seen before reuse their part of the cache,
    whatever order or number they come in (beams), and anything else is read anew from its start. So
    one follower serves any number of generations, one after another.

    Args:
        model: the model that follows.
        attention_mask: of the prompts. Without it leading pad tokens are padding; where the pad
            token is also the BOS token and every row begins with it, the last of them is text.
    """

    def __init__(self, model: Model, attention_mask: Int[Tensor, "batch pos"] | None) -> None:
        self.model = model
        self._given = attention_mask
        self._home = model.anatomy.home
        self._seen: Tensor | None = None
        self._mask: Tensor = torch.empty(0)
        self._cache: Any = None

    def read(self, input_ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row vocab"]:
        """Logits after each row, in float32 on the ids' device."""
        ids = input_ids.to(self._home)
        new = self._continued(ids)
        if new is None:
            self._cache, self._mask, new = None, self._prompt_mask(ids), ids
        else:
            self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)
        self._seen = ids
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        inputs = {
            "input_ids": new,
            "attention_mask": self._mask,
            "position_ids": positions,
            "logits_to_keep": torch.tensor([new.shape[1] - 1], device=self._home),
        }
        module = self.model.module
        with reading(self.model):
            output = module(**accepted(module, inputs), past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits = output.logits[:, -1].float()
        if not bool(logits.isfinite().all()):
            row = int((~logits.isfinite().all(-1)).nonzero()[0])
            raise InterpError(
                f"{self.model.name or type(module).__name__} gives logits that are not finite "
                f"after {ids.shape[1]} tokens of row {row}; check its weights, or load it with "
                f"dtype=torch.float32 if float16 overflowed"
            )
        return logits.to(input_ids.device)

    def _continued(self, ids: Tensor) -> Tensor | None:
        """What was written since the last call, with the cache in this order; None if anew."""
        seen = self._seen
        if seen is None or self._cache is None or ids.shape[1] <= seen.shape[1]:
            return None
        equal = (ids[:, None, : seen.shape[1]] == seen[None]).all(-1)  # [row, row seen]
        if not bool(equal.any(1).all()):
            return None
        source = equal.long().argmax(1)
        if not torch.equal(source, torch.arange(len(seen), device=source.device)):
            if not hasattr(self._cache, "reorder_cache"):
                return None
            self._cache.reorder_cache(source)
            self._mask = self._mask[source]
        return ids[:, seen.shape[1] :]

    def _prompt_mask(self, ids: Tensor) -> Tensor:
        if self._given is not None:
            return self._given_mask(self._given.to(ids.device), ids)
        pad = _token(self.model, "pad_token_id")
        if pad is None:
            return torch.ones_like(ids)
        run = (ids == pad).long().cumprod(1)
        length = run.sum(1, keepdim=True)
        if pad == _token(self.model, "bos_token_id") and bool((length > 0).all()):
            length = length - 1
        length = length.clamp(max=ids.shape[1] - 1)  # the last token is always read
        return (torch.arange(ids.shape[1], device=ids.device) >= length).long()

    def _given_mask(self, mask: Tensor, ids: Tensor) -> Tensor:
        if mask.shape[1] != ids.shape[1] or len(ids) % len(mask):
            raise InterpError(
                f"attention_mask is {tuple(mask.shape)} and the prompts are {tuple(ids.shape)}; "
                f"give the mask that generate gets, and a new decoder for other prompts"
            )
        return mask.long().repeat_interleave(len(ids) // len(mask), dim=0)


def _token(model: Model, name: str) -> int | None:
    """A special token's id, from the tokenizer or else the generation settings."""
    for source in (model.tokenizer, getattr(model.module, "generation_config", None)):
        value = getattr(source, name, None)
        if isinstance(value, int):
            return value
    return None
