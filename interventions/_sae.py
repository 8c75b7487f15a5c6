"""A sparse autoencoder of one site: features, encoder, decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError
from interp._batch import is_index
from interp._edit.affine import HEAD_SITES
from interp._errors import nearest
from interp._site import Site

if TYPE_CHECKING:
    from interventions._sae_card import SAECard

KINDS = ("topk", "batchtopk", "jumprelu", "gated", "standard")


@dataclass(frozen=True, eq=False)
class SAE:
    """`x_hat = z W_dec + b_dec` with sparse latents z of `pre = (x - b_dec) W_enc + b_enc`.

    By kind, z is: `topk`, relu of the k greatest of pre and 0 elsewhere; `jumprelu` and `batchtopk`
    (one threshold, learned as the least that survived), `relu(pre) 1[pre > threshold]`; `gated`,
    `relu(exp(r_mag) (x - b_dec) W_enc + b_enc) 1[(x - b_dec) W_enc + b_gate > 0]`; `standard`,
    relu(pre).

    Args:
        kind: one of these.
        W_enc: [d_in feature].
        W_dec: [feature d_in].
        b_enc: [feature].
        b_dec: [d_in].
        k: latents a token, of `topk`; of `batchtopk` their mean in training.
        threshold: [feature], of `jumprelu` and `batchtopk`.
        b_gate: [feature], of `gated`.
        r_mag: [feature], of `gated`.
        center: subtract b_dec from the input.
        site: where it reads, such as `"resid_post.3"`; heads count as one long vector.
        model: the name of the model it was trained on.
        meta: how it was made.

    Raises:
        InterpError: an unknown kind, shapes that do not fit each other, NaN.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=16, site="resid_post.3")
        >>> latents = sae.encode(torch.randn(5, 128))
        >>> int((latents > 0).sum(-1).max())
        16
        >>> sae.decode(latents).shape
        torch.Size([5, 128])

    Source: Gao et al. 2024 (arXiv 2406.04093, topk), Bussmann et al. 2024 (arXiv 2412.06410,
    batchtopk), Rajamanoharan et al. 2024 (arXiv 2404.16014, gated; arXiv 2407.14435, jumprelu).
    """

    kind: str
    W_enc: Float[Tensor, "d_in feature"] = field(repr=False)
    W_dec: Float[Tensor, "feature d_in"] = field(repr=False)
    b_enc: Float[Tensor, " feature"] = field(repr=False)
    b_dec: Float[Tensor, " d_in"] = field(repr=False)
    k: int | None = None
    threshold: Float[Tensor, " feature"] | None = field(default=None, repr=False)
    b_gate: Float[Tensor, " feature"] | None = field(default=None, repr=False)
    r_mag: Float[Tensor, " feature"] | None = field(default=None, repr=False)
    center: bool = True
    site: str | None = None
    model: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InterpError(f"an SAE of kind {self.kind!r}; {nearest(self.kind, KINDS)}")
        needs = {"gated": ("b_gate", "r_mag"), "jumprelu": ("threshold",)}.get(self.kind, ())
        needs = ("threshold",) if self.kind == "batchtopk" else needs
        missing = [name for name in needs if getattr(self, name) is None]
        if missing:
            raise InterpError(f"an SAE of kind {self.kind!r} needs {' and '.join(missing)}")
        if (odd := misfit(self.tensors)) is not None:
            raise InterpError(odd)
        if self.k is not None and not is_index(self.k):
            raise InterpError(f"k={self.k!r}: expected a whole number")
        if self.kind == "topk" and not 1 <= (self.k or 0) <= self.d_sae:
            raise InterpError(f"k={self.k}: a topk SAE of {self.d_sae} features takes 1 to that")
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise InterpError(f"{name} of this SAE holds NaN or infinity")

    @property
    def d_in(self) -> int:
        """Numbers a token that it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """How many features there are."""
        return self.W_enc.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, those that its kind has."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "r_mag")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def encode(
        self, x: Float[Tensor, "... d_in"], features: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "... feature"]:
        """The latents, dense, in the SAE's dtype; of some features, only theirs are computed.

        A topk SAE needs all of them to know which are the greatest.
        """
        self._check(x)
        x = x.to(self.W_enc.dtype)
        at = slice(None) if features is None or self.kind == "topk" else features
        projected = (x - self.b_dec if self.center else x) @ self.W_enc[:, at]
        if self.kind == "gated":
            assert self.r_mag is not None and self.b_gate is not None
            magnitude = (self.r_mag[at].exp() * projected + self.b_enc[at]).relu()
            return magnitude * (projected + self.b_gate[at] > 0)
        pre = projected + self.b_enc[at]
        if self.kind == "topk":
            values, index = pre.topk(self.k or 1, dim=-1, sorted=False)
            latents = torch.zeros_like(pre).scatter(-1, index, values.relu())
            return latents if features is None else latents[..., features]
        if self.threshold is not None:
            return pre.relu() * (pre > self.threshold[at])
        return pre.relu()

    def decode(self, latents: Float[Tensor, "... feature"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction of latents."""
        return latents @ self.W_dec + self.b_dec

    def reconstruct(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    def to(self, *where: Any) -> SAE:
        """The same SAE on another device or in another dtype."""
        moved: dict[str, Any] = {name: tensor.to(*where) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def save(self, path: str | Path, card: SAECard | None = None) -> Path:
        """Write a folder in the layout of SAELens 6, whole or not at all.

        SAELens reads it with `SAE.load_from_disk`; `batchtopk` is written as `jumprelu`, which it
        is once trained, as SAELens does.

        Args:
            path: the folder; an SAE saved there before is replaced.
            card: a report card to write beside it: `card.json`, `features.parquet`, `card.png` and
                `card.html`.
        """
        from interventions._sae_files import save_sae

        return save_sae(self, Path(path), card)

    def flat(self, tensor: Tensor, site: Site) -> Tensor:
        """An activation [batch pos ...] as rows [batch pos d_in]: heads become one long vector."""
        return self._check(tensor.flatten(2) if site.kind in HEAD_SITES else tensor, site)

    def _check(self, x: Tensor, site: Site | None = None) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise InterpError(
                f"this SAE reads {self.d_in} numbers a token, and "
                f"{'the given activations have' if site is None else f'{site} has'} "
                f"{x.shape[-1]}; it belongs to another site or model "
                f"({self.site or 'site unknown'} of {self.model or 'an unnamed model'})"
            )
        return x


def misfit(tensors: Mapping[str, Tensor]) -> str | None:
    """A sentence on the first of an SAE's weights whose shape is not what W_enc's asks for."""
    encoder = tensors["W_enc"]
    rows, columns = encoder.shape if encoder.ndim == 2 else (0, 0)
    shapes = {"W_enc": (rows, columns), "W_dec": (columns, rows), "b_dec": (rows,)}
    for name, tensor in tensors.items():
        wanted = shapes.get(name, (columns,))
        if tuple(tensor.shape) != wanted:
            return (
                f"{name} has shape {list(tensor.shape)}; with W_enc {rows} by {columns} it must be "
                f"{list(wanted)}"
            )
    return None


def identity_sae(d_in: int, site: str | None = None) -> SAE:
    """An SAE that changes nothing, `relu(x) - relu(-x)`: a control of whatever splices one in.

    Args:
        d_in: numbers a token.
        site: where it is to be spliced in.
    """
    eye = torch.eye(d_in)
    both = torch.cat([eye, -eye])
    zeros = torch.zeros(d_in)
    return SAE("standard", both.T.contiguous(), both, zeros.repeat(2), zeros, site=site)


def random_sae(
    d_in: int, d_sae: int, k: int, site: str | None = None, seed: int = 0,
    b_dec: Float[Tensor, " d_in"] | None = None,
) -> SAE:  # fmt: skip
    """A topk SAE with random unit directions, each read and written: what no training gives.

    Args:
        d_in: numbers a token.
        d_sae: features.
        k: latents a token.
        site: where it is to be spliced in.
        seed: of the directions.
        b_dec: [d_in], such as the mean activation; 0 by default.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(d_sae, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    center = torch.zeros(d_in) if b_dec is None else b_dec.float()
    return SAE(
        "topk", directions.T.contiguous(), directions, torch.zeros(d_sae), center, k=k, site=site,
        meta={"random": seed},
    )  # fmt: skip
