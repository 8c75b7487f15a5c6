"""One-token replay of many variants of each prompt, over a single copy of its prefix.

The variants of a prompt stand side by side as if they were further positions, and each sees the
prefix and itself, not the others. So neither memory nor time goes into copies of the prefix's keys
and values, of which a gradient would keep every one. Where a cache is not of the growing kind, or
something is hooked that may count positions, every variant is a row with its own copy instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from interp._hooks import in_use, unpack_output
from interp._replay import Replay, _fresh

BlockRunner = Callable[[int, Tensor], Tensor]


def block_runner(recording: Replay) -> BlockRunner:
    """A function (layer, [prompt row d_model]) -> [prompt row d_model].

    It runs one block on any number of variants of each prompt's last token; call it upward, once
    for each layer. Equal to `recording.run` with a row for each variant, up to rounding.

    Args:
        recording: of `replay_last`, or of `replay` over prompts of one token.
    """
    if not _can_share(recording):
        return partial(_run_copied, recording)
    assert recording._cache is not None
    cache = _fresh(recording._cache, 0, recording.anatomy.n_layers, None)
    return partial(_run_shared, recording, cache)


def overwrites_cache(recording: Replay) -> bool:
    """Whether running a token changes the cache's tensors in place, as recurrent layers do."""
    cache = recording._cache
    return cache is not None and not all(isinstance(n, DynamicLayer) for n in cache.layers)


def _can_share(recording: Replay) -> bool:
    anatomy = recording.anatomy
    if recording._cache is None or overwrites_cache(recording):
        return False
    implementation = getattr(anatomy.config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager") or in_use(anatomy.module):
        return False
    masks = [_arguments(recording, n).get("attention_mask") for n in range(anatomy.n_layers)]
    return all(
        implementation == "sdpa" if mask is None else isinstance(mask, Tensor) and mask.ndim == 4
        for mask in masks
    )


def _run_copied(recording: Replay, layer: int, stream: Tensor) -> Tensor:
    n_prompts, n_rows = stream.shape[:2]
    prompt = torch.arange(n_prompts, device=stream.device).repeat_interleave(n_rows)
    flat = recording.run(layer, stream.flatten(0, 1)[:, None], rows=prompt, until=layer + 1)
    return flat.reshape(stream.shape)


def _run_shared(recording: Replay, cache: Cache, layer: int, stream: Tensor) -> Tensor:
    given = _arguments(recording, layer)
    past, n_rows = cache.layers[layer].keys.shape[-2], stream.shape[1]
    for name, value in given.items():
        if isinstance(value, Cache):
            given[name] = cache
        elif name == "alibi" and value is not None:  # one number a key: every variant comes last
            own = value[..., past:].expand(*value.shape[:-1], n_rows)
            given[name] = torch.cat([value[..., :past], own], dim=-1)
    given["attention_mask"] = _prefix_and_itself(given.get("attention_mask"), past, stream)
    return unpack_output(recording.anatomy.blocks[layer].module(stream, **given))


def _prefix_and_itself(
    mask: Tensor | None, past: int, stream: Float[Tensor, "prompt row d_model"]
) -> Bool[Tensor, "_ _ row key"] | Float[Tensor, "_ _ row key"]:
    """Each row sees the prefix and itself as the last token did, and no other row."""
    n_rows = stream.shape[1]
    if mask is None:  # SDPA does without one where everything is seen
        mask = torch.ones(1, 1, 1, past + 1, dtype=torch.bool, device=stream.device)
    # A boolean mask says what is seen; the other kind is added to the scores.
    unseen = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.expand(-1, -1, n_rows, -1)
    itself = torch.eye(n_rows, dtype=torch.bool, device=mask.device)
    rows = torch.where(itself, mask[..., past:], torch.tensor(unseen, dtype=mask.dtype))
    return torch.cat([mask[..., :past], rows], dim=-1)


def _arguments(recording: Replay, layer: int) -> dict[str, Any]:
    """What a block was called with beside the stream, by name."""
    args, kwargs = recording._calls[layer]
    stream, *names = inspect.signature(recording.anatomy.blocks[layer].module.forward).parameters
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    given.pop(stream, None)
    return given
