"""Capture and the logit lens through nnsight, on this machine or on NDIF.

That is how a model too large for this machine is read: an nnsight model on the meta device holds
the module tree without weights, our sites are found in it, and with `remote=True` one trace runs
where the weights are. Only what was asked for travels back.

What nnsight does, so that you can choose: importing it patches `torch.Tensor.backward` and mounts
`.save` on every object, for the whole process, and wrapping a module replaces `forward` on each of
its submodules for good. Nothing here imports it before you call, and a plain model that you pass
is not wrapped: nnsight gets a shell of it, new module objects over the same tensors.

Source: Fiotto-Kaufman et al. 2024, arXiv 2407.14561.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from interp._activations import Activations
from interp._batch import Positions, whole_numbers
from interp._capture import Prompts
from interp._errors import InterpError
from interp._site import Site
from interp.adapters._nnsight_lens import logit_lens
from interp.adapters._traced import Read, Traced, open_traced

__all__ = ["capture", "logit_lens"]


def capture(
    model: Any,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site],
    *,
    positions: Positions = "all",
    dtype: torch.dtype | None = None,
    remote: bool | str = False,
) -> Activations:
    """The activations at the given sites, by one nnsight trace that ends after the last of them.

    Sites are the inputs and outputs of modules: the residual stream, attn_out, mlp_out, q, k, v, z
    and the neurons of dense MLPs. Positions are chosen and converted where the trace runs.

    Args:
        model: a hub id or folder, of which no weights are loaded when the trace runs elsewhere; an
            nnsight model, on the meta device or not; or a handle or bare PreTrainedModel, which is
            left as it is.
        prompts: a batch, texts or token ids; tokenized and padded here, as `model.batch` does.
        sites: names such as `"z.3"`, `"resid_post.*"`, `"embed"`, or a list of them.
        positions: `"all"`, `"last"`, an index or a list of indices, in real tokens.
        dtype: convert to this before sending.
        remote: passed to nnsight: False here, True on NDIF, `"local"` to try the remote path
            here, or the address of a server.

    Returns:
        Activations on the CPU, equal to `interp.capture` on the same weights.

    Raises:
        SiteNotFound: an unknown name, with the nearest valid ones.
        UnsupportedSite: `pattern`, `head_out` and expert neurons, which are no module's input or
            output, and what the architecture does not have.

    Examples:
        >>> acts = interp.adapters.nnsight.capture(           # remote=True: on NDIF
        ...     "path/to/checkpoint", texts, "resid_post.*", positions="last", remote="local"
        ... )
    """
    traced = open_traced(model, remote)
    handle = traced.handle
    plan = traced.reads(sites)
    batch = handle.batch(prompts)
    columns, real = batch.columns(positions)
    rows = torch.arange(len(batch), device=columns.device)[:, None]
    reads = list(dict.fromkeys(read for read, _ in plan.values()))
    kept = dict(
        zip(reads, _run(traced, traced.inputs(batch), reads, rows, columns, dtype), strict=True)
    )
    tensors: dict[Site, Tensor] = {}
    missing = ~real.cpu()
    for site, (read, port) in plan.items():
        tensor = port.read(kept[read])
        tensors[site] = tensor.masked_fill(
            missing.view(*missing.shape, *[1] * (tensor.ndim - 2)), 0
        )
    tokens = batch.input_ids.gather(1, columns).masked_fill(~real, -1)
    return Activations(
        tensors,
        tokens=tokens.cpu(),
        mask=real.cpu(),
        meta={
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "sites": [str(site) for site in tensors],
            "positions": positions
            if isinstance(positions, str | int)
            else whole_numbers(positions),
            "source": "nnsight",
            "remote": remote,
        },
    )


@torch.no_grad()
def _run(
    traced: Traced,
    inputs: dict[str, Any],
    reads: list[Read],
    rows: Tensor,
    columns: Tensor,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Each read's [batch n width]; the block below travels as source, so it names plain things."""
    import nnsight

    envoy, stoppable, shape = traced.envoy, traced.stoppable, inputs["input_ids"].shape
    kept: list[Tensor] = []
    with envoy.trace(**inputs) as tracer:
        kept = nnsight.save([])
        for path, side in reads:
            value = getattr(envoy.get(path), side)
            value = value[0] if isinstance(value, tuple) else value
            value = value.reshape(shape[0], shape[1], -1)
            value = value[rows.to(value.device), columns.to(value.device)]
            kept.append(value.detach().to(device="cpu", dtype=dtype or value.dtype))
        if stoppable:
            tracer.stop()
    if len(kept) != len(reads):
        raise InterpError(f"nnsight gave back {len(kept)} of {len(reads)} tensors")
    return kept
