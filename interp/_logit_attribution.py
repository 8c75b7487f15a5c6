"""Direct logit attribution: which component wrote the answer's logit into the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp._anatomy import Anatomy
from interp._answers import Answers, answer_tokens, per_prompt
from interp._errors import InterpError, UnsupportedSite, counted
from interp._forward import run
from interp._hooked import ports_of
from interp._hooks import visiting
from interp._model import Model, as_model
from interp._reading import reading, require_unembed
from interp._record import load_record, save_record
from interp._site import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """Parts that sum to a logit: `parts.sum(-1) == logit` up to rounding.

    Args:
        parts: what each component adds to the answer's logit at the last position.
        logit: the model's own logit, before any softcap.
        components: names: `embed`, `attn_out.3` or `head_out.3.5`, `mlp_out.3`, `bias` (the
            norm's and head's own).
        answers: answers as text, for each prompt.
        meta: the model and the arguments.
    """

    parts: Float[Tensor, "prompt answer component"]
    logit: Float[Tensor, "prompt answer"]
    components: list[str]
    answers: list[list[str]]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n_prompts, n_answers, n_parts = self.parts.shape
        said = ", ".join(map(repr, self.answers[0][:3])) if n_prompts else ""
        more = f", ... {n_answers} in all" if n_answers > 3 else ""
        prompts = counted(n_prompts, "prompt")
        return f"LogitAttribution({prompts}, {n_parts} components; answers {said}{more})"

    def table(self) -> pd.DataFrame:
        """Tidy: `prompt answer component layer head logit share`, share of the total logit."""
        import pandas as pd

        rows = []
        for (prompt, answer, index), value in _enumerate(self.parts):
            kind, *numbers = self.components[index].split(".")
            rows.append(
                {
                    "prompt": prompt,
                    "answer": self.answers[prompt][answer],
                    "component": self.components[index],
                    "kind": kind,
                    "layer": int(numbers[0]) if numbers else None,
                    "head": int(numbers[1]) if len(numbers) > 1 else None,
                    "logit": value,
                    "share": value / float(self.logit[prompt, answer]),
                }
            )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `LogitAttribution.load` reads back."""
        tensors = {"parts": self.parts, "logit": self.logit}
        meta = {"components": self.components, "answers": self.answers, "attribution": self.meta}
        return save_record(path, "logit_attribution", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> LogitAttribution:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "logit_attribution")
        return LogitAttribution(
            **tensors,
            components=meta["components"],
            answers=meta["answers"],
            meta=meta["attribution"],
        )


def logit_attribution(
    model: Model | nn.Module,
    prompts: Any,
    answers: Answers,
    *,
    by: Literal["layer", "head"] = "layer",
) -> LogitAttribution:
    """Split each answer's logit at the last position over the components that wrote the stream.

    The stream is the sum of what components added, and with the final norm's scale held at its
    value in this forward the logit is linear in the stream: a component c gives
    <W_U[answer] * gain, c - mean(c)> / sigma (no mean under RMSNorm). Softcaps are left out, so
    parts sum to the logit before one.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        answers: one for all prompts, or one entry for each; the first token counts.
        by: `"layer"` for attention and MLP outputs, `"head"` to split attention into its heads
            (their output projection's bias is then the component `attn_bias.L`).

    Raises:
        UnsupportedSite: a final norm that is neither LayerNorm nor RMSNorm, or heads before a
            norm that is neither.

    Examples:
        >>> made = interp.logit_attribution(model, "The capital of France is", " Paris", by="head")
        >>> made.table().nlargest(5, "logit")[["component", "logit"]]
    """
    handle = as_model(model)
    if by not in ("layer", "head"):
        raise InterpError(f"by={by!r}: expected 'layer' or 'head'")
    require_unembed(handle)
    anatomy = handle.anatomy
    if next(anatomy.head.parameters()).is_meta:
        raise InterpError(
            "the head's weights are offloaded; load the model with its head in memory"
        )
    batch = handle.batch(prompts)
    wanted = per_prompt(answers, len(batch))
    tokens = torch.tensor([[a[0] for a in row] for row in answer_tokens(handle, batch, wanted)])
    rows = torch.arange(len(batch))
    columns = batch.columns("last")[0][:, 0].cpu()
    with reading(handle):
        named, stream = _components(handle, batch.inputs, (rows, columns), by)
        gradient, constant = _linear_logit(anatomy, stream, tokens)
        stacked = torch.stack([part.to(gradient) for part in named.values()], dim=1)
        parts = torch.einsum("pcd,pad->pac", stacked, gradient)
        parts = torch.cat([parts, constant[..., None]], dim=-1)
        logit = _uncapped(anatomy, stream).gather(1, tokens.to(stream.device))
    return LogitAttribution(
        parts.cpu(),
        logit.float().cpu(),
        [*named, "bias"],
        [[answer if isinstance(answer, str) else str(answer) for answer in row] for row in wanted],
        {"model": handle.name or type(handle.module).__name__, "by": by},
    )


def _components(
    model: Model, inputs: dict[str, Tensor], at: tuple[Tensor, Tensor], by: str
) -> tuple[dict[str, Tensor], Tensor]:
    """What each component added to the stream at (row, column), and the last stream itself."""
    anatomy = model.anatomy
    kinds = ["attn_out.*", "mlp_out.*"] + (["head_out.*"] if by == "head" else [])
    last = Site("resid_post", anatomy.n_layers - 1)
    first = Site("resid_pre", 0)
    seen: dict[Site, Tensor] = {}
    before_norm: dict[int, Tensor] = {}

    def read(tensor: Tensor, site: Site) -> None:
        seen[site] = tensor[at].clone()

    def read_norm_input(layer: int) -> Any:
        def visitor(raw: Tensor) -> None:
            before_norm[layer] = raw[at].clone()

        return visitor

    with ExitStack() as stack:
        for port in ports_of(model, ["embed", first, *kinds, last]).values():
            stack.enter_context(port.attach(read, reads=True))
        for block in anatomy.blocks if by == "head" else ():
            if block.post_attn_norm is not None:
                visitor = read_norm_input(block.index)
                stack.enter_context(visiting(block.post_attn_norm, "input", visitor, reads=True))
        run(model.module, inputs)
    named = {"embed": seen[Site("embed")]}
    if anatomy.positions is not None:
        named["positions"] = seen[first] - seen[Site("embed")]
    for block in anatomy.blocks:
        attn = seen.get(Site("attn_out", block.index))
        heads = seen.get(Site("head_out", block.index))
        if attn is not None and heads is None:
            named[f"attn_out.{block.index}"] = attn
        elif attn is not None and heads is not None:
            if block.post_attn_norm is not None:
                heads = _Frozen(block.post_attn_norm, before_norm[block.index]).apply(heads)
            heads = heads * block.multiplier
            for head in range(heads.shape[1]):
                named[f"head_out.{block.index}.{head}"] = heads[:, head]
            named[f"attn_bias.{block.index}"] = attn - heads.sum(dim=1)
        named[f"mlp_out.{block.index}"] = seen[Site("mlp_out", block.index)]
    return named, seen[last]


def _linear_logit(anatomy: Anatomy, stream: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient [prompt answer d_model], constant [prompt answer]) of the logit in the stream."""
    head: Any = anatomy.head
    direction = head.weight[tokens.to(head.weight.device)].float()
    if anatomy.project_out is not None:
        direction = direction @ anatomy.project_out.weight.float()
    bias = getattr(head, "bias", None)
    constant = direction.new_zeros(tokens.shape) if bias is None else bias[tokens].float()
    scale = _logit_scale(anatomy)
    if anatomy.final_norm is None:
        return direction * scale, constant * scale
    frozen = _Frozen(anatomy.final_norm, stream)
    if frozen.bias is not None:
        constant = constant + direction @ frozen.bias
    return frozen.transpose(direction) * scale, constant * scale


def _logit_scale(anatomy: Anatomy) -> float:
    scale = getattr(anatomy.config, "logit_scale", None)
    divisor = getattr(anatomy.config, "logits_scaling", None)
    return float(1.0 if scale is None else scale) / float(1.0 if divisor is None else divisor)


def _uncapped(anatomy: Anatomy, stream: Tensor) -> Tensor:
    """The logits without their softcap."""
    x = stream if anatomy.final_norm is None else anatomy.final_norm(stream)
    if anatomy.project_out is not None:
        x = anatomy.project_out(x)
    return anatomy.head(x) * _logit_scale(anatomy)


_EPS = ("eps", "variance_epsilon", "epsilon")


class _Frozen:
    """A norm with its scale held at one stream: linear, x -> gain * (x - mean(x)) / sigma + bias.

    Which norm it is (mean or none, gain stored as w or as w - 1) is found by trying: the form
    that gives the module's own output is taken, and none is refused.
    """

    def __init__(self, norm: nn.Module, stream: Tensor) -> None:
        expected = norm(stream).float()
        x = stream.float()
        found_eps = [getattr(norm, n) for n in _EPS if isinstance(getattr(norm, n, None), float)]
        eps = found_eps[0] if found_eps else 1e-5
        weight = getattr(norm, "weight", None)
        bias = getattr(norm, "bias", None)
        self.bias = bias.float() if isinstance(bias, Tensor) else None
        ones = torch.ones(x.shape[-1], device=x.device)
        gains = [ones] if weight is None else [weight.float(), 1 + weight.float()]
        for self.centred in (False, True):
            centre = x - x.mean(-1, keepdim=True) if self.centred else x
            self.sigma = (centre.square().mean(-1, keepdim=True) + eps).sqrt()
            for self.gain in gains:
                found = centre / self.sigma * self.gain
                found = found if self.bias is None else found + self.bias
                error = float((found - expected).abs().max() / expected.abs().max())
                if error < max(1e-4, 8 * torch.finfo(stream.dtype).eps):
                    return
        raise UnsupportedSite(
            f"{type(norm).__name__} is neither LayerNorm nor RMSNorm, so the logit is no sum"
        )

    def apply(self, parts: Tensor) -> Tensor:
        """Parts of the stream through the frozen norm, bias excluded: [row part d_model]."""
        parts = parts.float()
        if self.centred:
            parts = parts - parts.mean(-1, keepdim=True)
        return parts / self.sigma[:, None] * self.gain

    def transpose(self, direction: Tensor) -> Tensor:
        """The direction in the stream that gives <direction, norm(x)>: [row answer d_model]."""
        pulled = direction * self.gain / self.sigma[:, None]
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled


def _enumerate(parts: Tensor) -> Iterator[tuple[tuple[int, int, int], float]]:
    for prompt in range(parts.shape[0]):
        for answer in range(parts.shape[1]):
            for index in range(parts.shape[2]):
                yield (prompt, answer, index), float(parts[prompt, answer, index])
