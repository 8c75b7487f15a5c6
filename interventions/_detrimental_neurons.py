"""Neurons that carry confident predictions and harm elsewhere: found on train, chosen on dev."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import Edit, InterpError, Model
from interp._model import as_model
from interp._reading import reading
from interp._record import load_record, save_record
from interventions._neuron_scores import NeuronScore, neuron_scores
from interventions._neurons import prune_neurons
from interventions._questions import Asked, Question, ask, check_questions, last_logits

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PERCENTS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_FEWEST = 8  # confident questions to rank neurons by


@dataclass(frozen=True, eq=False)
class DetrimentalNeurons:
    """What `find_detrimental_neurons` found.

    Args:
        scores: [layer d_mlp], mean over the confident training questions.
        accuracy: [layer percent], on the dev set with that layer's top neurons pruned.
        percents: of a layer's neurons, one for each column of `accuracy`.
        unpruned: accuracy on the dev set as the model is.
        layer: where to prune; None when nothing beat the model as it is.
        neurons: which, best first.
        confident: which training questions were used.
        meta: arguments and model.
    """

    scores: Float[Tensor, "layer d_mlp"]
    accuracy: Float[Tensor, "layer percent"]
    percents: tuple[float, ...]
    unpruned: float
    layer: int | None
    neurons: tuple[int, ...]
    confident: Int[Tensor, " question"]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def edit(self) -> Edit:
        """The pruning, with how it was found in its notes; empty when nothing was gained."""
        found = prune_neurons({} if self.layer is None else {self.layer: self.neurons})
        return Edit(found.atoms, notes={"detrimental_neurons": self.meta})

    def table(self) -> pd.DataFrame:
        """One row a setting: `layer percent neurons accuracy gain`, on the dev set."""
        import pandas as pd

        width = self.scores.shape[1]
        return pd.DataFrame(
            [
                {
                    "layer": layer,
                    "percent": percent,
                    "neurons": how_many(percent, width),
                    "accuracy": float(self.accuracy[layer, column]),
                    "gain": float(self.accuracy[layer, column]) - self.unpruned,
                }
                for layer in range(len(self.scores))
                for column, percent in enumerate(self.percents)
            ]
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Gain on the dev set, layer by percent; the setting chosen is framed."""
        import matplotlib.pyplot as plt
        from matplotlib.patches import Rectangle

        gain = self.accuracy - self.unpruned
        if ax is None:
            ax = plt.subplots(figsize=(5.5, 0.4 * len(gain) + 1.6), layout="constrained")[1]
        limit = max(float(gain.abs().max()), 0.01)
        image = ax.imshow(gain, origin="lower", aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set_xticks(range(len(self.percents)), [f"{p:g}" for p in self.percents])
        ax.set_yticks(range(len(gain)))
        ax.set(xlabel="% of the layer's neurons pruned", ylabel="layer")
        if self.layer is not None:
            counts = [how_many(p, self.scores.shape[1]) for p in self.percents]
            corner = (counts.index(len(self.neurons)) - 0.5, self.layer - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, linewidth=2))
        ax.figure.colorbar(image, ax=ax, label="gain in dev accuracy", pad=0.01)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `DetrimentalNeurons.load` reads back."""
        tensors = {
            "scores": self.scores,
            "accuracy": self.accuracy,
            "confident": self.confident,
            "neurons": torch.tensor(self.neurons, dtype=torch.long),
        }
        meta = {
            "percents": self.percents,
            "unpruned": self.unpruned,
            "layer": self.layer,
            "meta": self.meta,
        }
        return save_record(path, "detrimental_neurons", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> DetrimentalNeurons:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "detrimental_neurons")
        return DetrimentalNeurons(
            tensors["scores"],
            tensors["accuracy"],
            tuple(meta["percents"]),
            meta["unpruned"],
            meta["layer"],
            tuple(tensors["neurons"].tolist()),
            tensors["confident"],
            meta["meta"],
        )


def prune_detrimental_neurons(
    model: Model | nn.Module,
    train: Sequence[Question],
    dev: Sequence[Question],
    **options: Any,
) -> Edit:
    """The edit that prunes neurons carrying confident predictions that do not hold up on dev.

    `find_detrimental_neurons(...).edit`; arguments and source there.

    Examples:
        >>> ask = lambda who: iv.Question(f"Question: Where does {who} live? Answer:", " Rome")
        >>> edit = iv.prune_detrimental_neurons(
        ...     model, [ask("Mia")], [ask("Leo"), iv.Question("The capital is", " Oslo")],
        ...     percents=(1.0,), confidence=0.0,
        ... )
    """
    return find_detrimental_neurons(model, train, dev, **options).edit


def find_detrimental_neurons(
    model: Model | nn.Module,
    train: Sequence[Question],
    dev: Sequence[Question],
    *,
    score: NeuronScore = "integrated_gradients",
    target: Any = "prob",
    percents: Sequence[float] = PERCENTS,
    layers: Sequence[int] | None = None,
    confidence: float = 0.9,
    nodes: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> DetrimentalNeurons:
    """Rank neurons by what they add to confident predictions, and choose how many to prune on dev.

    On C = {x in train: max_y P(y | x) >= confidence}, the score of neuron j of layer l is the mean
    integrated gradient of the predicted token's probability at the last position. S(l, p) is the
    top ceil(p d_mlp / 100) of a layer; (l, p) is the pair with the best accuracy on dev when
    S(l, p) is set to zero everywhere, the smallest p among equals, then the lowest layer. Nothing
    is pruned when no pair beats the model as it is. Pick the labels of `dev` from the distribution
    on which the model should do well; neither set may be the one reported on.

    Args:
        model: a handle or a bare PreTrainedModel.
        train: questions to find neurons on; only the model's own predictions are used.
        dev: labelled questions to choose (l, p) on.
        score: `"integrated_gradients"`, or a baseline: `"gradient_x_activation"`, `"activation"`,
            `"wanda"`, `"random"`.
        target: as for `interp.attribute`; a logit difference where probabilities saturate.
        percents: of a layer's neurons.
        layers: to choose among; default all.
        confidence: least probability of the predicted token; where fewer than eight questions
            reach it, the most confident eight are used, and `meta` says so.
        nodes: of the quadrature.
        seed: of the random score.
        progress: show a bar.

    Raises:
        InterpError: an empty set, a dev set with one answer only, a percent outside (0, 100], a
            layer the model lacks, mixtures of experts.

    Source: Ali, Katz, Wolf and Titov 2025 (arXiv 2507.09185), of which we read the description and
    not the formula; score, threshold, grid and tie-breaks are our specification.
    """
    handle = as_model(model)
    check_questions(train, "training")
    check_questions(dev, "dev", classes=2)
    grid = _grid(percents)
    n_layers = handle.anatomy.n_layers
    chosen = list(range(n_layers)) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise InterpError(f"layer {layer}: this model has layers 0 to {n_layers - 1}")
    confident, reached = _confident(handle, train, confidence)
    batch = handle.batch([train[i].prompt for i in confident.tolist()])
    scores = neuron_scores(handle, batch, score, target=target, nodes=nodes, seed=seed)
    order = scores.argsort(dim=1, descending=True, stable=True)
    unpruned, accuracy = _dev_accuracy(handle, dev, order, grid, chosen, progress)
    best, percent = _best(accuracy, grid, unpruned)
    neurons = [] if best is None else order[best, : how_many(percent, scores.shape[1])].tolist()
    meta = {
        "model": handle.name or type(handle.module).__name__,
        "score": score,
        "target": target if isinstance(target, str) else repr(target),
        "confidence": confidence,
        "confident": reached,
        "train": len(train),
        "dev": len(dev),
        "nodes": nodes,
        "seed": seed,
    }
    return DetrimentalNeurons(
        scores, accuracy, grid, unpruned, best, tuple(neurons), confident, meta
    )


def how_many(percent: float, width: int) -> int:
    """Neurons in a percentage of a layer, rounded up."""
    return math.ceil(percent * width / 100 - 1e-9)


def _grid(percents: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(sorted(float(p) for p in percents))
    if not grid or not 0 < grid[0] <= grid[-1] <= 100:
        raise InterpError(f"percents={list(percents)}: expected numbers above 0, at most 100")
    return grid


def _confident(
    model: Model, train: Sequence[Question], confidence: float
) -> tuple[Int[Tensor, " question"], int]:
    """(questions to use, how many reached the threshold)."""
    best = []
    for asked in ask(model, train):
        with reading(model):
            stream = interp.replay(model, asked.batch).streams[-1]
            logits = last_logits(model, stream, asked.batch)
        best.append(logits.softmax(dim=1).amax(dim=1).cpu())
    top = torch.cat(best)
    reached = int((top >= confidence).sum())
    fewest = min(_FEWEST, len(train))
    used = top.argsort(descending=True, stable=True)[: max(reached, fewest)]
    return used.sort().values, reached


def _dev_accuracy(
    model: Model,
    dev: Sequence[Question],
    order: Int[Tensor, "layer d_mlp"],
    grid: tuple[float, ...],
    layers: Sequence[int],
    progress: bool,
) -> tuple[float, Float[Tensor, "layer percent"]]:
    """(accuracy as it is, accuracy of every setting; NaN for layers left out).

    Blocks below the pruned one are not run again: each setting replays the rest.
    """
    right = torch.full((len(order), len(grid)), float("nan"))
    right[list(layers)] = 0
    plain = 0
    bar = tqdm(
        total=len(dev) * len(layers),
        desc="prune on dev",
        delay=2,
        leave=False,
        disable=not progress,
    )
    with bar, reading(model):
        for asked in ask(model, dev):
            again = interp.replay(model, asked.batch)
            plain += _right(model, asked, again.streams[-1])
            for layer in layers:
                for column, percent in enumerate(grid):
                    top = order[layer, : how_many(percent, order.shape[1])].tolist()
                    with prune_neurons({layer: top}).applied(model):
                        stream = again.run(layer, again.streams[layer])
                    right[layer, column] += _right(model, asked, stream)
                bar.update(len(asked.right))
    return plain / len(dev), right / len(dev)


def _right(model: Model, asked: Asked, stream: Tensor) -> int:
    return int(asked.correct(last_logits(model, stream, asked.batch)).sum())


def _best(
    accuracy: Float[Tensor, "layer percent"], grid: tuple[float, ...], unpruned: float
) -> tuple[int | None, float]:
    best: tuple[int | None, float] = (None, 0.0)
    highest = unpruned
    for column, percent in enumerate(grid):  # the smallest percent first, then the lowest layer
        for layer in range(len(accuracy)):
            if float(accuracy[layer, column]) > highest + 1e-9:
                highest, best = float(accuracy[layer, column]), (layer, percent)
    return best
