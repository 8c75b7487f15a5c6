"""The entropy of the next-token distribution along a generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp import InterpError, Model
from interp._answers import text_of
from interp._model import as_model, generate_ids
from interp._reading import reading, require_unembed
from interp._record import load_record, save_record
from probes._brief import brief
from probes._next_token import chunks, last_streams, logits_of, not_finite
from probes._token_rows import TokenRow, token_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class EntropyTrace:
    """H_t at each step of several generations; NaN beyond a generation's end.

    Args:
        entropy: H_t in nats, of the distribution from which token t was drawn.
        smoothed: its exponential moving average.
        token: the token drawn, -1 beyond the end.
        tokens: text of every token mentioned.
        meta: the model and the arguments.
    """

    entropy: Float[Tensor, "text step"]
    smoothed: Float[Tensor, "text step"]
    token: Int[Tensor, "text step"]
    tokens: dict[int, str]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def peak(self) -> Int[Tensor, " text"]:
        """The step at which the smoothed entropy is greatest: exploration ends there (V-Reason)."""
        return self.smoothed.nan_to_num(nan=-1.0).argmax(1)

    def table(self) -> pd.DataFrame:
        """One row a step: `text step token entropy smoothed`."""
        import pandas as pd

        text, step = (self.token >= 0).nonzero(as_tuple=True)
        return pd.DataFrame(
            {
                "text": text.numpy(),
                "step": step.numpy(),
                "token": [self.tokens[token] for token in self.token[text, step].tolist()],
                "entropy": self.entropy[text, step].numpy(),
                "smoothed": self.smoothed[text, step].numpy(),
            }
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The smoothed trace of each text, and their mean in black."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(6.0, 3.2), layout="constrained")[1]
        for row in self.smoothed:
            ax.plot(row.numpy(), color="C0", alpha=0.35, linewidth=1)
        ax.plot(self.smoothed.nanmean(0).numpy(), color="black")
        ax.set(xlabel="token generated", ylabel="entropy, nats")
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `EntropyTrace.load` reads back, whole or not at all."""
        tensors = {"entropy": self.entropy, "smoothed": self.smoothed, "token": self.token}
        tokens = {str(token): text for token, text in self.tokens.items()}
        meta = {"tokens": tokens, "trace": self.meta}
        return save_record(path, "entropy_trace", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> EntropyTrace:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "entropy_trace")
        tokens = {int(token): text for token, text in meta["tokens"].items()}
        return EntropyTrace(**tensors, tokens=tokens, meta=meta["trace"])


def entropy_trace(
    model: Model | nn.Module,
    prompts: Any,
    completions: Iterable[Any] | None = None,
    *,
    max_new_tokens: int = 128,
    decay: float = 0.0,
    batch_size: int = 8,
    chunk: int | None = None,
    **options: Any,
) -> EntropyTrace:
    """H_t = -sum_v p(v | x_<t) log p(v | x_<t) for every token t of a generation, and its EMA.

    The model's own distribution, before temperature and other processors. Without completions it
    generates them (greedily unless `options` say otherwise); with them, it reads them.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: texts or lists of token ids.
        completions: what was written after each prompt; the texts need not be this model's.
        max_new_tokens: upper limit of new tokens.
        decay: of the moving average e_t = decay e_(t-1) + (1 - decay) H_t, with e_0 = H_0; 0 leaves
            the trace as it is.
        batch_size: texts a forward.
        chunk: positions whose logits are held at once.
        options: for the module's own `generate`; one sequence a prompt.

    Raises:
        InterpError: decay outside 0 to 1, no prompts, logits that are not finite.

    Examples:
        >>> trace = probes.entropy_trace(model, texts[:2], max_new_tokens=8, decay=0.9)
        >>> trace.table()[["text", "step", "entropy"]]

    Source: V-Reason (2510.17045), from its reviews.
    """
    if not 0.0 <= decay < 1.0:
        raise InterpError(f"decay={decay}: expected at least 0 and less than 1")
    if batch_size < 1:
        raise InterpError(f"batch_size={batch_size}: expected at least 1 text")
    handle = as_model(model)
    require_unembed(handle)
    vocab = handle.anatomy.d_vocab
    if completions is None:
        rows = _generated(handle, prompts, max_new_tokens, batch_size, options, vocab)
    else:
        rows = list(token_rows([handle], prompts, completions, vocab=vocab))
    if not rows:
        raise InterpError("no prompts; give at least one")
    traces: list[Tensor] = []
    for begin in range(0, len(rows), batch_size):
        traces += _entropies(handle, rows[begin : begin + batch_size], vocab, chunk)
    entropy = nn.utils.rnn.pad_sequence(traces, batch_first=True, padding_value=float("nan"))
    drawn = [torch.tensor(row.ids[row.start + 1 : row.stop + 1]) for row in rows]
    token = nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=-1)
    names = {t: text_of(handle, t) for t in token.unique().tolist() if t >= 0}
    meta = {"model": handle.name or type(handle.module).__name__, "decay": decay}
    return EntropyTrace(entropy, _average(entropy, decay), token, names, meta)


def _generated(
    model: Model, prompts: Any, limit: int, batch_size: int, options: dict[str, Any], vocab: int
) -> list[TokenRow]:
    """Each prompt with the model's own continuation, its EOS included."""
    if options.get("num_return_sequences", 1) != 1:
        raise InterpError("entropy_trace follows one sequence a prompt; repeat the prompt instead")
    starts = list(token_rows([model], prompts, vocab=vocab))
    ends = options.get("eos_token_id", model.module.generation_config.eos_token_id)
    stops = set(ends) if isinstance(ends, list) else {ends}
    rows = []
    for begin in range(0, len(starts), batch_size):
        some = starts[begin : begin + batch_size]
        given = [row.ids for row in some]
        sequences, at = generate_ids(model, given, max_new_tokens=limit, **options)
        for row, new in zip(some, sequences[:, at:].tolist(), strict=True):
            last = next((i for i, t in enumerate(new) if t in stops), len(new) - 1)
            ids = row.ids + new[: last + 1]
            rows.append(TokenRow(row.index, ids, len(row.ids) - 1, len(ids) - 1))
    return rows


def _entropies(model: Model, rows: list[TokenRow], vocab: int, chunk: int | None) -> list[Tensor]:
    anatomy = model.anatomy
    parts = []
    with reading(model):
        streams = last_streams(model, rows)
        for part in chunks(len(streams), vocab, chunk):
            logprobs = logits_of(anatomy, streams[part], vocab).log_softmax(-1)
            parts.append(-(logprobs.exp() * logprobs).sum(-1).cpu())
    found = torch.cat(parts).float()
    bad = (~found.isfinite()).nonzero()
    if len(bad):
        raise not_finite(model, rows, int(bad[0]))
    return list(found.split([row.stop - row.start for row in rows]))


def _average(entropy: Tensor, decay: float) -> Tensor:
    if decay == 0.0:
        return entropy.clone()
    steps = [entropy[:, 0]]
    for now in entropy.unbind(1)[1:]:
        steps.append(decay * steps[-1] + (1 - decay) * now)
    return torch.stack(steps, dim=1)
