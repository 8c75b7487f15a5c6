"""Next-token logits of whole texts, never more than a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp import InterpError, Model, Site
from interp._anatomy import Anatomy
from interp._answers import gather_streams
from interp._reading import reading
from probes._token_rows import TokenRow

_CHUNK = 2**23  # logits of one model held at once: 32 MiB in float32


def last_streams(model: Model, rows: Sequence[TokenRow]) -> Float[Tensor, "row d_model"]:
    """The stream after the last block at every measured position of some texts; one forward."""
    batch = model.batch([row.ids for row in rows])  # padded on the right: columns are positions
    which = torch.cat([torch.full((row.stop - row.start,), i) for i, row in enumerate(rows)])
    where = torch.cat([torch.arange(row.start, row.stop) for row in rows])
    site = Site("resid_post", model.anatomy.n_layers - 1)
    return gather_streams(model, batch, [site], which, where)[site]


def chunks(n_rows: int, d_vocab: int, chunk: int | None) -> Iterator[slice]:
    """Positions whose logits are held at once: `chunk`, or as many as fit in 32 MiB (128 at least).

    More would be mapped anew by malloc for every chunk; fewer would read the unembedding more often
    than its product is worth.
    """
    if chunk is not None and chunk < 1:
        raise InterpError(f"chunk={chunk}: expected at least 1 position")
    size = chunk or max(128, _CHUNK // d_vocab)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def logits_of(anatomy: Anatomy, streams: Tensor, vocab: int) -> Float[Tensor, "row vocab"]:
    """Logits of the shared ids in float32 (float64 where the model is)."""
    logits = anatomy.unembed(streams)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if logits.shape[-1] == vocab else logits[:, :vocab].contiguous()


def target_ids(row: TokenRow) -> list[int]:
    """The token that each measured position should predict; -1 after the text's end."""
    return [*row.ids[row.start + 1 : row.stop + 1], *([-1] * (row.stop == len(row.ids)))]


def target_logprobs(
    model: Model, rows: Sequence[TokenRow], *, vocab: int, chunk: int | None = None
) -> list[Float[Tensor, " token"]]:
    """Log p(token | tokens before it) of each row's targets, in nats; one forward.

    Raises:
        InterpError: logits that are not finite, naming text and position.
    """
    targets = torch.tensor([token for row in rows for token in target_ids(row)])
    found = torch.empty(len(targets), dtype=torch.float64)
    anatomy = model.anatomy
    with reading(model):
        streams = last_streams(model, rows)
        for part in chunks(len(streams), vocab, chunk):
            logprobs = logits_of(anatomy, streams[part], vocab).log_softmax(-1)
            wanted = targets[part].clamp(min=0).to(logprobs.device)
            found[part] = logprobs.gather(1, wanted[:, None])[:, 0].double().cpu()
    bad = (~found.isfinite()).nonzero()
    if len(bad):
        raise not_finite(model, rows, int(bad[0]))
    kept = found.masked_fill(targets < 0, float("nan")).float()
    return list(kept.split([row.stop - row.start for row in rows]))


def not_finite(model: Model, rows: Sequence[TokenRow], number: int) -> InterpError:
    """What to say of logits with NaN or infinity at one of the measured positions."""
    for row in rows:
        if number < row.stop - row.start:
            return InterpError(
                f"{model.name or type(model.module).__name__} gives logits that are not finite at "
                f"text {row.index}, position {row.start + number}; check its weights, or load it "
                f"with dtype=torch.float32 if float16 overflowed"
            )
        number -= row.stop - row.start
    raise IndexError(number)
