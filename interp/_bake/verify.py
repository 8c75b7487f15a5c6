"""Whether a baked model gives the hooked model's logits, on a batch of random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._edit.edit import Edit
from interp._errors import InterpError
from interp._forward import run
from interp._model import Model
from interp._reading import reading

_ROWS, _TOKENS = 2, 12


@dataclass(frozen=True)
class Expected:
    """What the hooked model gives.

    Args:
        ids: the probe's tokens, [batch pos].
        logits: with the edit, [batch pos vocab].
        effect: root mean square of what the edit moves them by.
    """

    ids: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos vocab"]
    effect: float


@dataclass(frozen=True)
class Verification:
    """How far a baked model's logits are from the hooked model's.

    Args:
        tokens: how many tokens were compared.
        difference: the largest absolute difference of a logit.
        largest: the largest absolute logit.
        relative: median over tokens of the difference's norm relative to the logits' norm.
        effect: root mean square of what the edit moves the logits by.
        dtype: what the forward ran in.
    """

    tokens: int
    difference: float
    largest: float
    relative: float
    effect: float
    dtype: str


def expect(model: Model, edit: Edit) -> Expected:
    """The hooked model's logits on the probe."""
    ids = _probe(model)
    with reading(model):
        bare = _logits(model, ids)
        with edit.applied(model, transfer=True):
            logits = _logits(model, ids)
    return Expected(ids, logits, float((logits - bare).square().mean().sqrt()))


def confirm(baked: Model, expected: Expected) -> Verification:
    """Compare.

    Raises:
        InterpError: they differ by more than rounding.
    """
    with reading(baked):
        found = _logits(baked, expected.ids)
    gap, size = found - expected.logits, expected.logits.norm(dim=-1)
    dtype = baked.module.dtype
    result = Verification(
        expected.ids.numel(),
        float(gap.abs().max()),
        float(expected.logits.abs().max()),
        float((gap.norm(dim=-1) / size.clamp_min(1e-30)).median()),
        expected.effect,
        str(dtype).removeprefix("torch."),
    )
    if torch.finfo(dtype).bits >= 32:
        missed, allowed = result.difference, 1e-5 * max(1.0, result.largest)
    else:  # single tokens may be routed to other experts by a rounding, so the median counts
        missed, allowed = result.relative, 8 * torch.finfo(dtype).eps
    if not missed <= allowed:
        raise InterpError(
            f"the baked model's logits miss the hooked model's by {missed:.1e} where {allowed:.1e} "
            f"is rounding, so it is not returned: this architecture keeps something where we do "
            f"not know it. Use the edit itself (edit.applied(model)), and please report it; "
            f"verify=False skips this comparison"
        )
    return result


def _logits(model: Model, ids: Tensor) -> Tensor:
    logits: Tensor = run(model.module, {"input_ids": ids.to(model.anatomy.home)}).logits
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.detach().to("cpu", wide)


def _probe(model: Model) -> Tensor:
    """Random tokens [batch pos], the same for every model of this vocabulary."""
    anatomy = model.anatomy
    tokens = min(_TOKENS, anatomy.max_positions or _TOKENS)
    vocabulary = anatomy.embedding_weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (_ROWS, tokens), generator=generator)
