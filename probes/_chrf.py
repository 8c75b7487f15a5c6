"""chrF between all pairs of texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import InterpError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ORDER = 6  # longest character n-gram
BETA = 2.0  # recall counts beta times as much as precision
_COMMON = 0.1  # a column that more texts than this share have is multiplied densely
_CHUNK = 4096  # dense columns at a time


def chrf_matrix(texts: Sequence[str]) -> Float[Tensor, "text text"]:
    """chrF2 of every text (row, the hypothesis) against every text (column, the reference).

    F = (1 + b^2) P R / (b^2 P + R) in 0..100 with b = 2, where P and R are the shares of the
    hypothesis' and of the reference's character n-grams that both have (counts, clipped),
    averaged over n = 1..6 as far as both texts are long enough. White space is left out. An
    empty text has 0 against every text, itself included. F is not symmetric.

    Args:
        texts: any number of them.

    Returns:
        [text text] in float64.

    Raises:
        InterpError: one string instead of a sequence of them.

    Examples:
        >>> probes.chrf_matrix(["2 + 2 = 4", "2+2=4", "no"])[0].tolist()
        [100.0, 100.0, 0.0]

    Source: Popović 2015; sacreBLEU's definition and defaults (character order 6, no words,
    beta 2, effective order), value for value.
    """
    if isinstance(texts, str):
        raise InterpError("texts is one string; give a sequence of texts, such as [text]")
    from scipy.sparse import csr_matrix

    codes, starts = _characters(texts)
    lengths = np.diff(starts)
    precision = np.zeros((len(lengths), len(lengths)))
    gram = np.zeros(len(codes), dtype=np.int64)  # of the n-gram that begins at each place
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for n in range(1, ORDER + 1):
        place = np.flatnonzero(np.arange(len(codes)) + n <= starts[owner + 1])
        if len(place) == 0:
            break
        # The id of an n-gram is that of its first n - 1 characters and of its last, made small.
        key = gram[place] * (int(codes.max()) + 1) + codes[place + n - 1]
        gram[place] = np.unique(key, return_inverse=True)[1]
        column = _occurrence(owner[place], gram[place])
        counts = csr_matrix(
            (np.ones(len(place), dtype=np.float32), (owner[place], column)),
            shape=(len(lengths), int(column.max()) + 1),
        )
        # A text without n-grams of this length shares none, so what it is divided by is no matter.
        precision += _shared(counts) / np.maximum(lengths - n + 1, 1)[:, None]
    orders = np.clip(np.minimum(lengths[:, None], lengths[None, :]), 1, ORDER)
    precision /= orders
    weighted = BETA**2 * precision + precision.T
    score = (1 + BETA**2) * precision * precision.T / np.where(weighted > 0, weighted, 1.0)
    return torch.from_numpy(100 * score)


def _characters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All characters but white space as small integers, and where each text begins."""
    dense = ["".join(text.split()) for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(text) for text in dense])]).astype(np.int64)
    raw = "".join(dense).encode("utf-32-le", "surrogatepass")
    codes = np.unique(np.frombuffer(raw, dtype="<u4"), return_inverse=True)[1]
    return codes.astype(np.int64), starts


def _occurrence(owner: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """A column for the first, second, ... time that a text has an n-gram.

    The sum over n-grams of min(count, other's count) is then a product of 0/1 matrices.
    """
    order = np.lexsort((gram, owner))
    new = np.empty(len(order), dtype=bool)
    new[0] = True
    new[1:] = (np.diff(owner[order]) != 0) | (np.diff(gram[order]) != 0)
    began = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    nth = np.empty(len(order), dtype=np.int64)
    nth[order] = np.arange(len(order)) - began
    return np.unique(nth * (int(gram.max()) + 1) + gram, return_inverse=True)[1]


def _shared(counts: csr_matrix) -> np.ndarray:
    """Counts @ counts.T of a 0/1 matrix: common columns densely, rare ones sparsely.

    Exact in float32 below 2^24 shared n-grams.
    """
    columns = counts.tocsc()
    users = np.diff(columns.indptr)
    common = np.flatnonzero(users > max(2, _COMMON * counts.shape[0]))
    rare = columns[:, np.flatnonzero((users > 1) & (users <= max(2, _COMMON * counts.shape[0])))]
    shared = (rare @ rare.T).toarray().astype(np.float64)
    for start in range(0, len(common), _CHUNK):
        block = columns[:, common[start : start + _CHUNK]].toarray()
        shared += block @ block.T
    # What only one text has is shared with itself alone.
    only = columns[:, np.flatnonzero(users == 1)]
    shared[np.diag_indices_from(shared)] += np.asarray(only.sum(axis=1)).ravel()
    return shared
