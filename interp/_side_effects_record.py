"""What an edit did to texts it was not meant for: a record with its tables."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from interp._errors import counted
from interp._estimate import Estimate, cluster_mean
from interp._record import load_record, save_record

if TYPE_CHECKING:
    import pandas as pd

_NOT_TENSORS = ("prompts", "before", "after", "meta")


@dataclass(frozen=True, eq=False)
class SideEffects:
    """An edit's effects on unrelated texts; `token` runs over the tokens of all texts.

    Args:
        kl: KL(before || after) of the next token's distribution, in nats.
        nll_before: -log p of the next token without the edit, NaN at a text's last token.
        nll_after: with it.
        text: index of each token's text.
        norm_before: mean over a text's tokens of the stream's norm after each block.
        norm_after: with the edit.
        norm_ratio: mean over its tokens of after / before.
        prompts: what was continued.
        before: the continuations without the edit.
        after: with it.
        meta: model and edit.
    """

    kl: Float[Tensor, " token"]
    nll_before: Float[Tensor, " token"]
    nll_after: Float[Tensor, " token"]
    text: Int[Tensor, " token"]
    norm_before: Float[Tensor, "text layer"]
    norm_after: Float[Tensor, "text layer"]
    norm_ratio: Float[Tensor, "text layer"]
    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        before, after = self.perplexity
        return (
            f"SideEffects({counted(len(self.norm_ratio), 'text')}, {len(self.kl)} tokens; KL "
            f"{float(self.kl.mean()):.3g} nats a token, perplexity {before:.4g} to {after:.4g})"
        )

    @property
    def kl_per_token(self) -> Estimate:
        """The mean over tokens with its 95 % interval, texts being the evidence."""
        return cluster_mean(self.kl.tolist(), self.text.tolist(), bounds=(0.0, float("inf")))

    @property
    def perplexity(self) -> tuple[float, float]:
        """(before, after): exp of the mean over all tokens that have a next one."""
        means = (float(nll.nanmean().exp()) for nll in (self.nll_before, self.nll_after))
        return next(means), next(means)

    @property
    def nll_change(self) -> Estimate:
        """Nats a token by which the texts became less likely; exp of it: perplexity's ratio."""
        told = ~self.nll_before.isnan()
        change = (self.nll_after - self.nll_before)[told]
        return cluster_mean(change.tolist(), self.text[told].tolist(), bounds=None)

    @property
    def growth(self) -> Float[Tensor, " layer"]:
        """||resid_post after|| / ||resid_post before||, mean over tokens, layer by layer."""
        tokens = self.text.bincount(minlength=len(self.norm_ratio)).float()
        return (self.norm_ratio * tokens[:, None]).sum(0) / tokens.sum()

    @property
    def same_words(self) -> float:
        """Share of the prompts whose continuation the edit left as it was; NaN without prompts."""
        same = [a == b for a, b in zip(self.before, self.after, strict=True)]
        return sum(same) / len(same) if same else float("nan")

    def table(self, by: Literal["text", "layer", "prompt"] = "text") -> pd.DataFrame:
        """Tidy.

        Args:
            by: `text`: `text tokens kl kl_max perplexity_before perplexity_after`; `layer`: `layer
                norm_before norm_after growth`; `prompt`: `prompt before after`.
        """
        import pandas as pd

        if by == "prompt":
            columns = {"prompt": self.prompts, "before": self.before, "after": self.after}
            return pd.DataFrame({name: list(values) for name, values in columns.items()})
        if by == "layer":
            return pd.DataFrame(
                {
                    "layer": range(self.norm_ratio.shape[1]),
                    "norm_before": self.norm_before.mean(0).numpy(),
                    "norm_after": self.norm_after.mean(0).numpy(),
                    "growth": self.growth.numpy(),
                }
            )
        rows = []
        for text in range(len(self.norm_ratio)):
            mine = self.text == text
            pair = [nll[mine].nanmean().exp() for nll in (self.nll_before, self.nll_after)]
            kl = self.kl[mine]
            rows.append(
                [text, int(mine.sum()), float(kl.mean()), float(kl.max()), *map(float, pair)]
            )
        names = ["text", "tokens", "kl", "kl_max", "perplexity_before", "perplexity_after"]
        return pd.DataFrame(rows, columns=names)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `SideEffects.load` reads back, whole or not at all."""
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_TENSORS
        }
        meta = {
            "prompts": list(self.prompts),
            "before": list(self.before),
            "after": list(self.after),
            "effects": self.meta,
        }
        return save_record(path, "side_effects", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> SideEffects:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "side_effects")
        held: dict[str, Any] = {**tensors}
        held |= {name: tuple(meta[name]) for name in ("prompts", "before", "after")}
        return SideEffects(**held, meta=meta["effects"])
