"""How many prompts and sites to take together, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp._anatomy import Anatomy
from interp._site import Site

_NUMBERS = 2**28  # that may be kept at once: 1 GiB in float32


def site_groups(
    anatomy: Anatomy, sites: Sequence[Site], n_tokens: int, n_rows: int
) -> list[list[Site]]:
    """Sites to sweep together: as many as memory allows for one prompt.

    Sweeping them apart costs no more arithmetic, since the rows of each run on from its own layer.

    Args:
        anatomy: the model's.
        sites: in the order of layers.
        n_tokens: of the longest prompt.
        n_rows: variants of each site.
    """
    if len(sites) == 1 or _kept(anatomy, sites, n_tokens, n_rows) <= _NUMBERS:
        return [list(sites)]
    halves = sites[: len(sites) // 2], sites[len(sites) // 2 :]
    return [group for half in halves for group in site_groups(anatomy, half, n_tokens, n_rows)]


def prompt_chunks(
    anatomy: Anatomy,
    groups: Sequence[Sequence[Site]],
    lengths: Int[Tensor, " batch"],
    n_rows: int,
) -> list[Int[Tensor, " prompt"]]:
    """Indices of the prompts to take together; those of one token, which have no prefix, apart."""
    most = max(_kept(anatomy, group, int(lengths.max()), n_rows) for group in groups)
    size = max(1, _NUMBERS // most)
    kinds = [(lengths == 1).nonzero()[:, 0].cpu(), (lengths > 1).nonzero()[:, 0].cpu()]
    return [chunk for kind in kinds if len(kind) for chunk in torch.split(kind, size)]


def _kept(anatomy: Anatomy, sites: Sequence[Site], n_tokens: int, n_rows: int) -> int:
    """About how many numbers a backward keeps of one prompt, rather too many."""
    keys = n_tokens + n_rows * len(sites)
    rows_by_block = n_rows * sum(anatomy.n_layers - (site.layer or 0) for site in sites)
    scores = 2 * anatomy.n_heads * keys  # before and after the softmax
    prefixes = 4 * anatomy.n_layers * anatomy.d_model * keys  # keys and values, and for each head
    return rows_by_block * (_width(anatomy) + scores) + prefixes


def _width(anatomy: Anatomy) -> int:
    """What goes into and comes out of the matrices of a block, for one token."""
    experts = int(getattr(anatomy.config, "num_experts_per_tok", None) or 1)
    matrices = [p for p in anatomy.blocks[-1].module.parameters() if p.ndim > 1]
    return sum((experts if p.ndim == 3 else 1) * sum(p.shape[-2:]) for p in matrices)
