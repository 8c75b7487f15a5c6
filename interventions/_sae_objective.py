"""What each kind of SAE minimises, and its gradient; sparse where the latents are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weights = dict[str, Tensor]  # enc and dec [feature d_in], b_enc [feature], b_dec [d_in], ...
Rows = Float[Tensor, "token d_in"]


@dataclass(frozen=True)
class Objective:
    """A loss at some weights: its terms, its gradient, and which latents were there.

    Args:
        terms: by name, already weighted; their sum is the loss.
        gradient: by weight.
        fired: [feature], latents above 0 at any token.
        l0: latents above 0 at a token, mean.
        least: the smallest latent above 0.
    """

    terms: dict[str, Tensor]
    gradient: Weights
    fired: Bool[Tensor, " feature"]
    l0: Tensor
    least: Tensor

    @property
    def loss(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


def topk(
    weights: Weights, x: Rows, k: int, *, whole_batch: bool = False,
    dead: Bool[Tensor, " feature"] | None = None, aux: int | float = 0.0, k_aux: int = 0,
) -> Objective:  # fmt: skip
    """`mean (x - x_hat)^2` over tokens and coordinates, of the k greatest latents of a token.

    With `whole_batch` (BatchTopK) the k * tokens greatest of the batch. AuxK: the k_aux greatest
    dead latents of a token reconstruct what is left, `aux |e - e_hat|^2 / |e|^2`, without b_dec and
    with e = x - x_hat held fixed.

    The gradient is written out, because only one latent in `d_sae / k` has one: with r the gradient
    of x_hat, `d dec_j = sum_t z_tj r_t`, `d pre_tj = r_t . dec_j` and `d enc_j = sum_t d pre_tj
    (x_t - b_dec)` over the tokens t at which j is active. autograd would form all of them.
    """
    enc, dec, b_enc, b_dec = (weights[name] for name in ("enc", "dec", "b_enc", "b_dec"))
    n, width = x.shape
    centred = x - b_dec
    pre = (centred @ enc.T).add_(b_enc)  # addmm would first fill [token feature] with b_enc
    active = _greatest_of_batch(pre, k) if whole_batch else greatest(pre, k)
    values = active.values.relu()
    error = active.combined(values, dec) + b_dec - x
    r = error * (2 / (n * width))
    gradient = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    gradient["b_dec"] += r.sum(0)
    _through(active, values, r, centred, weights, gradient)
    terms = {"reconstruction": error.square().mean()}
    if dead is not None and aux and bool(dead.any()):
        terms["aux"] = _aux(weights, gradient, pre, centred, error, dead, aux, k_aux)
    fired = torch.zeros(len(enc), dtype=torch.bool, device=x.device)
    positive = values > 0
    fired[active.features[positive]] = True
    least = values[positive].min() if bool(positive.any()) else values.new_zeros(())
    return Objective(terms, gradient, fired, positive.sum() / n, least)


def standard(weights: Weights, x: Rows, sparsity: int | float) -> Objective:
    """`mean (x - x_hat)^2 + sparsity * mean_t sum_j z_tj`, z = relu(pre)."""

    def terms(held: Weights) -> tuple[dict[str, Tensor], Tensor]:
        z = _pre(held, x).relu()
        return {"reconstruction": _mse(held, z, x), "sparsity": sparsity * z.sum(1).mean()}, z

    return _by_autograd(weights, terms)


def jumprelu(
    weights: Weights, x: Rows, target: int | float, sparsity: int | float, bandwidth: int | float
) -> Objective:
    """`mean (x - x_hat)^2 + sparsity (L0 / target - 1)^2`, with a threshold for each latent.

    Thresholds learn by straight-through estimates: with a rectangle of the given width around a
    threshold θ, `dz/dθ = -θ / width` and `dL0/dθ = -1 / width`.
    """

    def terms(held: Weights) -> tuple[dict[str, Tensor], Tensor]:
        threshold = held["log_threshold"].exp()
        pre = _pre(held, x).relu()
        z = _JumpReLU.apply(pre, threshold, bandwidth)
        l0 = _Step.apply(pre, threshold, bandwidth).sum(1).mean()
        penalty = sparsity * (l0 / target - 1).square()
        return {"reconstruction": _mse(held, z, x), "sparsity": penalty}, z

    return _by_autograd(weights, terms)


def gated(weights: Weights, x: Rows, sparsity: int | float) -> Objective:
    """`mean (x - x_hat)^2 + sparsity mean_t sum_j relu(gate) + mean (x - x_gate)^2`.

    x_gate is reconstructed from relu(gate) by a decoder that is held fixed: only so does the gate
    learn anything.
    """

    def terms(held: Weights) -> tuple[dict[str, Tensor], Tensor]:
        projected = (x - held["b_dec"]) @ held["enc"].T
        gate = projected + held["b_gate"]
        magnitude = (projected * held["r_mag"].exp() + held["b_enc"]).relu()
        z, open_ = magnitude * (gate > 0), gate.relu()
        frozen = {name: held[name].detach() for name in ("dec", "b_dec")}
        return {
            "reconstruction": _mse(held, z, x),
            "sparsity": sparsity * open_.sum(1).mean(),
            "aux": _mse(frozen, open_, x),
        }, z

    return _by_autograd(weights, terms)


@torch.no_grad()
def unit_decoder(weights: Weights, gradient: Weights | None = None) -> None:
    """Rows of the decoder to norm 1; or, of its gradient, the part along them away."""
    dec = weights["dec"]
    if gradient is None:
        dec /= dec.norm(dim=1, keepdim=True).clamp(min=torch.finfo(dec.dtype).tiny)
    else:
        along = (gradient["dec"] * dec).sum(1, keepdim=True)
        gradient["dec"] -= along * dec


@dataclass(frozen=True)
class Active:
    """The latents that are active: (token, feature) pairs in the order of tokens."""

    starts: Int[Tensor, " token_and_end"]  # where each token's pairs begin
    features: Int[Tensor, " pair"]
    values: Float[Tensor, " pair"]  # before relu
    d_sae: int

    def combined(self, values: Tensor, vectors: Tensor) -> Tensor:
        """[token d_in]: the sum over a token's features of value times vector."""
        return F.embedding_bag(
            self.features, vectors, self.starts, per_sample_weights=values, mode="sum",
            include_last_offset=True,
        )  # fmt: skip

    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs in the order of features: their places here, tokens, where features begin."""
        order = self.features.argsort(stable=True)
        counts = torch.bincount(self.features, minlength=self.d_sae)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        tokens = torch.arange(len(self.starts) - 1, device=self.features.device)
        return order, tokens.repeat_interleave(self.starts.diff())[order], starts

    def products(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """[pair]: a token's row times a feature's vector."""
        _csr_without_its_warning()
        pattern = torch.sparse_csr_tensor(
            self.starts, self.features, torch.zeros_like(self.values),
            (len(rows), self.d_sae), check_invariants=False,
        )  # fmt: skip
        return torch.sparse.sampled_addmm(pattern, rows, vectors.T, beta=0.0).values()


def greatest(pre: Tensor, k: int) -> Active:
    """The k greatest of each token."""
    values, index = pre.topk(k, dim=1, sorted=False)
    order = index.argsort(dim=1) if pre.is_cuda else None  # cuSPARSE wants columns in order
    if order is not None:
        values, index = values.gather(1, order), index.gather(1, order)
    starts = torch.arange(0, index.numel() + 1, k, device=pre.device)
    return Active(starts, index.reshape(-1), values.reshape(-1), pre.shape[1])


@cache
def _csr_without_its_warning() -> None:
    """Torch says once a process that CSR tensors are in beta; it says it here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def _greatest_of_batch(pre: Tensor, k: int) -> Active:
    n, d_sae = pre.shape
    values, flat = pre.reshape(-1).topk(k * n, sorted=False)
    flat, order = flat.sort()
    tokens = torch.div(flat, d_sae, rounding_mode="floor")
    counts = torch.bincount(tokens, minlength=n)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Active(starts, flat % d_sae, values[order], d_sae)


def _through(
    active: Active, values: Tensor, r: Rows, centred: Rows, weights: Weights, gradient: Weights
) -> None:
    """Adds what r, the gradient of the reconstruction, means for all weights but b_dec's own."""
    through = active.products(r, weights["dec"]) * (values > 0)
    order, tokens, starts = active.transposed()
    for name, rows, scale in (("dec", r, values), ("enc", centred, through)):
        gradient[name] += F.embedding_bag(
            tokens, rows, starts, per_sample_weights=scale[order], mode="sum",
            include_last_offset=True,
        )  # fmt: skip
    bias = torch.zeros_like(gradient["b_enc"]).index_add_(0, active.features, through)
    gradient["b_enc"] += bias
    gradient["b_dec"] -= bias @ weights["enc"]


def _aux(
    weights: Weights, gradient: Weights, pre: Tensor, centred: Rows, error: Rows, dead: Tensor,
    aux: int | float, k_aux: int,
) -> Tensor:  # fmt: skip
    """The term of the dead latents, as if there were no others."""
    at = dead.nonzero()[:, 0]
    own = {name: weights[name][at] for name in ("enc", "dec", "b_enc")}
    own["b_dec"] = weights["b_dec"]
    active = greatest(pre[:, at], min(k_aux, len(at)))
    values = active.values.relu()
    left = active.combined(values, own["dec"]) + error  # e_hat - e
    scale = aux * min(len(at) / k_aux, 1.0) / error.square().sum().clamp(min=1e-30)
    found = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    _through(active, values, 2 * scale * left, centred, own, found)
    gradient["b_dec"] += found.pop("b_dec")
    for name, tensor in found.items():
        gradient[name].index_add_(0, at, tensor)
    return scale * left.square().sum()


def _by_autograd(
    weights: Weights, terms_of: Callable[[Weights], tuple[dict[str, Tensor], Tensor]]
) -> Objective:
    held = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        terms, z = terms_of(held)
        gradient = torch.autograd.grad(
            torch.stack(list(terms.values())).sum(), list(held.values()), materialize_grads=True
        )
    positive = z.detach() > 0
    fired = positive.any(0)
    least = z.detach()[positive].min() if bool(fired.any()) else z.new_zeros(())
    found = {name: term.detach() for name, term in terms.items()}
    return Objective(
        found, dict(zip(held, gradient, strict=True)), fired, positive.sum() / len(z), least
    )


def _pre(weights: Weights, x: Rows) -> Tensor:
    return torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["enc"].T)


def _mse(weights: Weights, z: Tensor, x: Rows) -> Tensor:
    return (z @ weights["dec"] + weights["b_dec"] - x).square().mean()


class _JumpReLU(torch.autograd.Function):
    """`z = pre 1[pre > θ]`, with a gradient for θ inside a band around it."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        band = ((pre - threshold).abs() < ctx.width / 2).to(g)
        return g * (pre > threshold), -(threshold / ctx.width) * (band * g).sum(0), None


class _Step(torch.autograd.Function):
    """`1[pre > θ]`, with a gradient for θ alone."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        band = ((pre - threshold).abs() < ctx.width / 2).to(g)
        return None, -(band * g).sum(0) / ctx.width, None
