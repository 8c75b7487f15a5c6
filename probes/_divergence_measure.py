"""Every quantity of two next-token distributions, from their logits, in few passes over them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_PIECE = 2**18  # logits measured at once on a CPU: their scratch has to fit in its cache


def measure(
    old: Float[Tensor, "row vocab"], new: Float[Tensor, "row vocab"], targets: Int[Tensor, " row"]
) -> dict[str, Tensor]:
    """Columns of `Divergence` at some positions.

    With p = softmax(z_p), Z_p = log sum exp(z_p) and, for any constant c, g = z_p - z_q - c,

        KL(p || q) = sum_v p g + c - (Z_p - Z_q),    H(p) = Z_p - sum_v p z_p,

    so that no log-softmax is ever made. Z comes from the largest probability. c, the gap at the
    base's top token, keeps g small; dividing by sum_v p undoes what float32 lost in normalising;
    row scalars are in float64. So a KL is exact to 5e-7 whatever the vocabulary, where subtracting
    float32 log-softmaxes gives 2e-6.

    Args:
        old: the base's logits.
        new: the tuned model's.
        targets: the tokens that follow, -1 where the text ends.
    """
    top_old, top_new = _argmax(old), _argmax(new)
    centre = old.gather(-1, top_old[:, None]) - new.gather(-1, top_old[:, None])
    sums = _sums(old, new, top_old, top_new, centre)
    norm_old = _picked(old, top_old) - (sums["p_top"] / sums["p"]).log()
    norm_new = _picked(new, top_new) - (sums["q_top"] / sums["q"]).log()
    between = norm_old - norm_new - centre[:, 0].double()
    nothing = torch.full_like(norm_old, float("nan"))
    wanted = targets.clamp(min=0)
    floats = {
        "forward": (sums["p_gap"] / sums["p"] - between).clamp(min=0),
        "reverse": (between - sums["q_gap"] / sums["q"]).clamp(min=0),
        "tv": sums["tv"],
        "base_entropy": (norm_old - sums["p_z"] / sums["p"]).clamp(min=0),
        "tuned_entropy": (norm_new - sums["q_z"] / sums["q"]).clamp(min=0),
        "base_logprob": torch.where(targets < 0, nothing, _picked(old, wanted) - norm_old),
        "tuned_logprob": torch.where(targets < 0, nothing, _picked(new, wanted) - norm_new),
    }
    rank = torch.ones_like(top_old)
    moved = (top_old != top_new).nonzero()[:, 0]
    for few in moved.split(max(1, _PIECE // old.shape[-1])):
        rank[few] = _rank(old[few], top_new[few, None])
    kept = {name: value.to(old.dtype) for name, value in floats.items()}
    return kept | {"rank": rank, "base_top": top_old, "tuned_top": top_new}


def _sums(
    old: Tensor, new: Tensor, top_old: Tensor, top_new: Tensor, centre: Tensor
) -> dict[str, Tensor]:
    """What takes a pass over the vocabulary, a few rows at a time in memory used again."""
    n_rows, d_vocab = old.shape
    height = min(n_rows, max(1, _PIECE // d_vocab)) if old.device.type == "cpu" else n_rows
    scratch = torch.empty(3, height, d_vocab, dtype=old.dtype, device=old.device)
    names = ("p_top", "q_top", "p", "q", "p_gap", "q_gap", "p_z", "q_z", "tv")
    out = torch.empty(len(names), n_rows, dtype=old.dtype, device=old.device)
    for start in range(0, n_rows, height):
        part = slice(start, min(start + height, n_rows))
        a, b = old[part], new[part]
        p, q, gap = scratch[:, : len(a)]
        torch.softmax(a, -1, out=p)
        torch.softmax(b, -1, out=q)
        torch.sub(a, b, out=gap).sub_(centre[part])
        dots = [_dot(x, y) for x, y in ((p, gap), (q, gap), (p, a), (q, b))]
        tops = [x.gather(-1, t[part, None])[:, 0] for x, t in ((p, top_old), (q, top_new))]
        tv = torch.sub(p, q, out=gap).abs_().sum(-1)
        torch.stack([*tops, p.sum(-1), q.sum(-1), *dots, tv], out=out[:, part])
    out[-1] /= 2
    return dict(zip(names, out.double(), strict=True))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of rows; on a CPU numpy's is BLAS's, without a product in memory."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.vecdot(x.numpy(), y.numpy()))
    return torch.linalg.vecdot(x, y)


def _argmax(logits: Tensor) -> Tensor:
    """The top token, of equal ones the first; on a CPU numpy finds it ten times faster."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _picked(logits: Tensor, token: Tensor) -> Tensor:
    return logits.gather(-1, token[:, None])[:, 0].double()


def _rank(logits: Tensor, token: Tensor) -> Tensor:
    """1 for the likeliest token; of equally likely ones the lower id comes first."""
    value = logits.gather(-1, token)
    before = torch.arange(logits.shape[-1], device=logits.device) < token
    return ((logits > value) | ((logits == value) & before)).sum(-1) + 1
