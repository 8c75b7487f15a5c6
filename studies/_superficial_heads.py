"""Heads that write an answer: the lens on one head, the SVD of its output matrix, ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import interp
from interp import InterpError, Model, Site
from interp._answers import answer_tokens
from interp._forward import run
from interp._ports import SiteFn
from interp._reading import reading

Head = tuple[int, int]  # layer, head
TOP = 15  # a token counts as decoded among so many


@dataclass(frozen=True)
class HeadVectors:
    """The SVD of one head's slice of the output projection, W_O^h = U diag(s) V^T, in float64.

    Args:
        left: U, [d_model rank].
        values: s, [rank].
        right: V, [d_head rank].
    """

    left: Float[Tensor, "d_model rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "d_head rank"]

    def parts(self, z: Float[Tensor, "case d_head"]) -> Float[Tensor, "case rank d_model"]:
        """`u_i c_i` with `c = diag(s) V^T z`; their sum is the head's output.

        Signs of singular vectors are arbitrary and cancel in the product.
        """
        c = (z.double() @ self.right) * self.values
        return c[:, :, None] * self.left.T

    def onto(self, chosen: Int[Tensor, "case k"]) -> Float[Tensor, "case d_head d_head"]:
        """The projection of z onto chosen vectors: without it, z gives no `u_i c_i` for them."""
        some = self.right.T[chosen]  # [case k d_head]
        return some.transpose(1, 2) @ some


def head_vectors(model: Model, head: Head) -> HeadVectors:
    """The SVD of a head's output matrix.

    Raises:
        InterpError: no such head, or an output projection that is no plain matrix.
    """
    layer, number = head
    block = model.anatomy.blocks[layer]
    projection = block.o_proj
    weight = getattr(projection, "weight", None)
    if weight is None or not weight.is_floating_point() or not 0 <= number < block.n_heads:
        raise InterpError(f"layer {layer} has no head {number} with a plain output matrix")
    matrix = weight.detach().double().cpu()
    matrix = matrix.T if isinstance(projection, Conv1D) else matrix  # [d_model, heads d_head]
    width = matrix.shape[1] // block.n_heads
    u, s, vh = torch.linalg.svd(
        matrix[:, number * width : (number + 1) * width], full_matrices=False
    )
    return HeadVectors(u, s, vh.T)


def first_tokens(model: Model, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """The first token of each answer after its prompt: [prompt]."""
    batch = model.batch(list(prompts))
    found = answer_tokens(model, batch, [[answer] for answer in answers])
    return torch.tensor([row[0][0] for row in found])


def lens(
    model: Model, vectors: Float[Tensor, "case ... d_model"]
) -> Float[Tensor, "case ... vocab"]:
    """Log-probabilities that the final norm and the unembedding read from vectors alone."""
    dtype = model.anatomy.embedding_weight.dtype
    with reading(model):
        return model.anatomy.unembed(vectors.to(dtype)).float().log_softmax(-1).cpu()


def of_tokens(
    logprob: Float[Tensor, "case ... vocab"], tokens: Int[Tensor, " case"]
) -> Float[Tensor, "case ..."]:
    """The probability of each case's token."""
    index = tokens.view(-1, *[1] * (logprob.ndim - 1)).expand(*logprob.shape[:-1], 1)
    return logprob.gather(-1, index)[..., 0].exp()


def loph(
    model: Model, prompts: Sequence[str], tokens: Int[Tensor, " case"]
) -> Float[Tensor, "case layer head"]:
    """The lens's probability of a token in each head's output at the last position (LOPH)."""
    acts = interp.capture(model, list(prompts), "head_out.*", positions="last")
    return torch.stack([of_tokens(lens(model, acts[site][:, 0]), tokens) for site in acts], dim=1)


def layers_with_heads(model: Model) -> list[int]:
    """The layers that `loph` has, in its order."""
    return [i for i, block in enumerate(model.anatomy.blocks) if block.o_proj is not None]


def z_of(
    model: Model, prompts: Sequence[str], heads: Sequence[Head]
) -> dict[Head, Float[Tensor, "case d_head"]]:
    """What enters a head's output matrix at the last position."""
    sites = sorted({f"z.{layer}" for layer, _ in heads})
    acts = interp.capture(model, list(prompts), sites, positions="last")
    return {head: acts[f"z.{head[0]}"][:, 0, head[1]].double() for head in heads}


def vector_scores(
    model: Model,
    vectors: HeadVectors,
    z: Float[Tensor, "case d_head"],
    tokens: Int[Tensor, " case"],
) -> Float[Tensor, "case rank"]:
    """How much of the lens's probability goes with each `u_i c_i`: LOPH whole less LOPH without."""
    parts = vectors.parts(z)
    whole = parts.sum(dim=1)
    with_all = of_tokens(lens(model, whole), tokens)
    return with_all[:, None] - of_tokens(lens(model, whole[:, None] - parts), tokens)


def decoded(
    model: Model, vectors: Float[Tensor, "case d_model"], tokens: Int[Tensor, " case"]
) -> Bool[Tensor, " case"]:
    """Whether each token is among the fifteen that the lens puts first."""
    best = lens(model, vectors).topk(min(TOP, model.anatomy.d_vocab), dim=-1).indices
    return (best == tokens[:, None]).any(dim=1)


def last_probs(
    model: Model,
    prompts: Sequence[str],
    removed: Mapping[Head, Float[Tensor, "case d_head d_head"] | None],
) -> Float[Tensor, "case vocab"]:
    """Next-token probabilities with some heads' z projected at the last position.

    Args:
        model: a handle.
        prompts: texts.
        removed: for each head the projection taken from its z (`z - P z`); None takes all of it.
    """
    batch = model.batch(list(prompts))
    columns = batch.columns("last")[0][:, 0]
    rows = torch.arange(len(batch), device=columns.device)
    by_layer: dict[int, dict[int, Tensor | None]] = {}
    for (layer, head), matrix in removed.items():
        by_layer.setdefault(layer, {})[head] = matrix

    def writer(of: Mapping[int, Tensor | None]) -> SiteFn:
        def write(z: Tensor, _site: Site) -> Tensor:
            for head, matrix in of.items():
                own = z[rows, columns, head]
                gone = own if matrix is None else torch.einsum("cij,cj->ci", matrix.to(own), own)
                z[rows, columns, head] = own - gone
            return z

        return write

    functions: dict[str | Site, SiteFn] = {
        f"z.{layer}": writer(of) for layer, of in by_layer.items()
    }
    with reading(model), interp.hooked(model, functions):
        logits = run(model.module, batch.inputs).logits
    return logits[rows, columns].float().softmax(-1).cpu()
