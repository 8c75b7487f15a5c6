"""`divergence`: how two models differ in what they would say next, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import InterpError, Model
from interp._answers import text_of
from interp._model import as_model
from interp._reading import reading, require_unembed
from probes._divergence_measure import measure
from probes._divergence_record import Divergence
from probes._next_token import chunks, last_streams, logits_of, not_finite, target_ids
from probes._token_rows import TokenRow, token_rows
from probes._vocabulary import shared_vocabulary, token_class


def divergence(
    base: Model | nn.Module,
    tuned: Model | nn.Module,
    texts: Iterable[Any],
    *,
    completions: Iterable[Any] | None = None,
    classify: Callable[[str], str] = token_class,
    batch_size: int = 16,
    chunk: int | None = None,
    progress: bool = False,
) -> Divergence:
    """KL(base || tuned) = sum_v p(v) (log p(v) - log q(v)) and its kin, at each token of texts.

    Both models read the same tokens. At every position their next-token distributions p (base) and
    q (tuned) are compared: both KL divergences, total variation, the top tokens, the rank of the
    tuned model's top token under the base (token shift), entropies, and the log-prob of the token
    that really follows. Memory holds one batch's last streams and the logits of one chunk of
    positions, never batch x pos x vocab.

    Where the models' vocabularies are padded to different sizes, or one has tokens added at the
    end, both distributions are renormalised over the ids they share (`meta["vocab"]`). The models
    may be of different architectures and on different devices.

    Args:
        base: a handle or a bare PreTrainedModel.
        tuned: what became of it.
        texts: texts or lists of token ids; any iterable, read once.
        completions: what follows each text; then only the completions' tokens are measured. KL on
            samples of the base for a new task's prompts is the predictor of RL's Razor.
        classify: the class of a token by its text; special tokens are "special" before it is asked,
            and the prediction after a text's last token is of class "end".
        batch_size: texts a forward.
        chunk: positions whose logits are held at once; by default 32 MiB of them a model.
        progress: show a bar.

    Returns:
        Divergence, one row a position, in nats; `.summary("class")` gives means with intervals.

    Raises:
        InterpError: different tokenizers or vocabularies, no texts, a text that is empty, too long
            or cut differently by the tuned model's tokenizer, logits that are not finite (naming
            text and position).

    Examples:
        >>> tuned = model                                   # two models in real life
        >>> div = probes.divergence(model, tuned, texts)
        >>> div.summary()[["measure", "mean", "low", "high"]]
        >>> div.table().sort_values("forward").tail(3)      # where they differ most

    Source: token shift is Lin et al. 2023 (URIAL, arXiv 2312.01552); forward KL on the new task as
    a predictor of forgetting is Shenfeld et al. 2025 (RL's Razor, arXiv 2509.04259), who average
    over tokens as `summary` does.
    """
    first, second = as_model(base), as_model(tuned)
    for model in (first, second):
        require_unembed(model)
    vocab = shared_vocabulary(first, second)
    if batch_size < 1:
        raise InterpError(f"batch_size={batch_size}: expected at least 1 text")
    rows = token_rows((first, second), texts, completions, vocab=vocab)
    parts: list[dict[str, Tensor]] = []
    total = len(texts) if isinstance(texts, Sequence) else None
    with tqdm(total=total, desc="divergence", unit="text", disable=not progress) as bar:
        while batch := list(islice(rows, batch_size)):
            parts.append(_batch(first, second, batch, vocab, chunk))
            bar.update(len(batch))
    if not parts:
        raise InterpError("no texts; give at least one")
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tokens = _tokens(first, columns)
    kinds, names = _classes(first, columns["target"], tokens, classify)
    meta = {
        "base": first.name or type(first.module).__name__,
        "tuned": second.name or type(second.module).__name__,
        "vocab": vocab,
        "vocabularies": [first.anatomy.d_vocab, second.anatomy.d_vocab],
        "texts": int(columns["text"].max()) + 1,
        "completions": completions is not None,
    }
    return Divergence(**columns, kind=kinds, kinds=names, tokens=tokens, meta=meta)


def _batch(
    base: Model, tuned: Model, rows: list[TokenRow], vocab: int, chunk: int | None
) -> dict[str, Tensor]:
    """Every column of one batch of texts."""
    where = {
        "text": [row.index for row in rows for _ in range(row.start, row.stop)],
        "position": [at for row in rows for at in range(row.start, row.stop)],
        "token": [token for row in rows for token in row.ids[row.start : row.stop]],
        "target": [token for row in rows for token in target_ids(row)],
    }
    columns = {name: torch.tensor(values) for name, values in where.items()}
    measured: dict[str, list[Tensor]] = {}
    anatomies = base.anatomy, tuned.anatomy  # found anew at each access
    with reading(base), reading(tuned):
        streams = last_streams(base, rows), last_streams(tuned, rows)
        for part in chunks(len(streams[0]), vocab, chunk):
            old = logits_of(anatomies[0], streams[0][part], vocab)
            new = logits_of(anatomies[1], streams[1][part], vocab).to(old.device)
            targets = columns["target"][part].to(old.device)
            for name, value in measure(old, new, targets).items():
                measured.setdefault(name, []).append(value.cpu())
            del old, new  # before the next chunk is computed: one at a time
    columns |= {name: torch.cat(values) for name, values in measured.items()}
    broken = ~(columns["forward"].isfinite() & columns["reverse"].isfinite())
    if bool(broken.any()):
        number = int(broken.nonzero()[0])
        raise _blame(base, tuned, streams[0][number : number + 1], rows, number, vocab)
    return columns


def _blame(
    base: Model,
    tuned: Model,
    stream: Tensor,
    rows: list[TokenRow],
    number: int,
    vocab: int,
) -> InterpError:
    """Whose logits are not finite, found by computing them again."""
    with reading(base):
        fine = bool(logits_of(base.anatomy, stream, vocab).isfinite().all())
    return not_finite(tuned if fine else base, rows, number)


def _tokens(model: Model, columns: dict[str, Tensor]) -> dict[int, str]:
    """Text of every token that the record mentions."""
    named = ("token", "target", "base_top", "tuned_top")
    ids = torch.cat([columns[name] for name in named]).unique().tolist()
    return {token: text_of(model, token) for token in ids if token >= 0}


def _classes(
    model: Model, targets: Tensor, tokens: dict[int, str], classify: Callable[[str], str]
) -> tuple[Tensor, list[str]]:
    """[row] index of the class of each target, and the classes' names."""
    special = set(getattr(model.tokenizer, "all_special_ids", None) or ())
    by_token = {-1: "end"}
    for token in targets.unique().tolist():
        if token >= 0:
            if model.tokenizer is None and classify is token_class:
                by_token[token] = "token"
            else:
                by_token[token] = "special" if token in special else classify(tokens[token])
    names = sorted(set(by_token.values()))
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[by_token[token]] for token in targets.tolist()]), names
