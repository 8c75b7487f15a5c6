"""Figures of patch effects, in matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp._errors import InterpError, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from interp._patch.effects import PatchEffects


def draw(
    effects: PatchEffects, kind: str | None, prompt: int | None, span: str | None, ax: Axes | None
) -> Axes:
    """Normalised effects as a map of layer x position or layer x head; joint patches as bars."""
    if effects.joint:
        return _bars(effects, prompt, ax)
    kinds = effects.kinds()
    if kind is None and len(kinds) > 1:
        raise InterpError(f"say which of {', '.join(kinds)} to draw: plot(kind={kinds[0]!r})")
    kind = kind or kinds[0]
    values = torch.stack([_chosen(effects, score, prompt) for score in effects.stack(kind)])
    names = [name for name in effects.score if name.split(".")[0] == kind]
    layers = [name.split(".")[1] for name in names]
    if values.ndim == 3 and len(effects.spans) > 1:
        if span not in effects.spans:
            raise InterpError(
                f"{kind} was patched unit by unit at {len(effects.spans)} spans; say which to "
                f"draw: plot(span={effects.spans[-1]!r})"
                + ("" if span is None else f"; {nearest(span, effects.spans)}")
            )
        values = values[:, effects.spans.index(span)]
    elif values.ndim == 3:
        values = values[:, 0]
    if effects.units[names[0]]:
        groups = effects.units[names[0]]
        columns = [str(g[0]) if len(g) == 1 else f"{g[0]}..{g[-1]}" for g in groups]
        label = "head" if kind != "mlp_post" else "neurons"
    else:
        columns, label = _columns(effects, prompt), "position"
    return _map(values, layers, columns, (label, f"layer ({kind})"), ax)


def _map(
    values: Tensor, layers: list[str], columns: list[str], axes: tuple[str, str], ax: Axes | None
) -> Axes:
    n = len(columns)
    ax = _axes(ax, max(4.0, 0.32 * n + 2), max(3.0, 0.32 * len(layers) + 1.4))
    finite = values[values.isfinite()]
    limit = max(1.0, float(finite.abs().max())) if len(finite) else 1.0
    image = ax.imshow(
        values.numpy(), origin="lower", aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit
    )
    ax.set_xticks(range(n), columns, rotation=60 if axes[0] == "position" else 0, fontsize=8)
    ax.set_yticks(range(len(layers)), layers)
    ax.set(xlabel=axes[0], ylabel=axes[1])
    ax.figure.colorbar(image, ax=ax, label="0 corrupted, 1 clean", pad=0.01)
    return ax


def _bars(effects: PatchEffects, prompt: int | None, ax: Axes | None) -> Axes:
    values = [_chosen(effects, score[:, 0, 0], prompt) for score in effects.score.values()]
    ax = _axes(ax, max(4.0, 0.8 * len(values) + 1.5), 3.2)
    ax.bar(range(len(values)), [float(value) for value in values], color="#4c78a8")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.axhline(1, color="black", linewidth=0.6, linestyle=":")
    ax.set_xticks(range(len(values)), [_shown(name) for name in effects.score])
    ax.set(ylabel="0 corrupted, 1 clean")
    return ax


def _chosen(effects: PatchEffects, score: Tensor, prompt: int | None) -> Tensor:
    """Normalised: of one prompt, or over all."""
    if prompt is None:
        return effects.over_prompts(score)
    if not 0 <= prompt < len(score):
        raise InterpError(f"no prompt {prompt}; there are {len(score)}, from 0")
    return effects.normalise(score)[prompt].double()


def _columns(effects: PatchEffects, prompt: int | None) -> list[str]:
    """Spans, with the tokens there where they are those of one prompt."""
    one = 0 if len(effects.tokens) == 1 else prompt
    if one is None:
        return [_shown(span) for span in effects.spans]
    names = []
    for span, at in zip(effects.spans, effects.positions[one], strict=True):
        token = effects.tokens[one][at[0]] if len(at) == 1 else ""
        names.append(f"{span} {_shown(token)[:10]}" if token else _shown(span))
    return names


def _shown(text: str) -> str:
    """A token as it can stand in a figure: spaces visible, no markup read as mathematics."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("$", r"\$")


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]
