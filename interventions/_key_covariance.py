"""The second moment of an MLP's keys over ordinary text: what an edit should leave alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import InterpError, Model
from interp._edit.applied import originals
from interp._edit.identity import Identity, identity_of
from interp._model import as_model
from interp._record import load_record, save_record
from interventions._projection import projection

_KIND = "key_covariance"


@dataclass(frozen=True, eq=False)
class KeyCovariance:
    """`C = E[k k^T]`, uncentred, of the keys k that enter the down projection of some layers.

    Args:
        moment: layer -> [d_mlp d_mlp] in float64.
        tokens: layer -> over how many tokens.
        identity: the model it was measured on.
        meta: how much of which texts.
    """

    moment: Mapping[int, Float[Tensor, "d_mlp d_mlp"]] = field(repr=False)
    tokens: Mapping[int, int]
    identity: Identity = field(repr=False)
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

    def save(self, path: str | Path) -> Path:
        """Write a folder with `tensors.safetensors` and `meta.json`, whole or not at all."""
        tensors = {f"mlp_post.{layer}": moment for layer, moment in self.moment.items()}
        tokens = {str(layer): count for layer, count in self.tokens.items()}
        own = {"tokens": tokens, "identity": self.identity.to_json()}
        return save_record(path, _KIND, tensors, {**self.meta, **own})

    @staticmethod
    def load(path: str | Path) -> KeyCovariance:
        """Read back what `save` wrote.

        Raises:
            InterpError: no covariance there, or a damaged one.
        """
        tensors, meta = load_record(path, _KIND)
        moment = {int(name.removeprefix("mlp_post.")): value for name, value in tensors.items()}
        tokens = {int(layer): int(count) for layer, count in meta["tokens"].items()}
        more: dict[str, Any] = {
            key: meta[key] for key in ("texts", "digest", "done") if key in meta
        }
        return KeyCovariance(moment, tokens, Identity.from_json(meta["identity"]), more)


def key_covariance(
    model: Model | nn.Module,
    texts: Sequence[str] | Sequence[Sequence[int]],
    layers: int | Iterable[int],
    *,
    cache: str | Path | None = None,
    batch_size: int = 16,
    save_every: int = 64,
    progress: bool = True,
) -> KeyCovariance:
    """Measure `C = (1 / n) sum_t k_t k_t^T` over the n tokens of some texts, in float64.

    All layers are read in one pass, a batch at a time; memory holds one [d_mlp d_mlp] a layer.

    Args:
        model: a handle or a bare PreTrainedModel.
        texts: ordinary text such as the model was trained on, or token ids; every real token
            counts. Many more tokens than neurons are needed for an inverse that means anything.
        layers: one or several, of dense MLPs.
        cache: a folder in which each layer's covariance is kept under the model's identity, the
            layer and a hash of the texts: found there, it is read and not measured again, and an
            interrupted measurement continues.
        batch_size: texts a forward.
        save_every: batches between two writes to the cache.
        progress: show a bar where it takes more than two seconds.

    Raises:
        InterpError: no texts, a mixture of experts, a cache folder that holds other files.

    Examples:
        >>> covariance = iv.key_covariance(model, texts, [1, 2], cache="covariance/")
        >>> covariance.moment[1].shape                              # d_mlp d_mlp
        torch.Size([384, 384])

    Source: Meng et al. 2022 (arXiv 2202.05262), who take 100,000 Wikipedia samples in float32.
    """
    handle = as_model(model)
    listed: list[Any] = list(texts)
    if isinstance(texts, str) or not listed:
        raise InterpError("texts is empty or one text; give a list of texts to measure keys over")
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if not wanted:
        raise InterpError("no layers to measure keys in; name at least one")
    wanted = list(dict.fromkeys(projection(handle, layer).layer for layer in wanted))
    identity = identity_of(handle.module, handle.name, originals(handle.module))
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    sums = [_started(identity, layer, digest, cache) for layer in wanted]
    number, least = 0, min(one.done for one in sums)
    with tqdm(
        total=len(listed), initial=least, unit="text", delay=2, leave=False, disable=not progress
    ) as bar:
        while (start := min(one.done for one in sums)) < len(listed):
            behind = [one for one in sums if one.done == start]
            chunk = listed[start : start + batch_size]
            sites = [f"mlp_post.{one.layer}" for one in behind]
            acts = interp.capture(handle, chunk, sites, device=None)
            for one, site in zip(behind, sites, strict=True):
                keys = acts[site][acts.mask.to(acts[site].device)].double()
                one.add((keys.T @ keys).cpu(), len(keys), start + len(chunk))
            number += 1
            if number % save_every == 0:
                for one in behind:
                    one.keep(len(listed))
            bar.update(len(chunk))
    for one in sums:
        one.keep(len(listed))
    return KeyCovariance(
        {one.layer: one.total / one.tokens for one in sums},
        {one.layer: one.tokens for one in sums},
        identity,
        {"texts": len(listed), "digest": digest, "done": len(listed)},
    )


class Solver:
    """`C^-1 x` by Cholesky's factors, in float64.

    Args:
        moment: [d_mlp d_mlp].
        damping: times the mean of the diagonal, added to it.
        layer: for messages.

    Raises:
        InterpError: a covariance that has no inverse.
    """

    def __init__(
        self, moment: Float[Tensor, "d_mlp d_mlp"], damping: int | float, layer: int
    ) -> None:
        factor = cholesky(damped(moment, damping))
        if factor is None:
            rank = int(torch.linalg.matrix_rank(moment.double(), hermitian=True))
            raise InterpError(
                f"the covariance of layer {layer} has rank {rank} over {len(moment)} neurons, so "
                f"it has no inverse; measure it over more texts, or pass damping=0.01"
            )
        self.factor = factor

    def __call__(self, x: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
        return torch.cholesky_solve(x, self.factor)


def cholesky(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """The lower factor; None for a matrix without an inverse, to float64's precision."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    if int(info) or not bool(pivots.min() > 1e-15 * pivots.max()):
        return None
    return factor


def damped(
    moment: Float[Tensor, "d_mlp d_mlp"], damping: int | float
) -> Float[Tensor, "d_mlp d_mlp"]:
    """`C + damping mean(diag C) I` in float64."""
    if damping < 0:
        raise InterpError(f"damping={damping}: expected 0 or more")
    wide = moment.double()
    return wide + damping * wide.diagonal().mean() * torch.eye(len(wide), dtype=wide.dtype)


def moment_for(
    model: Model, covariance: KeyCovariance | Tensor | None, layer: int, width: int
) -> Float[Tensor, "d_mlp d_mlp"]:
    """The covariance of a layer; the identity where none is given.

    Raises:
        InterpError: one of another model, another layer or another width.
    """
    if covariance is None:
        return torch.eye(width, dtype=torch.float64)
    if isinstance(covariance, Tensor):
        found = covariance
    else:
        if layer not in covariance.moment:
            raise InterpError(
                f"the covariance is of layers {', '.join(map(str, covariance.moment))} and not of "
                f"{layer}; measure it with iv.key_covariance(model, texts, {layer})"
            )
        found = covariance.moment[layer]
    if tuple(found.shape) != (width, width):
        raise InterpError(
            f"the covariance is of shape {list(found.shape)}, and the keys of layer {layer} have "
            f"{width} neurons: it was measured on another model"
        )
    if isinstance(covariance, KeyCovariance):
        here = identity_of(model.module, model.name, originals(model.module))
        if here.weights != covariance.identity.weights:
            raise InterpError(
                f"the covariance was measured on {covariance.identity.name or 'another model'}, "
                f"whose weights are not this model's; measure it anew, or pass the tensor itself "
                f"(covariance.moment[{layer}]) to use it all the same"
            )
    return found.detach().cpu()


@dataclass
class _Sum:
    """A layer's running sum, and where it is kept."""

    layer: int
    identity: Identity
    digest: str
    folder: Path | None
    total: Any = 0.0
    tokens: int = 0
    done: int = 0
    kept: int = 0

    def add(self, some: Tensor, tokens: int, done: int) -> None:
        self.total = self.total + some
        self.tokens += tokens
        self.done = done

    def keep(self, texts: int) -> None:
        if self.folder is None or self.done == self.kept:
            return
        meta = {"texts": texts, "digest": self.digest, "done": self.done}
        moment = {self.layer: self.total / self.tokens}
        KeyCovariance(moment, {self.layer: self.tokens}, self.identity, meta).save(self.folder)
        self.kept = self.done


def _started(identity: Identity, layer: int, digest: str, cache: str | Path | None) -> _Sum:
    """A sum from nothing, or from what the cache holds of it."""
    key = json.dumps([dict(identity.config), dict(identity.weights), digest], sort_keys=True)
    name = f"mlp_post.{layer}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = None if cache is None else Path(cache) / name
    started = _Sum(layer, identity, digest, folder)
    if folder is not None and folder.exists():
        before = KeyCovariance.load(folder)
        started.tokens, started.done = before.tokens[layer], before.meta["done"]
        started.total, started.kept = before.moment[layer] * started.tokens, started.done
    return started
