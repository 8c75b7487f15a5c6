"""A target's value, and its gradient, with sites set to many variants: one pass for all sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from interp._ports import Port, SiteFn
from interp._replay import Replay
from interp._replay_shared import block_runner, overwrites_cache
from interp._site import Site

# (last streams [row d_model], each row's prompt [row]) -> the target's value [row]
Score = Callable[[Tensor, Tensor], Tensor]
_LOGITS = 2**24  # logits held at once: 64 MiB in float32


def values_at(
    recording: Replay, ports: Mapping[Site, Port], variants: Mapping[Site, Tensor], score: Score
) -> dict[Site, Float[Tensor, "prompt row"]]:
    """The target with each site set to each of its variants, one site at a time.

    Args:
        recording: of the prompts' last tokens.
        ports: where each site is.
        variants: [prompt row *unit] for each site.
        score: the target as a function of last streams.
    """
    with torch.no_grad():
        stream = _run_up(recording, ports, variants)
        found, _ = _score_in_pieces(recording, stream, score, gradient=False)
    return _split(found, variants)


def gradients_at(
    recording: Replay, ports: Mapping[Site, Port], variants: Mapping[Site, Tensor], score: Score
) -> tuple[dict[Site, Float[Tensor, "prompt row"]], dict[Site, Tensor]]:
    """As `values_at`, and d target / d variant: [prompt row *unit] for each site; one backward."""
    leaves = {site: values.detach().requires_grad_() for site, values in variants.items()}
    saved = allow_mutation_on_saved_tensors() if overwrites_cache(recording) else nullcontext()
    with torch.enable_grad(), _frozen(recording.anatomy.module), saved:
        stream = _run_up(recording, ports, leaves)
        found, slope = _score_in_pieces(recording, stream, score, gradient=True)
        gradients = torch.autograd.grad(stream, list(leaves.values()), slope)
    return _split(found, variants), dict(zip(leaves, gradients, strict=True))


def _run_up(
    recording: Replay, ports: Mapping[Site, Port], variants: Mapping[Site, Tensor]
) -> Float[Tensor, "prompt row d_model"]:
    """The last streams: at a site's layer its variants join those from below, so blocks run once.

    Rows lie in the order of `_in_order`, those of one site together.
    """
    n_prompts, d_model = len(recording.streams[0]), recording.anatomy.d_model
    run_block = block_runner(recording)
    waiting = _in_order(variants)
    stream = recording.streams[0].new_empty(n_prompts, 0, d_model)
    for layer in range(waiting[0].layer or 0, recording.anatomy.n_layers):
        with ExitStack() as stack:
            while waiting and waiting[0].layer == layer:
                site = waiting.pop(0)
                joining = recording.streams[layer].expand(-1, variants[site].shape[1], -1)
                fn = _writer(variants[site], stream.shape[1], n_prompts)
                stack.enter_context(ports[site].attach(fn, reads=False))
                stream = torch.cat([stream.to(joining), joining], dim=1)
            stream = run_block(layer, stream)
    return stream


def _in_order(variants: Mapping[Site, Tensor]) -> list[Site]:
    return sorted(variants, key=lambda site: site.layer or 0)


def _split(found: Tensor, variants: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    sites = _in_order(variants)
    parts = found.split([variants[site].shape[1] for site in sites], dim=1)
    return dict(zip(sites, parts, strict=True))


def _writer(values: Tensor, start: int, n_prompts: int) -> SiteFn:
    """Put `values` at the rows from `start` on, leave the others."""

    def write(tensor: Tensor, _site: Site) -> Tensor:
        # Variants are positions of their prompt, or rows of the batch: see _replay_shared.
        rows = tensor.reshape(n_prompts, -1, *tensor.shape[2:])
        after = rows[:, start + values.shape[1] :]
        return torch.cat([rows[:, :start], values.to(rows), after], dim=1).reshape(tensor.shape)

    return write


def _score_in_pieces(
    recording: Replay, stream: Float[Tensor, "prompt row d_model"], score: Score, *, gradient: bool
) -> tuple[Float[Tensor, "prompt row"], Float[Tensor, "prompt row d_model"]]:
    """The target of every row, and its slope in the stream, never holding all rows' logits."""
    flat = stream.detach().flatten(0, 1)
    prompt = torch.arange(len(stream), device=flat.device).repeat_interleave(stream.shape[1])
    found, slopes = [], []
    height = max(1, _LOGITS // recording.anatomy.d_vocab)
    for rows, of in zip(flat.split(height), prompt.split(height), strict=True):
        rows = rows.detach().requires_grad_(gradient)
        value = score(rows, of)
        if gradient:
            slopes += torch.autograd.grad(value.sum(), rows)
        found.append(value.detach().to(flat.device))
    slope = torch.cat(slopes) if gradient else flat
    return torch.cat(found).view(stream.shape[:2]), slope.view(stream.shape)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter requires gradients: a backward then keeps and computes nothing for them."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
