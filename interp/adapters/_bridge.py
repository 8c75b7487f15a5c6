"""A TransformerBridge over a copy of a model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from interp._errors import InterpError
from interp._model import Model, as_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def bridge(model: Model | nn.Module) -> TransformerBridge:
    """A TransformerBridge over a copy of this model: TransformerLens on the very same weights.

    The copy takes the memory of the weights once more; the model you pass is never touched. Needs
    no network and no tokenizer on disk. A tokenizer is attached where the handle has one, so that
    a text gives the bridge the token ids of `model.batch(text)`: unlike TransformerLens' own
    loader, it adds no BOS token that the tokenizer would not add itself.

    Args:
        model: a handle or a bare PreTrainedModel.

    Returns:
        The bridge, whose `run_with_cache(ids)` gives a cache that `from_cache` reads. With
        attention sinks (gpt_oss) its compatibility mode refuses to fold value biases: that
        assumes pattern rows that sum to 1, and would change the function.

    Raises:
        InterpError: weights that are not in memory, or an architecture that TransformerLens does
            not have or cannot split.

    Examples:
        >>> tl = transformer_lens.bridge(model)
        >>> logits, cache = tl.run_with_cache(model.batch("Once upon").input_ids)

    Source: Nanda and Bloom 2022, TransformerLens.
    """
    handle = as_model(model)
    name = type(handle.module).__name__
    if any(parameter.is_meta for parameter in handle.module.parameters()):
        raise InterpError(
            f"{name} has weights on the meta device or offloaded to disk, so there is nothing to "
            f"copy; load it whole, or read it through interp.adapters.nnsight"
        )
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = copy.deepcopy(handle.module)
    try:
        made = build_bridge_from_module(module, name, hf_config=module.config)
    except (ValueError, KeyError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InterpError(
            f"TransformerLens cannot boot {name}: {reason}; interp.capture reads it without"
        ) from error
    if handle.tokenizer is not None:
        _attach_tokenizer(made, copy.deepcopy(handle.tokenizer))
    if any(hasattr(block.attn, "sinks") for block in handle.anatomy.blocks):
        _guard_sinks(made, name)
    return made


def _attach_tokenizer(made: Any, tokenizer: Any) -> None:
    """Without their set-up, which opens the tokenizer again from disk to make it add a BOS."""
    from transformer_lens.model_bridge.sources._bridge_builder import detect_tokenizer_bos_eos

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    prepends, appends = detect_tokenizer_bos_eos(tokenizer)
    made.cfg.tokenizer_prepends_bos, made.cfg.tokenizer_appends_eos = prepends, appends
    made.cfg.default_prepend_bos = prepends
    made.tokenizer = tokenizer


def _guard_sinks(made: Any, name: str) -> None:
    original = made.enable_compatibility_mode

    def enable_compatibility_mode(*args: Any, **options: Any) -> None:
        folds = options.get("fold_value_biases", True) and not options.get("no_processing", False)
        if args or folds:
            raise InterpError(
                f"{name} has attention sinks, so its pattern rows sum to less than 1 and folding "
                f"value biases changes the logits; pass fold_value_biases=False by name"
            )
        original(**options)

    made.enable_compatibility_mode = enable_compatibility_mode
