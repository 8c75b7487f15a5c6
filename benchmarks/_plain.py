"""What one would write by hand: bare forwards, plain torch hooks, the lens as a loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks._measure import Held
from benchmarks._models import PARTS, Parts


def parts_of(model: PreTrainedModel) -> Parts:
    """Where this model's blocks and projections are."""
    return PARTS[model.config.model_type]


def bare(model: PreTrainedModel, ids: Tensor) -> Held:
    """The forward and nothing else."""
    return Held({}, model(ids, use_cache=False).logits)


def last_only(model: PreTrainedModel, ids: Tensor) -> Held:
    """The forward, unembedding the last position alone."""
    return Held({"last": model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]})


def blocks_only(model: PreTrainedModel, ids: Tensor) -> Held:
    """The forward without the unembedding: what a capture that stops early cannot beat."""
    model.base_model(ids, use_cache=False)
    return Held()


def hooks(model: PreTrainedModel, ids: Tensor, neurons: bool, head: bool = True) -> Held:
    """Plain torch hooks that keep a reference; without `head` only the blocks run."""
    with _hooked(model, neurons) as kept:
        output = (model if head else model.base_model)(ids, use_cache=False)
    return Held(kept, output.logits if head else None)


def hidden_states(model: PreTrainedModel, ids: Tensor) -> Held:
    """`output_hidden_states=True`; its last entry is after the final norm, so it is not named."""
    output = model(ids, use_cache=False, output_hidden_states=True)
    states = output.hidden_states
    named = {f"resid_post.{layer}": state for layer, state in enumerate(states[1:-1])}
    return Held({"embed": states[0], **named, "normed": states[-1]}, output.logits)


def lens_floor(model: PreTrainedModel, ids: Tensor, last: bool, head: bool) -> Held:
    """A forward and one unembedding a layer, results dropped: no lens can do less.

    Args:
        last: at each prompt's last position only.
        head: run the whole forward, logits of every position included, and not just the blocks.
    """
    parts = parts_of(model)
    norm = model.get_submodule(parts.norm)
    unembed = model.get_submodule(parts.head)
    with _hooked(model, neurons=False, embedding=True) as kept:
        (model if head else model.base_model)(ids, use_cache=False)
    for stream in kept.values():
        unembed(norm(stream[:, -1] if last else stream))
    return Held()


def lens_loop(model: PreTrainedModel, ids: Tensor, last: bool, top_k: int) -> Held:
    """The same with log-probs and top tokens, a layer at a time."""
    parts = parts_of(model)
    norm = model.get_submodule(parts.norm)
    unembed = model.get_submodule(parts.head)
    with _hooked(model, neurons=False, embedding=True) as kept:
        model.base_model(ids, use_cache=False)
    top = {}
    for layer, stream in enumerate(kept.values()):
        logprobs = unembed(norm(stream[:, -1] if last else stream)).log_softmax(-1)
        top[f"top.{layer}"] = logprobs.topk(top_k, dim=-1).values
    return Held(top)


@contextmanager
def _hooked(
    model: PreTrainedModel, neurons: bool, embedding: bool = False
) -> Iterator[dict[str, Tensor]]:
    parts = parts_of(model)
    kept: dict[str, Tensor] = {}
    handles: list[Any] = []

    def keep_input(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, args: Any) -> None:
            kept[name] = args[0].detach()

        handles.append(module.register_forward_pre_hook(hook))

    def keep_output(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            kept[name] = output.detach()

        handles.append(module.register_forward_hook(hook))

    blocks = model.get_submodule(parts.blocks)
    assert isinstance(blocks, nn.ModuleList)
    if embedding:
        keep_input("resid_pre.0", blocks[0])
    for number, block in enumerate(blocks):
        if neurons:
            keep_input(f"z.{number}", block.get_submodule(parts.o_proj))
            keep_input(f"mlp_post.{number}", block.get_submodule(parts.down))
        keep_output(f"resid_post.{number}", block)
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def asked_bytes(model: PreTrainedModel, ids: Tensor, kinds: tuple[str, ...]) -> int:
    """Bytes of the named sites in every layer, from the model's sizes alone."""
    parts, layers = parts_of(model), model.config.num_hidden_layers
    block = model.get_submodule(f"{parts.blocks}.0")
    down = block.get_submodule(parts.down).weight
    d_model = int(model.config.hidden_size)
    d_mlp = int(torch.as_tensor(down).numel()) // d_model
    width = {"resid_post": d_model, "z": d_model, "mlp_post": d_mlp}
    return ids.numel() * layers * sum(width[kind] for kind in kinds) * model.dtype.itemsize
