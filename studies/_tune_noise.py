"""LIFT's test of a mask: what the same noise breaks on as many weights of each choice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

import interventions as iv
from interp import InterpError, Model
from interp._edit.parameters import named_parameters
from interp._estimate import Estimate, cluster_mean
from interp._forward import run
from interventions._sae_stream import token_ids

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("magnitude", "low magnitude", "random")
_EXAMPLE = '{"text": "Once there was a dog."}'
_LENGTH = 256  # tokens of a text


@dataclass(frozen=True)
class NoiseTest:
    """Which weights get noise, how much of it, and how often.

    Args:
        model: which stays as it is.
        share: of each matrix that gets noise.
        ranks: of the approximations behind principal masks.
        sizes: standard deviations, in root mean squares of the weights.
        draws: of noise, and of the random mask.
    """

    model: Model
    share: float
    ranks: tuple[int, ...]
    sizes: tuple[float, ...]
    draws: int

    def table(self, measure: Callable[[Model], dict[str, float]]) -> pd.DataFrame:
        """A row a mask, size and draw: `mask noise draw count` and what is measured under it."""
        import pandas as pd

        unit = root_mean_square(self.model)
        rows = []
        total = (len(self.ranks) + len(CONTROLS)) * self.draws * len(self.sizes)
        with tqdm(total=total, desc="noise", delay=2) as bar:
            for (name, draw, mask), size in itertools.product(self._masks(), self.sizes):
                with mask.noise(size * unit, seed=draw).applied(self.model):
                    found = measure(self.model)
                row = {"mask": name, "noise": size, "draw": draw, "count": mask.count}
                rows.append(row | found)
                bar.update()
        return pd.DataFrame(rows).sort_values(["noise", "draw"], kind="stable", ignore_index=True)

    def _masks(self) -> Iterator[tuple[str, int, iv.WeightMask]]:
        """By name and draw; what draws do not change is made once."""
        model, share = self.model, self.share
        for rank in self.ranks:
            mask = iv.principal_mask(model, rank=rank, share=share)
            yield from ((principal(rank), draw, mask) for draw in range(self.draws))
        for name in CONTROLS:
            for draw in range(self.draws):
                if name == "random":
                    yield name, draw, iv.masks.random_mask(model, share=share, seed=draw)
                else:
                    low = name == "low magnitude"
                    mask = iv.masks.magnitude_mask(model, low=low, share=share)
                    yield name, draw, mask


def principal(rank: int) -> str:
    """A principal mask's name."""
    return f"principal, rank {rank}"


def root_mean_square(model: Model) -> float:
    """Of the weights of the blocks' matrices."""
    parameters = named_parameters(model.module)
    names = iv.masks.random_mask(model, share=1.0).index
    total = sum(float(parameters[n].tensor.detach().float().square().sum()) for n in names)
    return (total / sum(parameters[n].tensor.numel() for n in names)) ** 0.5


def damage(noise: pd.DataFrame) -> pd.DataFrame:
    """Means over draws with Student's intervals, and differences to random and to large weights."""
    import pandas as pd

    rows = []
    measured = [c for c in noise.columns if c.startswith("lost")]
    for (size, name), part in noise.groupby(["noise", "mask"], sort=False):
        row: dict[str, object] = {"noise": size, "mask": name, "count": int(part["count"].max())}
        for column in measured:
            row |= _columns(column, over_draws(part[column].to_numpy(dtype=float)))
        for control in ("random", "magnitude"):
            other = noise[(noise["noise"] == size) & (noise["mask"] == control)]
            apart = part.set_index("draw")["lost nats"] - other.set_index("draw")["lost nats"]
            row |= _columns(f"beyond {control}", over_draws(apart.to_numpy()))
        rows.append(row | {"draws": len(part)})
    return pd.DataFrame(rows)


def told(found: pd.DataFrame) -> list[str]:
    """LIFT's order, principal > magnitude > random, as sentences: a size of noise each."""
    lines = []
    for size, part in found.groupby("noise"):
        order = part.sort_values("lost nats", ascending=False)
        listed = " > ".join(f"{r['mask']} {r['lost nats']:.3f}" for _, r in order.iterrows())
        line = f"Noise of {size:g} root mean squares costs, in nats: {listed}."
        for _, row in part[part["mask"].str.startswith("principal")].iterrows():
            line += (
                f" {str(row['mask']).capitalize()}, beyond random {_span(row, 'beyond random')}: "
                f"{_held(row, 'beyond random')}; beyond magnitude "
                f"{_span(row, 'beyond magnitude')}: {_held(row, 'beyond magnitude')}."
            )
        lines.append(line)
    return lines


def over_draws(values: np.ndarray) -> Estimate:
    """A mean with Student's interval."""
    return cluster_mean(values.tolist(), list(range(len(values))), bounds=None)


def read_texts(path: Path) -> list[str]:
    """Texts from JSON lines with `text`.

    Raises:
        InterpError: an unreadable file or line, naming it; no texts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"cannot read the texts file {path}: {error}") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise InterpError(
                f"{path} line {number} is no text ({error!r}); expected an object such as "
                f"{_EXAMPLE}"
            ) from error
    if not texts:
        raise InterpError(f"{path} holds no texts; expected lines such as {_EXAMPLE}")
    return texts


@torch.no_grad()
def text_loss(model: Model, texts: Sequence[str], rows: int = 32) -> float:
    """Mean over tokens of -log p(token | those before it), in nats; texts are cut at 256 tokens."""
    total, count = 0.0, 0
    limit = min(_LENGTH, model.anatomy.max_positions or _LENGTH)
    for start in range(0, len(texts), rows):
        ids = [token_ids(model, text, limit) for text in texts[start : start + rows]]
        ids = [one for one in ids if len(one) > 1]
        if not ids:
            continue
        batch = model.batch(ids)
        logits = run(model.module, batch.inputs).logits.float()
        mask = batch.attention_mask.bool()
        predicts = mask[:, :-1] & mask[:, 1:]
        lost = torch.nn.functional.cross_entropy(
            logits[:, :-1][predicts], batch.input_ids[:, 1:][predicts].to(logits.device),
            reduction="sum",
        )  # fmt: skip
        total += float(lost)
        count += int(predicts.sum())
    if not count:
        raise InterpError("no text has two tokens, so there is no loss to measure")
    return total / count


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}


def _held(row: pd.Series, name: str) -> str:
    if row[f"{name} low"] > 0:
        return "held"
    return "reversed" if row[f"{name} high"] < 0 else "not told apart"


def _span(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name} low']:+.3f}, {row[f'{name} high']:+.3f}]"
