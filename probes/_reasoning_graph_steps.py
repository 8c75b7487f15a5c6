"""Steps of a rollout and what stands for each of them: a point in one space for all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import InterpError, Model
from interp._model import as_model
from probes._rollouts import Rollout, labels

Separator = str | Callable[[str], Sequence[str]]
Embedding = Callable[[list[str]], Any]
DIMENSIONS = 128  # of the fallback
_DEPTH = 0.9  # of the layers; what the sibling paper reads (2506.05744)


def split(rollouts: Sequence[Rollout], separator: Separator) -> list[list[str]]:
    """Steps of every rollout, stripped, empty ones left out.

    Raises:
        InterpError: nothing but empty texts, or no rollout with more than one step.
    """
    if isinstance(separator, str):
        if not separator:
            raise InterpError("the separator is empty; give the string between steps, such as ';'")
        parts = [rollout.text.split(separator) for rollout in rollouts]
    else:
        parts = [list(separator(rollout.text)) for rollout in rollouts]
    steps = [[part.strip() for part in row if part and part.strip()] for row in parts]
    if not any(steps):
        raise InterpError(f"all {len(rollouts)} traces are empty, so there are no steps")
    if max(map(len, steps)) < 2:
        how = f"contains {separator!r} between two steps"
        if not isinstance(separator, str):
            how = "is split into more than one step"
        raise InterpError(
            f"none of the {len(rollouts)} traces {how}; give separator= the string between steps "
            f"(such as ';' or a newline), or a function from a text to its steps"
        )
    return steps


def points(
    rollouts: Sequence[Rollout],
    steps: Sequence[Sequence[str]],
    embed: Model | nn.Module | Embedding | None,
    layer: int | None,
    batch_size: int,
    seed: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Distinct points [point d] in float32, the point of every step in order, and how in words."""
    flat = [step for row in steps for step in row]
    if isinstance(embed, Model | nn.Module):
        return _hidden(rollouts, steps, as_model(embed), layer, batch_size, progress)
    if layer is not None:
        raise InterpError("layer says where a model is read, but embed is no model")
    unique, which = labels(flat)
    if embed is None:
        return tfidf(unique, seed), np.array(which), "TF-IDF of character n-grams"
    found = np.asarray(embed(unique), dtype=np.float32)
    if found.ndim != 2 or len(found) != len(unique):
        raise InterpError(
            f"embed returned an array of shape {list(found.shape)} for {len(unique)} steps; "
            f"expected one row a step"
        )
    return _finite(found, "embed"), np.array(which), getattr(embed, "__name__", "callable")


def tfidf(texts: Sequence[str], seed: int) -> np.ndarray:
    """TF-IDF of character n-grams (1 to 4, within words), reduced by a truncated SVD, unit length.

    A fallback that knows spelling and nothing of meaning.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectoriser = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=2**14,
        dtype=np.float32,
    )  # fmt: skip
    counts = vectoriser.fit_transform(texts)
    if min(counts.shape) <= DIMENSIONS:
        return np.asarray(counts.toarray(), dtype=np.float32)
    reduced = TruncatedSVD(DIMENSIONS, random_state=seed).fit_transform(counts)
    return np.asarray(normalize(reduced), dtype=np.float32)


def _hidden(
    rollouts: Sequence[Rollout],
    steps: Sequence[Sequence[str]],
    model: Model,
    layer: int | None,
    batch_size: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean over each step's tokens of one layer's stream, read in its context."""
    layer = round(_DEPTH * (model.anatomy.n_layers - 1)) if layer is None else layer
    site = f"resid_post.{layer}"
    texts, which = labels(rollout.prompt + "\0" + rollout.text for rollout in rollouts)
    first: dict[int, int] = {}
    for rollout, text in enumerate(which):
        first.setdefault(text, rollout)
    read = [(rollouts[i], steps[i]) for i in (first[t] for t in range(len(texts)))]
    located = [_tokens(model, rollout, row) if row else ([], []) for rollout, row in read]
    order = sorted(
        (i for i, (ids, _) in enumerate(located) if ids), key=lambda i: -len(located[i][0])
    )
    found: dict[int, Tensor] = {}
    batches = range(0, len(order), batch_size)
    for at in tqdm(batches, desc="embed steps", disable=not progress):
        chosen = order[at : at + batch_size]
        acts = interp.capture(model, [located[i][0] for i in chosen], site)[site].float()
        for row, i in enumerate(chosen):
            spans = located[i][1]
            found[i] = torch.stack([acts[row, span].mean(0) for span in spans])
    start = np.cumsum([0] + [len(row) for _, row in read])
    stacked = torch.cat([found[i] for i in range(len(read)) if i in found]).numpy()
    place = [np.arange(start[text], start[text + 1]) for text in which]
    where = f"{model.name or type(model.module).__name__} {site}"
    return _finite(stacked, where), np.concatenate(place), where


def _tokens(model: Model, rollout: Rollout, steps: Sequence[str]) -> tuple[list[int], list[Any]]:
    """Token ids of prompt and text, and the positions of each step's tokens."""
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise InterpError(
            "reading steps from hidden states needs the model's fast tokenizer, which knows "
            "where each token stands; load the model with one, or pass embed= a function"
        )
    text = rollout.prompt + rollout.text
    bos = getattr(tokenizer, "bos_token", None)
    encoded = tokenizer(
        text,
        add_special_tokens=not (bos and text.startswith(bos)),
        return_offsets_mapping=True,
    )
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    spans, end = [], len(rollout.prompt)
    for step in steps:
        begin = text.find(step, end)
        if begin < 0:
            raise InterpError(
                f"the step {step[:40]!r} does not stand in its text; to read hidden states the "
                f"separator must return pieces of the text as they are"
            )
        end = begin + len(step)
        inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin))
        if len(inside) == 0:
            raise InterpError(f"the step {step[:40]!r} has no tokens of its own")
        spans.append(torch.from_numpy(inside))
    return list(encoded["input_ids"]), spans


def _finite(found: np.ndarray, where: str) -> np.ndarray:
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise InterpError(
            f"{int(bad.sum())} of {len(found)} steps have values from {where} that are not finite"
        )
    return found
