"""What `attribute` returns: what each unit adds to a target, with the sum it should come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp._errors import InterpError, SiteNotFound, nearest
from interp._record import load_record, save_record
from interp._site import Site

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each unit adds to the target, against the unit at its baseline.

    Args:
        values: site -> [batch *unit]: [batch d_mlp], [batch head d_head] (or [batch head]),
            [batch d_model]; [batch k d_mlp] for expert neurons.
        output: the target at each prompt.
        baseline_output: the target with all of a site at its baseline.
        answers: the answer of each prompt as text; "" where the target is a function of logits.
        expert_ids: for expert neurons, site -> [batch k].
        meta: model, method, target and the other arguments.
    """

    values: dict[Site, Tensor]
    output: Float[Tensor, " batch"]
    baseline_output: Float[Tensor, "batch site"]
    answers: list[str]
    expert_ids: dict[Site, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """In the order of layers."""
        return list(self.values)

    @property
    def completeness(self) -> Float[Tensor, "batch site"]:
        """How far the parts miss what they should sum to, relative to it.

        |sum_j v_j - (F(a) - F(a'))| / max(|F(a) - F(a')|, floor), where the floor is what the
        model's arithmetic can tell apart: sqrt(eps) * max(|F(a)|, |F(a')|, sum_j |v_j|), and for
        logits and log-probabilities at least sqrt(eps) nats: where a token is certain its
        log-probability is zero, but made of logits that are not. Only integrated gradients promise
        zero; for ablation this is how far units interact.
        """
        flat = [value.flatten(1).double() for value in self.values.values()]
        total = torch.stack([value.sum(1) for value in flat], dim=1)
        gross = torch.stack([value.abs().sum(1) for value in flat], dim=1)
        output, baseline = self.output.double()[:, None], self.baseline_output.double()
        change = output - baseline
        size = torch.maximum(torch.maximum(output.abs(), baseline.abs()), gross)
        if self.meta.get("target") in ("logprob", "logit", "logit_difference"):
            size = size.clamp(min=1.0)
        floor = size * self.meta["eps"] ** 0.5
        return (total - change).abs() / torch.maximum(change.abs(), floor).clamp(min=1e-300)

    def __getitem__(self, site: Site | str) -> Tensor:
        key = Site.parse(site)
        if key.layer is not None and key.layer < 0:
            key = Site(key.kind, key.layer + self.meta["n_layers"])
        if key not in self.values:
            raise SiteNotFound(
                f"{key} was not attributed; {nearest(str(key), [str(s) for s in self.values])}"
            )
        return self.values[key]

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {list(v.shape)}" for site, v in list(self.values.items())[:3])
        more = "" if len(self.values) <= 3 else f", ... {len(self.values)} sites"
        return f"Attribution({self.meta.get('method')}; {sites}{more})"

    def stack(self, kind: str) -> Tensor:
        """All layers of one kind: [layer batch *unit], in the order of layers."""
        chosen = [value for site, value in self.values.items() if site.kind == kind]
        if not chosen:
            raise SiteNotFound(
                f"no {kind!r} was attributed; {nearest(kind, {s.kind for s in self.values})}"
            )
        return torch.stack(chosen)

    def mean(self, prompts: Sequence[int] | None = None) -> Attribution:
        """The mean over prompts, as an attribution of one row.

        Expert neurons become [1 expert d_mlp] over all experts; one that a prompt was not routed
        to adds nothing there.

        Args:
            prompts: which of them (default: all).
        """
        rows = torch.tensor(list(range(len(self.output)) if prompts is None else prompts))
        if rows.numel() == 0 or not 0 <= int(rows.min()) <= int(rows.max()) < len(self.output):
            raise InterpError(
                f"prompts {rows.tolist()}: expected indices from 0 to {len(self.output) - 1}, at "
                f"least one"
            )
        values = {
            site: self._over_experts(site)[rows].mean(0, keepdim=True) for site in self.values
        }
        return Attribution(
            values,
            self.output[rows].mean(0, keepdim=True),
            self.baseline_output[rows].mean(0, keepdim=True),
            [f"mean of {len(rows)} prompts"],
            {s: torch.arange(values[s].shape[1])[None] for s in self.expert_ids},
            {**self.meta, "mean_of": rows.tolist()},
        )

    def _over_experts(self, site: Site) -> Tensor:
        """[batch expert d_mlp] for expert neurons, and all others as they are."""
        value = self.values[site]
        if site not in self.expert_ids:
            return value
        ids = self.expert_ids[site]
        spread = value.new_zeros(len(value), self.meta["n_experts"][str(site)], value.shape[-1])
        return spread.scatter(1, ids[..., None].expand_as(value), value)

    def top(self, k: int = 10, *, prompt: int | None = None) -> pd.DataFrame:
        """The k units of largest absolute value, over all sites.

        Args:
            k: how many.
            prompt: of this prompt (default: in the mean over prompts).

        Returns:
            Columns as in `table`.
        """
        one = self.mean(None if prompt is None else [prompt])
        flat = torch.cat([value.flatten() for value in one.values.values()])
        chosen = flat.abs().topk(min(k, len(flat))).indices
        table = one._rows(chosen.numpy()).drop(columns="prompt")
        return table.reset_index(drop=True)

    def table(self) -> pd.DataFrame:
        """Tidy, a row for each unit: `prompt site layer [head] [expert] [neuron] [dim] value`.

        Columns that no site here has are left out; the others are empty where they do not apply.
        `dim` counts within d_model, or within a head.
        """
        import pandas as pd

        n = sum(value[0].numel() for value in self.values.values())
        frames = [self._rows(np.arange(n), prompt) for prompt in range(len(self.output))]
        return pd.concat(frames, ignore_index=True)

    def _rows(self, chosen: np.ndarray, prompt: int = 0) -> pd.DataFrame:
        """Units of a prompt, named by their place among all sites' units laid end to end."""
        import pandas as pd

        ends = np.cumsum([value[prompt].numel() for value in self.values.values()])
        which = np.searchsorted(ends, chosen, side="right")
        flat = torch.cat([value[prompt].flatten() for value in self.values.values()])
        columns: dict[str, Any] = {
            "prompt": np.full(len(chosen), prompt),
            "site": np.array([str(site) for site in self.values], dtype=object)[which],
            "layer": np.array([site.layer for site in self.values])[which],
        }
        for number, (site, value) in enumerate(self.values.items()):
            here = which == number
            start = 0 if number == 0 else ends[number - 1]
            places = np.unravel_index(chosen[here] - start, value.shape[1:])
            for name, place in zip(self._unit_axes(site), places, strict=True):
                if name == "expert":
                    place = self.expert_ids[site][prompt].numpy()[place]
                empty = np.full(len(chosen), pd.NA, dtype=object)
                columns.setdefault(name, empty)[here] = place
        order = ["prompt", "site", "layer", "head", "expert", "neuron", "dim"]
        frame = pd.DataFrame({name: columns[name] for name in order if name in columns})
        units = [name for name in order[3:] if name in frame]
        frame[units] = frame[units].astype("Int64")
        return frame.assign(value=flat[torch.from_numpy(chosen)].numpy())

    def _unit_axes(self, site: Site) -> tuple[str, ...]:
        if site.kind == "z":
            return ("head", "dim")[: self.values[site].ndim - 1]
        if site.kind == "mlp_post":
            return ("expert", "neuron") if site in self.expert_ids else ("neuron",)
        return ("dim",)

    def summary(self) -> pd.DataFrame:
        """A row for each prompt and site: what all units add, and how well that is accounted for.

        Columns `prompt answer site layer total positive negative change completeness`: `change` is
        F(a) - F(a'), which `total` should equal.
        """
        import pandas as pd

        rows = []
        completeness = self.completeness
        changes = self.output.double()[:, None] - self.baseline_output.double()
        for number, (site, value) in enumerate(self.values.items()):
            for prompt, flat in enumerate(value.flatten(1).double()):
                rows.append(
                    {
                        "prompt": prompt,
                        "answer": self.answers[prompt] if self.answers else None,
                        "site": str(site),
                        "layer": site.layer,
                        "total": float(flat.sum()),
                        "positive": float(flat.clamp(min=0).sum()),
                        "negative": float(flat.clamp(max=0).sum()),
                        "change": float(changes[prompt, number]),
                        "completeness": float(completeness[prompt, number]),
                    }
                )
        return pd.DataFrame(rows).sort_values("prompt", kind="stable", ignore_index=True)

    def plot(self, ax: Axes | None = None, *, prompt: int | None = None) -> Axes:
        """Layer x head for z; else what the units of each layer add, for and against the target.

        Args:
            ax: where to draw; a new figure by default.
            prompt: of this prompt (default: the mean over prompts).
        """
        from interp._attribute_plot import draw

        return draw(self.mean(None if prompt is None else [prompt]), ax)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Attribution.load` reads back; its table is the `summary`."""
        tensors = {str(site): value for site, value in self.values.items()}
        tensors |= {f"expert_ids:{site}": ids for site, ids in self.expert_ids.items()}
        tensors |= {"output": self.output, "baseline_output": self.baseline_output}
        meta = {
            "sites": [str(site) for site in self.values],
            "answers": self.answers,
            "attribution": self.meta,
        }
        return save_record(path, "attribution", tensors, meta, self.summary())

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "attribution")
        sites = [Site.parse(name) for name in meta["sites"]]
        return Attribution(
            {site: tensors[str(site)] for site in sites},
            tensors["output"],
            tensors["baseline_output"],
            meta["answers"],
            {s: ids for s in sites if (ids := tensors.get(f"expert_ids:{s}")) is not None},
            meta["attribution"],
        )
