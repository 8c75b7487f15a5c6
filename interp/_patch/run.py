"""One forward of some prompts, kept so that any suffix of it can be run again with changes.

A change at position p reaches p and what follows, nothing before: so besides whole sequences a run
can be repeated from a later position on, over the cached keys and values of what comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp._errors import InterpError
from interp._forward import accepted
from interp._hooked import ports_of
from interp._hooks import in_use
from interp._model import Model
from interp._ports import Port
from interp._replay import Replay, _fresh, _record
from interp._site import Site

BOUNDARIES = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class Run:
    """Prompts of one length, run once.

    Args:
        model: that ran them.
        ids: their tokens.
        whole: the recorded forward; its streams are resid_pre and resid_post.
        ports: of the sites within blocks that were asked for.
        acts: what stood there: site -> [prompt pos *unit].
        noise: what was added to their embeddings, or None.
    """

    model: Model
    ids: Int[Tensor, "prompt pos"]
    whole: Replay
    ports: Mapping[Site, Port]
    acts: dict[Site, Tensor]
    noise: Float[Tensor, "prompt pos d_model"] | None = None

    @property
    def n_tokens(self) -> int:
        """Of each prompt."""
        return int(self.ids.shape[1])

    @property
    def last(self) -> Float[Tensor, "prompt d_model"]:
        """The stream that the last position's logits are made of."""
        return self.whole.streams[-1][:, -1]

    def at(self, site: Site) -> Tensor:
        """What stood at a site: [prompt pos *unit]."""
        found = boundary(site)
        return self.acts[site] if found is None else self.whole.streams[found]


def boundary(site: Site) -> int | None:
    """The number of blocks below a site of the residual stream; None for sites within a block."""
    if site.kind not in BOUNDARIES or site.layer is None:
        return None
    return site.layer + (site.kind == "resid_post")


def run_once(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    noise: Float[Tensor, "prompt pos d_model"] | None = None,
) -> Run:
    """Run the prompts and keep what is needed to run them again.

    Args:
        model: the handle.
        prompts: token ids, all of one length.
        sites: what to keep; streams at block boundaries are kept anyway.
        noise: to add to the embeddings.

    Raises:
        InterpError: an activation that is NaN or infinite.
    """
    ids = torch.tensor(prompts, device=model.anatomy.home)
    within = [site for site in sites if boundary(site) is None]
    ports = ports_of(model, within) if within else {}
    acts: dict[Site, Tensor] = {}

    def read(tensor: Tensor, site: Site) -> None:
        # [prompt query head key] for a pattern, so that every site has prompt and pos in front
        acts[site] = (tensor.transpose(1, 2) if site.kind == "pattern" else tensor).detach()

    with ExitStack() as stack:
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        stack.enter_context(_noised(model, noise))
        whole = _record(model, _inputs(ids, 0, ids.shape[1]), None)
    run = Run(model, ids, whole, ports, acts, noise)
    for site in sites:
        if not bool(run.at(site).isfinite().all()):
            raise InterpError(
                f"{site} holds NaN or infinity, which a patch would spread; check the weights, or "
                f"load with dtype=torch.float32 if float16 overflowed"
            )
    return run


def windows(run: Run, starts: Sequence[int]) -> Iterator[tuple[int, Replay]]:
    """For each start a recording that begins there, over the cached prefix; ascending starts.

    Where the model does not give the same streams that way (recurrent layers that take a prefix
    only one token at a time) the whole recording is given instead, with start 0.
    """
    cache: Cache | None = None
    done, trusted = 0, True
    for start in starts:
        if start == 0 or not trusted:
            yield 0, run.whole
            continue
        inputs = _inputs(run.ids, done, start)
        if cache is not None:  # the former window goes on using its own
            cache = _fresh(cache, 0, run.model.anatomy.n_layers, None)
        with _noised(run.model, run.noise, done, start):
            module = run.model.module
            cache = module(
                **accepted(module, inputs), past_key_values=cache, use_cache=True
            ).past_key_values
        done = start
        with _noised(run.model, run.noise, start):
            window = _record(run.model, _inputs(run.ids, start, run.n_tokens), cache)
        trusted = _agree(window.streams[-1], run.whole.streams[-1][:, start:])
        yield (start, window) if trusted else (0, run.whole)


def may_window(run: Run) -> bool:
    """Whether a prefix may be left out: not where somebody's hooks might count positions."""
    patterns = any(site.kind == "pattern" for site in run.acts)  # sliding caches drop keys
    return not patterns and not in_use(run.model.anatomy.module)


def _inputs(ids: Tensor, start: int, stop: int) -> dict[str, Tensor]:
    positions = torch.arange(start, stop, device=ids.device).expand(len(ids), -1)
    inputs = {
        "input_ids": ids[:, start:stop],
        "position_ids": positions,
        "logits_to_keep": ids.new_tensor([-1]),  # no logits are wanted here: the fewest
    }
    if start:
        inputs["attention_mask"] = torch.ones_like(ids[:, :stop])
    return inputs


@contextmanager
def _noised(
    model: Model, noise: Tensor | None, start: int = 0, stop: int | None = None
) -> Iterator[None]:
    if noise is None:
        yield
        return
    part = noise[:, start:stop]
    (port,) = ports_of(model, "embed").values()
    with port.attach(lambda x, _site: x + part.to(x), reads=False):
        yield


def _agree(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max())
    tolerance = max(1e-4, 8 * torch.finfo(expected.dtype).eps)
    return float((found - expected).abs().max()) <= tolerance * scale
