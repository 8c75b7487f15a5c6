"""Replay: run the blocks from any layer upward on a changed stream, without the rest of the model.

Two forms, and everything fast is built on them. A whole-sequence replay is bit-equal to the full
forward at equal batch. A one-token replay keeps the keys and values of the prefix and runs the
last token only: exact to rounding for anything that changes that token's stream alone, at a cost
independent of the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from interp._anatomy import Anatomy
from interp._batch import Batch
from interp._errors import InterpError, counted
from interp._forward import accepted, run
from interp._hooks import repack_input, unpack_input, unpack_output
from interp._model import Model, as_model
from interp._reading import reading
from interp._resolve import anatomy_of

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Replay:
    """The arguments with which one forward called each block; made by `replay` and `replay_last`.

    Args:
        streams: resid_pre of every block, then resid_post of the last: each [batch pos d_model]
            (pos is 1 for `replay_last`).
        logits: the recorded forward's logits, [batch pos vocab].
    """

    anatomy: Anatomy
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    logits: Tensor
    _calls: tuple[_Call, ...]
    _cache: Cache | None

    def __repr__(self) -> str:
        batch, pos = self.streams[0].shape[:2]
        prompts, positions = counted(batch, "prompt"), counted(pos, "position")
        return f"Replay({prompts}, {positions}, {len(self._calls)} blocks)"

    def run(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        *,
        rows: Sequence[int] | Tensor | None = None,
        until: int | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """Put `resid` at resid_pre.`layer` and run upward; hooks on the blocks fire as usual.

        Args:
            layer: the first block to run.
            resid: [row pos d_model]; any number of rows.
            rows: which recorded prompt each row belongs to; by default row i to prompt i.
            until: stop before this block (default: after the last).

        Returns:
            [row pos d_model], the stream at resid_pre.`until`, by default the last resid_post.
        """
        last = self.anatomy.n_layers if until is None else until
        if not 0 <= layer <= last <= self.anatomy.n_layers:
            raise InterpError(
                f"cannot run blocks {layer} to {last} of a model with {self.anatomy.n_layers}"
            )
        index = self._rows(resid, rows)
        cache = None if self._cache is None else _fresh(self._cache, layer, last, index)
        for block in range(layer, last):
            args, kwargs = self._calls[block]
            fit = _fitter(index, len(self.streams[0]), self.anatomy, cache)
            args, kwargs = repack_input(fit("", args), fit("", kwargs), resid)
            resid = unpack_output(self.anatomy.blocks[block].module(*args, **kwargs))
        return resid

    def unembed(self, resid: Tensor) -> Tensor:
        """Logits of the last stream: [row pos vocab]."""
        return self.anatomy.unembed(resid)

    def _rows(self, resid: Tensor, rows: Sequence[int] | Tensor | None) -> Tensor | None:
        batch = len(self.streams[0])
        if rows is None:
            if len(resid) != batch:
                raise InterpError(
                    f"replay of {batch} prompts given {len(resid)} rows; say with rows=[...] which "
                    f"prompt each row belongs to"
                )
            return None
        index = torch.as_tensor(rows, dtype=torch.long, device=resid.device)
        if len(index) != len(resid) or int(index.min()) < 0 or int(index.max()) >= batch:
            raise InterpError(
                f"rows must name one of the {batch} prompts for each of the {len(resid)} rows"
            )
        return index


def replay(model: Model | nn.Module, prompts: Any) -> Replay:
    """Record one forward over whole sequences, to rerun any suffix of blocks.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.

    Examples:
        >>> again = interp.replay(model, batch)
        >>> torch.equal(again.run(3, again.streams[3]), again.streams[-1])
        True
    """
    handle = as_model(model)
    batch = handle.batch(prompts)
    return _record(handle, batch.inputs, None)


def replay_last(model: Model | nn.Module, prompts: Any) -> Replay:
    """Record the last token of each prompt over a cached prefix, to rerun it at one token's cost.

    Prompts of one token have no prefix and are refused.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids; padding is arranged here.
    """
    handle = as_model(model)
    batch = _left_padded(handle, handle.batch(prompts))
    if int(batch.lengths.min()) < 2:
        row = int(batch.lengths.argmin())
        raise InterpError(f"prompt {row} has one token, so no prefix to keep; use replay instead")
    with reading(handle):
        prefix = handle.module(
            **accepted(
                handle.module,
                {
                    "input_ids": batch.input_ids[:, :-1],
                    "attention_mask": batch.attention_mask[:, :-1],
                    "position_ids": batch.position_ids[:, :-1],
                    # Of no position: only keys and values are wanted, not the vocabulary.
                    "logits_to_keep": batch.input_ids.new_empty(0),
                },
            ),
            use_cache=True,
        ).past_key_values
    token = {
        "input_ids": batch.input_ids[:, -1:],
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids[:, -1:],
    }
    return _record(handle, token, prefix)


def _record(model: Model, inputs: dict[str, Tensor], cache: Cache | None) -> Replay:
    anatomy = anatomy_of(model.module)
    calls: list[_Call] = []
    streams: list[Tensor] = []

    def on_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = unpack_input(args, kwargs).detach().clone()
        streams.append(stream)
        calls.append(repack_input(args, kwargs, stream[:0]))  # the stream is kept once

    def on_last(_module: nn.Module, _args: Any, output: Any) -> None:
        streams.append(unpack_output(output).detach())

    with ExitStack() as stack:
        stack.enter_context(reading(model))
        for block in anatomy.blocks:
            handle = block.module.register_forward_pre_hook(on_block, with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(anatomy.blocks[-1].module.register_forward_hook(on_last).remove)
        if cache is None:
            logits = run(model.module, inputs).logits
        else:
            used = _fresh(cache, 0, anatomy.n_layers, None)
            logits = model.module(
                **accepted(model.module, inputs), past_key_values=used, use_cache=True
            ).logits
    return Replay(anatomy, tuple(streams), logits, tuple(calls), cache)


def _left_padded(model: Model, batch: Batch) -> Batch:
    if not batch.padded or bool(batch.attention_mask[:, -1].all()):
        return batch
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    return model.batch(rows, padding="left")


def _fitter(
    index: Tensor | None, batch: int, anatomy: Anatomy, cache: Cache | None
) -> Callable[[str, Any], Any]:
    """Arguments of a block for other rows: per-prompt tensors follow `index`, caches are fresh."""

    def fit(name: str, value: Any) -> Any:
        if isinstance(value, Cache):
            return cache
        if isinstance(value, tuple | list):
            return type(value)(fit(name, item) for item in value)
        if isinstance(value, dict):
            return {key: fit(key, item) for key, item in value.items()}
        if not isinstance(value, Tensor) or index is None or value.ndim == 0:
            return value
        at = index.to(value.device)
        if name == "alibi" and value.shape[0] == batch * anatomy.n_heads:  # BLOOM: [batch*head ...]
            return value.unflatten(0, (batch, anatomy.n_heads))[at].flatten(0, 1)
        if value.shape[0] == batch:
            return value[at]
        return value

    return fit


def _fresh(cache: Cache, first: int, last: int, index: Tensor | None) -> Cache:
    """A cache that can be written to, sharing the prefix's tensors with the recorded one.

    Growing layers replace their tensors when they grow, so a shallow copy is enough; recurrent
    ones overwrite theirs, so they are copied deeply.
    """
    fresh = copy.copy(cache)
    fresh.layers = list(cache.layers)
    for number in range(first, min(last, len(cache.layers))):
        layer = cache.layers[number]
        growing = isinstance(layer, DynamicLayer)
        new = copy.copy(layer) if growing else copy.deepcopy(layer)
        if index is not None:
            for name, value in vars(new).items():
                setattr(new, name, _select(value, index))
        fresh.layers[number] = new
    return fresh


def _select(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim > 1:
        return value[index.to(value.device)]
    if isinstance(value, list):
        return [_select(item, index) for item in value]
    if isinstance(value, dict):
        return {key: _select(item, index) for key, item in value.items()}
    return value
