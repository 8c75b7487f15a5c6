"""Cells of a sweep: the activations of one site at one position, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp import Activations, InterpError, Site, SiteNotFound
from interp._errors import nearest

Positions = str | Sequence[int | str]
GIVEN = "given"  # the position of activations that come without one


@dataclass(frozen=True)
class Cell:
    """One site at one position.

    Args:
        site: its name.
        layer: -1 for the embedding and for names that are no site.
        position: index, `last`, `mean`, or `given` where rows came without positions.
        x: [row d], the features, all heads of a head site together.
        rows: [row], which examples they are; prompts that end earlier have none.
        tokens: [row], the token there, or None.
    """

    site: str
    layer: int
    position: int | str
    x: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray | None

    @property
    def name(self) -> str:
        """Such as `resid_post.3 at last`."""
        return f"{self.site} at {self.position}"


def n_examples(acts: Any) -> int:
    """Rows of the first site.

    Raises:
        InterpError: no mapping, or no site at all.
    """
    if not isinstance(acts, Mapping):
        raise InterpError(
            f"the activations are a {type(acts).__name__}; expected a capture, or a mapping from "
            f"site to tensor, such as {{'resid_post.3': x}}"
        )
    for value in acts.values():
        return len(value)
    raise InterpError("no activations: expected a capture, or a mapping from site to tensor")


def cells(acts: Mapping[Any, Any], positions: Positions) -> Iterator[Cell]:
    """Every site x position, one at a time.

    Args:
        acts: what `interp.capture` returns, or site -> [example d] or [example pos ...].
        positions: `"each"` captured position, the `"mean"` over real ones, the `"last"` real one,
            or some of the captured ones by name.

    Raises:
        InterpError: sites of different length, attention patterns, positions not captured.
    """
    n = n_examples(acts)
    for key, value in acts.items():
        site, layer = _place(key)
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if len(tensor) != n or tensor.ndim < 2:
            raise InterpError(
                f"{site} has shape {list(tensor.shape)}; expected [example d] or [example pos d] "
                f"with the same {n} examples at every site"
            )
        if site.startswith("pattern"):
            raise InterpError(
                f"{site} is queries x keys and has no features to probe; leave it out"
            )
        if tensor.ndim == 2:
            yield Cell(site, layer, GIVEN, _array(tensor), np.arange(n), None)
            continue
        mask, tokens = _mask(acts, tensor)
        for position, rows, x, ids in _chosen(tensor.flatten(2), mask, tokens, acts, positions):
            yield Cell(site, layer, position, _array(x), rows, ids)


def _place(key: Any) -> tuple[str, int]:
    try:
        site = Site.parse(key)
    except (SiteNotFound, TypeError):
        return str(key), -1
    return str(site), -1 if site.layer is None else site.layer


def _mask(acts: Mapping[Any, Any], tensor: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(acts, Activations):
        return acts.mask.cpu().numpy(), acts.tokens.cpu().numpy()
    return np.ones(tensor.shape[:2], dtype=bool), None


def _chosen(
    tensor: Tensor,
    mask: np.ndarray,
    tokens: np.ndarray | None,
    acts: Mapping[Any, Any],
    positions: Positions,
) -> Iterator[tuple[int | str, np.ndarray, Tensor, np.ndarray | None]]:
    """(name, examples, features, tokens) of each position wanted."""
    every = np.arange(len(tensor))
    if isinstance(positions, str) and positions == "mean":
        weight = torch.as_tensor(mask, dtype=torch.float32, device=tensor.device)[..., None]
        yield "mean", every, (tensor.float() * weight).sum(1) / weight.sum(1), None
        return
    if isinstance(positions, str) and positions == "last":
        at = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        ids = None if tokens is None else tokens[every, at]
        yield "last", every, tensor[torch.from_numpy(every), torch.from_numpy(at)], ids
        return
    names = _names(acts, mask.shape[1])
    wanted = names if isinstance(positions, str) and positions == "each" else list(positions)
    for name in wanted:
        if isinstance(positions, str) and positions != "each":
            raise InterpError(f"positions={positions!r}: expected 'each', 'mean', 'last' or a list")
        if name not in names:
            known = [str(one) for one in names]
            raise InterpError(f"position {name!r} was not captured; {nearest(str(name), known)}")
        column = names.index(name)
        rows = np.flatnonzero(mask[:, column])
        ids = None if tokens is None else tokens[rows, column]
        yield name, rows, tensor[torch.from_numpy(rows), column], ids


def _names(acts: Mapping[Any, Any], width: int) -> list[int | str]:
    """What the columns are called: as they were asked for when captured."""
    asked: Any = acts.meta.get("positions") if isinstance(acts, Activations) else None
    named: list[Any] = list(asked) if isinstance(asked, list | tuple) else [asked]
    return named if asked not in (None, "all") and len(named) == width else list(range(width))


def _array(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return x.numpy() if x.dtype in (torch.float32, torch.float64) else x.float().numpy()
