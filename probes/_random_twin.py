"""A model of the same architecture that was never trained: the control for probes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from interp import InterpError, Model


def random_twin(model: Model | nn.Module, *, seed: int = 0) -> Model:
    """The same configuration, freshly initialised, with the same tokenizer.

    A probe that does as well on the twin's activations reads the tokens, not what training has
    put there. It stands in memory beside the model.

    Args:
        model: a handle or a bare PreTrainedModel; it stays as it is.
        seed: of the initialisation; the global generator is left as it was.

    Returns:
        A handle in eval mode, in the model's dtype and on its device.

    Raises:
        InterpError: a module that cannot be made anew from its configuration.

    Examples:
        >>> twin = probes.random_twin(model)
        >>> control = interp.capture(twin, texts, "resid_post.*", positions="last")

    Source: the control of Conneau et al. 2018 (arXiv 1805.01070) and Zhang and Bowman 2018 (arXiv
    1809.10040). The initialisation is the one transformers gives the architecture.
    """
    from transformers import AutoModelForCausalLM

    handle = model if isinstance(model, Model) else Model(module=model)
    like = handle.anatomy.embedding_weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            twin = AutoModelForCausalLM.from_config(copy.deepcopy(handle.module.config))
        except (AttributeError, TypeError, ValueError) as error:
            raise InterpError(
                f"an untrained {type(handle.module).__name__} cannot be made from its config "
                f"({error}); go without this control"
            ) from error
    twin = twin.to(device=like.device, dtype=like.dtype).eval()
    return Model(twin, handle.tokenizer, f"{handle.name} (random, seed {seed})", check=handle.check)
