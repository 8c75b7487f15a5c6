"""`capture`: the tensors at any sites, for a batch, a generation or a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp._activations import Activations
from interp._batch import Batch, Positions, as_plain, several, whole_numbers
from interp._batch import Prompts as Texts
from interp._errors import InterpError, SiteNotFound, UnsupportedSite
from interp._experts import ExpertPort
from interp._forward import Stop, innermost, may_stop_early, run_until_stopped
from interp._hooked import ports_of
from interp._model import Model, as_model, generate_ids
from interp._reading import fingerprint, reading
from interp._site import Site, expand, listed

if TYPE_CHECKING:
    from interp._store import ActivationStore

# What generate must not do while it is followed: values that reorder rows or drop the cache.
_ONE_PATH: dict[str, Any] = {
    "num_beams": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
}

Prompts = Texts | Batch


def capture(
    model: Model | nn.Module,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site],
    *,
    positions: Positions = "all",
    grad: bool = False,
    logits: bool | None = None,
    stop_at_layer: int | None = None,
    device: torch.device | str | None = "cpu",
    dtype: torch.dtype | None = None,
) -> Activations:
    """The activations at the given sites: one forward that ends after the last site needed.

    Without `grad` the module is read as in eval mode, whatever mode it is in.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        sites: names such as `"z.3"`, `"resid_post.*"`, `"embed"`, or a list of them.
        positions: `"all"`, `"last"` (each prompt's last token), an index or a list of indices;
            counted in real tokens, negative from the prompt's end. The pos axis always stays.
        grad: keep the graph: tensors are the very ones the model goes on with, in the batch's own
            padded layout and on their own device, so `torch.autograd.grad(loss, acts["z.3"])`
            works, also when no parameter requires gradients. `positions` must then be "all".
        logits: also return the model's logits (default: only with `grad`).
        stop_at_layer: run only the blocks before this one; `*` then means those layers.
        device: where to keep tensors; None leaves them where they were computed.
        dtype: convert to this on capture.

    Returns:
        Activations, a mapping from site to [batch pos ...]; memory held is what was asked for.

    Raises:
        SiteNotFound: an unknown name, with the nearest valid ones.
        UnsupportedSite: a site this architecture does not have, with the reason.

    Examples:
        >>> acts = interp.capture(model, ["The capital of France is"], ["resid_post.*", "z.3"])
        >>> acts["z.3"].shape                              # batch pos head d_head
        torch.Size([1, 19, 8, 32])
    """
    handle = as_model(model)
    batch = handle.batch(prompts)
    positions = as_plain(positions)
    ports = ports_of(handle, _up_to(handle, sites, stop_at_layer))
    if grad and (positions != "all" or dtype is not None):
        raise InterpError(
            "capture(grad=True) returns the model's own tensors whole, so positions and dtype "
            "cannot be chosen; index or convert the result instead"
        )
    if grad and any(site.kind == "head_out" for site in ports):
        raise UnsupportedSite(
            "head_out is computed beside the model's own path, so no gradient flows through it; "
            "capture z or attn_out instead"
        )
    want_logits = (grad and stop_at_layer is None) if logits is None else logits
    if want_logits and stop_at_layer is not None:
        raise InterpError("logits need the whole model; leave out stop_at_layer or logits=True")
    recorder = _GradRecorder() if grad else _Recorder(batch, positions, device, dtype)
    remaining = set(ports)
    stoppable = not want_logits and may_stop_early(handle.module)

    def read(tensor: Tensor, site: Site) -> Tensor | None:
        if innermost(recorder):
            replacement = recorder.take(tensor, site)
            remaining.discard(site)
            if stoppable and not remaining:
                raise Stop(recorder)
            return replacement
        return None

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad() if grad else reading(handle))
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        output = run_until_stopped(handle.module, batch.inputs, owner=recorder)
    if remaining:
        missing = ", ".join(str(site) for site in remaining)
        raise InterpError(f"the forward never reached {missing}; is the module's forward unusual?")
    return Activations(
        recorder.tensors,
        **recorder.layout(batch),
        expert_ids={
            site: recorder.align(port.expert_ids, fill=-1)
            for site, port in ports.items()
            if isinstance(port, ExpertPort)
        },
        logits=recorder.align(output.logits) if want_logits else None,
        meta=_meta(handle, ports, positions),
    )


def capture_generation(
    model: Model | nn.Module,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site],
    *,
    max_new_tokens: int,
    device: torch.device | str | None = "cpu",
    **options: Any,
) -> Activations:
    """Activations along a generation: the prompt, then every generated token that was run.

    The last generated token is never fed back, so it has no activations. Greedy unless `options`
    (passed to `generate`) say otherwise; the cache of keys and values is used.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        sites: any but `pattern`, whose key axis grows.
        max_new_tokens: upper limit of new tokens.
        device: where to keep tensors; None leaves them where they were computed.
        options: for the module's own `generate`; no beams.

    Returns:
        Activations with `tokens` [batch pos] holding prompt and continuation, and
        `meta["prompt_lengths"]`.

    Examples:
        >>> acts = interp.capture_generation(model, "Once upon", "resid_post.3", max_new_tokens=5)
        >>> model.tokenizer.decode(acts.tokens[0])
    """
    handle = as_model(model)
    for name, value in _ONE_PATH.items():
        if options.setdefault(name, value) != value:
            raise InterpError(
                f"capture_generation follows one path with a cache: {name} must be {value!r}"
            )
    ports = ports_of(handle, sites)
    if any(site.kind == "pattern" for site in ports):
        raise InterpError("pattern grows with every step; capture it on the finished text instead")
    copies = options.get("num_return_sequences", 1)
    lengths = handle.batch(prompts).lengths.repeat_interleave(copies)
    pieces: dict[Site, list[Tensor]] = {site: [] for site in ports}
    ids: dict[Site, list[Tensor]] = {s: [] for s, p in ports.items() if isinstance(p, ExpertPort)}

    def read(tensor: Tensor, site: Site) -> None:
        pieces[site].append(tensor.detach().to(device or tensor.device, copy=True))
        if site in ids:
            ids[site].append(ports[site].expert_ids.clone())  # type: ignore[attr-defined]

    with ExitStack() as stack:
        stack.enter_context(reading(handle))
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        sequences, start = generate_ids(handle, prompts, max_new_tokens=max_new_tokens, **options)
    run_ids = sequences[:, :-1]
    mask = torch.ones_like(run_ids)
    mask[:, :start] = (torch.arange(start, device=mask.device) >= start - lengths[:, None]).long()
    ends = options.get("eos_token_id", handle.module.generation_config.eos_token_id)
    mask[:, start:] = _before_end(run_ids[:, start:], ends)
    whole = Batch(run_ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
    recorder = _Recorder(whole, "all", device, None)
    for site, chunks in pieces.items():
        recorder.take(torch.cat(chunks, dim=1), site)
    return Activations(
        recorder.tensors,
        **recorder.layout(whole),
        expert_ids={s: recorder.align(torch.cat(chunks, 1), fill=-1) for s, chunks in ids.items()},
        meta={**_meta(handle, ports, "all"), "prompt_lengths": lengths.tolist()},
    )


def capture_corpus(
    model: Model | nn.Module,
    prompts: Iterable[str] | Iterable[Sequence[int]],
    sites: str | Site | Iterable[str | Site],
    out: str | Path,
    *,
    batch_size: int = 16,
    positions: Positions = "all",
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Activations of a whole corpus, streamed to disk a batch at a time.

    Memory holds one batch. An interrupted run continues where it stopped when called again with
    the same arguments; a folder that holds something else is refused and left alone.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: any iterable of texts or of lists of token ids; read once.
        sites: as for `capture`.
        out: the folder: `meta.json` and one safetensors file a batch.
        batch_size: prompts a file.
        positions: as for `capture`.
        dtype: store in this dtype.
        progress: show a bar.

    Examples:
        >>> store = interp.capture_corpus(model, texts, "resid_post.3", "acts/")
        >>> for acts in store:                            # one batch at a time
        ...     acts["resid_post.3"]
    """
    from interp._store import write_store

    handle = as_model(model)
    wanted = list(ports_of(handle, sites))
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        several(prompts, "prompts")  # says why not
    meta = _meta(handle, wanted, positions) | {"batch_size": batch_size, "dtype": str(dtype)}
    meta["weights"] = fingerprint(handle.module)

    def compute(chunk: list[Any]) -> Activations:
        return capture(handle, chunk, wanted, positions=positions, dtype=dtype)

    return write_store(Path(out), prompts, compute, batch_size, meta, progress=progress)


def _up_to(
    model: Model, sites: str | Site | Iterable[str | Site], stop_at_layer: int | None
) -> list[str | Site]:
    """The sites, with `*` cut off at the layer where the forward is to stop."""
    sites = listed(sites)
    if not sites:
        raise SiteNotFound("no sites asked for; name at least one, such as 'resid_post.*'")
    if stop_at_layer is None:
        return sites
    n_layers = model.anatomy.n_layers
    if not 0 <= stop_at_layer <= n_layers:
        raise InterpError(f"stop_at_layer={stop_at_layer}: expected 0 to {n_layers}")
    kept: list[str | Site] = []
    for site, starred in expand(sites, n_layers):
        # The stream into the first block that does not run is still there to be read.
        limit = stop_at_layer + (site.kind == "resid_pre")
        if site.layer is None or site.layer < limit:
            kept.append(site)
        elif not starred:
            raise SiteNotFound(f"{site} lies beyond stop_at_layer={stop_at_layer}")
    if not kept:
        raise SiteNotFound(f"no requested site lies before stop_at_layer={stop_at_layer}")
    return kept


def _meta(model: Model, sites: Iterable[Site], positions: Positions) -> dict[str, Any]:
    return {
        "model": model.name or type(model.module).__name__,
        "revision": model.revision,
        "n_layers": model.anatomy.n_layers,
        "sites": [str(site) for site in sites],
        "positions": positions if isinstance(positions, str | int) else whole_numbers(positions),
    }


def _before_end(new_tokens: Tensor, ends: int | list[int] | None) -> Tensor:
    """1 up to and including the first end-of-text token of each row, 0 after it."""
    if ends is None:
        return torch.ones_like(new_tokens)
    ended = torch.isin(new_tokens, torch.as_tensor(ends, device=new_tokens.device))
    return ((ended.cumsum(dim=1) - ended.long()) == 0).long()


class _Recorder:
    """Keeps the chosen positions of each tensor, counted in real tokens, zero beyond the end."""

    def __init__(
        self,
        batch: Batch,
        positions: Positions,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.tensors: dict[Site, Tensor] = {}
        self._storages: set[int] = set()
        self._device, self._dtype = device, dtype
        self._as_is = positions == "all" and not batch.padded
        self._columns, self._real = batch.columns(positions)
        self._keys, self._real_keys = batch.columns("all")
        self._padded = batch.padded

    def take(self, tensor: Tensor, site: Site) -> None:
        self.tensors[site] = (
            self._patterns(tensor) if site.kind == "pattern" else self.align(tensor)
        )

    def align(self, tensor: Tensor, fill: int = 0) -> Tensor:
        """[batch pos ...] at the chosen positions."""
        return self._keep(self._pick(tensor, self._columns, self._real, fill))

    def layout(self, batch: Batch) -> dict[str, Tensor]:
        tokens = batch.input_ids.gather(1, self._columns).masked_fill(~self._real, -1)
        return {"tokens": tokens.cpu(), "mask": self._real.cpu()}

    def _patterns(self, pattern: Tensor) -> Tensor:
        by_query = pattern.transpose(1, 2)  # [batch query head key]
        chosen = self._pick(by_query, self._columns, self._real, 0)
        if self._padded:
            keys = self._pick(chosen.permute(0, 3, 1, 2), self._keys, self._real_keys, 0)
            chosen = keys.permute(0, 2, 3, 1)
        return self._keep(chosen.transpose(1, 2).contiguous())

    def _pick(self, tensor: Tensor, columns: Tensor, real: Tensor, fill: int) -> Tensor:
        if self._as_is:
            return tensor
        columns, real = columns.to(tensor.device), real.to(tensor.device)
        rows = torch.arange(tensor.shape[0], device=tensor.device)[:, None]
        picked = tensor[rows, columns]
        if bool(real.all()):
            return picked
        return picked.masked_fill(~real.view(*real.shape, *[1] * (tensor.ndim - 2)), fill)

    def _keep(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        convert = self._dtype is not None and tensor.is_floating_point()
        kept = tensor.to(
            device=self._device or tensor.device, dtype=self._dtype if convert else tensor.dtype
        )
        # resid_post of one block and resid_pre of the next are one tensor; captures are two.
        storage = kept.untyped_storage().data_ptr()
        if storage in self._storages:
            return kept.clone()
        self._storages.add(storage)
        return kept


class _GradRecorder:
    """Keeps whole tensors inside the graph."""

    def __init__(self) -> None:
        self.tensors: dict[Site, Tensor] = {}

    def take(self, tensor: Tensor, site: Site) -> Tensor:
        if not tensor.requires_grad:  # frozen parameters: the graph starts here
            tensor = tensor.detach().requires_grad_()
        self.tensors[site] = tensor
        return tensor

    def align(self, tensor: Tensor, fill: int = 0) -> Tensor:  # noqa: ARG002
        return tensor

    def layout(self, batch: Batch) -> dict[str, Tensor]:
        mask = batch.attention_mask.bool()
        return {"tokens": batch.input_ids.masked_fill(~mask, -1).cpu(), "mask": mask.cpu()}
