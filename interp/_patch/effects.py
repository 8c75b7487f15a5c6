"""What `patch` returns: the metric with each patch, beside both runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp._errors import SiteNotFound, nearest
from interp._record import load_record, save_record
from interp._site import Site

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class PatchEffects:
    """The metric with each patch in each prompt; NaN where a prompt has no such position.

    Args:
        score: site (or name, where places were patched jointly) -> [prompt span unit]; the unit
            axis has one entry where a site is patched whole.
        clean: the metric of the clean run.
        corrupted: the metric of the corrupted run.
        spans: names of the spans: positions, `"together"`, `"last"`, or your own.
        positions: [prompt][span] -> the positions in the prompt that was run.
        units: site -> the heads or neurons of each unit; empty where patched whole.
        tokens: [prompt] -> the tokens of the prompt that was run, as text.
        exact: where asked for, the exact score of attribution patches, NaN where not run.
        meta: models, metric and arguments.
    """

    score: dict[str, Float[Tensor, "prompt span unit"]]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]
    spans: list[str]
    positions: list[list[list[int]]]
    units: dict[str, list[list[int]]]
    tokens: list[list[str]]
    exact: dict[str, Float[Tensor, "prompt span unit"]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def joint(self) -> bool:
        """Whether places were patched together under names, instead of a grid."""
        return bool(self.meta.get("joint"))

    @property
    def normalised(self) -> dict[str, Float[Tensor, "prompt span unit"]]:
        """(score - corrupted) / (clean - corrupted): 0 is the corrupted run, 1 the clean one.

        NaN for prompts in which both runs score the same.
        """
        return {name: self.normalise(score) for name, score in self.score.items()}

    def normalise(self, score: Float[Tensor, "prompt ..."]) -> Float[Tensor, "prompt ..."]:
        """The same for any score of these prompts."""
        shape = (-1, *[1] * (score.ndim - 1))
        corrupted, clean = self.corrupted.view(shape), self.clean.view(shape)
        gap = (clean - corrupted).masked_fill(clean == corrupted, float("nan"))
        return (score - corrupted) / gap

    def over_prompts(self, score: Float[Tensor, "prompt ..."]) -> Float[Tensor, "..."]:
        """The normalised mean, as a ratio of means, which no prompt's small gap can blow up.

        mean(score - corrupted) / mean(clean - corrupted), over the prompts that have a score.
        """
        shape = (-1, *[1] * (score.ndim - 1))
        there = ~score.isnan()
        effect = (score - self.corrupted.view(shape)).double().nan_to_num(nan=0.0).sum(0)
        gap = (there * (self.clean - self.corrupted).double().view(shape)).sum(0)
        return effect / gap.masked_fill(gap == 0, float("nan"))

    def __getitem__(self, site: Site | str) -> Tensor:
        """Scores of a site [prompt span] or [prompt span unit], of a joint patch [prompt]."""
        return self._squeezed(self._name(site), self.score)

    def stack(self, kind: str, *, normalised: bool = False) -> Tensor:
        """All layers of one kind: [layer prompt span] or [layer prompt span unit]."""
        names = self._of_kind(kind)
        scores = self.normalised if normalised else self.score
        return torch.stack([self._squeezed(name, scores) for name in names])

    def table(self) -> pd.DataFrame:
        """Tidy: `prompt site layer span position [head] [neurons] score normalised [exact]`.

        `position` is empty where a patch covers several. `head` and `neurons` are empty where a
        site was patched whole; a group is written with spaces between its members.
        """
        from interp._patch.summary import tidy

        return tidy(self)

    def summary(self, clusters: list[Any] | None = None) -> pd.DataFrame:
        """Each patch over all prompts: mean score, its 95 % interval, and the normalised mean.

        The interval is Student's over prompts, or over clusters of them: several prompts about
        one thing are one piece of evidence. `normalised` is `over_prompts`.

        Args:
            clusters: of each prompt; by default each is its own.
        """
        from interp._patch.summary import summarise

        return summarise(self, clusters)

    def agreement(self) -> pd.DataFrame:
        """How well attribution patches match exact ones: a row for each kind of site.

        `n` patches compared, `pearson` and `spearman` correlation of the effects, `mean_error` and
        `max_error` of the absolute difference, and `scale`, the mean absolute exact effect.

        Raises:
            InterpError: nothing was compared.
        """
        from interp._patch.summary import agreement

        return agreement(self)

    def plot(
        self,
        kind: str | None = None,
        *,
        prompt: int | None = None,
        span: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Heat map of normalised effects: layer x position, or layer x head.

        Args:
            kind: of site, where there are several.
            prompt: of this prompt (default: the mean over prompts).
            span: for heads patched at several spans, which one.
            ax: where to draw; a new figure by default.
        """
        from interp._patch.plot import draw

        return draw(self, kind, prompt, span, ax)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `PatchEffects.load` reads back."""
        tensors = {f"score:{name}": value for name, value in self.score.items()}
        tensors |= {f"exact:{name}": value for name, value in self.exact.items()}
        tensors |= {"clean": self.clean, "corrupted": self.corrupted}
        meta = {
            "names": list(self.score),
            "spans": self.spans,
            "positions": self.positions,
            "units": self.units,
            "tokens": self.tokens,
            "patch": self.meta,
        }
        return save_record(path, "patch_effects", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> PatchEffects:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "patch_effects")
        names = meta["names"]
        return PatchEffects(
            {name: tensors[f"score:{name}"] for name in names},
            tensors["clean"],
            tensors["corrupted"],
            meta["spans"],
            meta["positions"],
            meta["units"],
            meta["tokens"],
            {name: tensors[f"exact:{name}"] for name in names if f"exact:{name}" in tensors},
            meta["patch"],
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {list(v.shape)}" for name, v in list(self.score.items())[:3])
        more = "" if len(self.score) <= 3 else f", ... {len(self.score)} in all"
        return (
            f"PatchEffects({self.meta.get('metric')}, {self.meta.get('direction')}; {shown}{more})"
        )

    def _name(self, site: Site | str) -> str:
        name = str(site)
        if name not in self.score:
            try:
                parsed = Site.parse(site)
            except SiteNotFound:
                parsed = None
            if parsed is not None and (parsed.layer or 0) < 0:
                parsed = Site(parsed.kind, (parsed.layer or 0) + self.meta["n_layers"])
            name = str(parsed)
        if name not in self.score:
            raise SiteNotFound(f"{site} was not patched; {nearest(str(site), self.score)}")
        return name

    def _squeezed(self, name: str, scores: dict[str, Tensor]) -> Tensor:
        value = scores[name]
        if self.joint:
            return value[:, 0, 0]
        return value if self.units[name] else value[..., 0]

    def _of_kind(self, kind: str) -> list[str]:
        names = [name for name in self.score if name.split(".")[0] == kind]
        if not names or self.joint:
            known = {name.split(".")[0] for name in self.score}
            raise SiteNotFound(f"no layers of {kind!r} were patched; {nearest(kind, known)}")
        return names

    def kinds(self) -> list[str]:
        """Kinds of site that were patched, or the names of joint patches."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.score))
