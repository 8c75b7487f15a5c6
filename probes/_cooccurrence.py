"""How often words occur together in a corpus, and what share of a document is pivots."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """Counts of words over the units of a corpus: its documents, or windows of them.

    Args:
        words: the words counted, tokens or strings.
        units: N, how many documents or windows there are.
        joint: n(w, s), in how many units both stand; n(w) on the diagonal.
        tokens: how often each word stands in the corpus.
        total: tokens in the corpus, of any word.
    """

    words: tuple[Hashable, ...]
    units: int
    joint: Int[Tensor, "word word"]
    tokens: Int[Tensor, " word"]
    total: int

    __repr__ = brief

    @property
    def pmi(self) -> Float[Tensor, "word word"]:
        """PMI(w, s) = log [n(w, s) N / (n(w) n(s))] in nats.

        Minus infinity where two words never meet, NaN where one of them never occurs.
        """
        count = self.joint.diagonal().double()
        return ((self.joint * self.units).double().log() - count.outer(count).log()).float()

    @property
    def unigram(self) -> Float[Tensor, " word"]:
        """Share of the corpus's tokens that are this word."""
        return (self.tokens.double() / self.total).float()

    def table(self) -> pd.DataFrame:
        """One row a pair of different words: `word other count other_count joint pmi`.

        Counts are of units: those with the word, with the other, and with both.
        """
        import pandas as pd

        first, second = torch.triu_indices(len(self.words), len(self.words), offset=1)
        count = self.joint.diagonal()
        return pd.DataFrame(
            {
                "word": [self.words[i] for i in first.tolist()],
                "other": [self.words[i] for i in second.tolist()],
                "count": count[first].numpy(),
                "other_count": count[second].numpy(),
                "joint": self.joint[first, second].numpy(),
                "pmi": self.pmi[first, second].numpy(),
            }
        )


def cooccurrence(
    documents: Iterable[Sequence[Hashable]], words: Sequence[Hashable], *, window: int | None = None
) -> Cooccurrence:
    """Count in how many documents, or windows, words stand together: what their PMI is made of.

    Args:
        documents: each a sequence of tokens (ids or strings); read once.
        words: the words to count.
        window: tokens a window; every window of a document counts, and a shorter document is one.
            Default: documents whole.

    Raises:
        InterpError: no words, a word twice, a window below two, a text where tokens belong, no
            tokens at all.

    Examples:
        >>> found = probes.cooccurrence([["cat", "sat"], ["cat", "ran"]], ["cat", "sat", "ran"])
        >>> found.pmi[0, 1].item(), found.pmi[1, 2].item()
        (0.0, -inf)

    Source: pointwise mutual information, Church and Hanks 1990. That 2505.16385 counts in documents
    or windows is our specification: its text could not be read.
    """
    from scipy.sparse import csr_array

    index = {word: number for number, word in enumerate(words)}
    if not index or len(index) != len(words):
        raise InterpError(
            f"{len(words)} words, {len(index)} of them different; give each word once, at least one"
        )
    if window is not None and window < 2:
        raise InterpError(f"window={window}: words meet in windows of two tokens or more")
    tokens = torch.zeros(len(words), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    units = total = 0
    for number, document in enumerate(documents):
        _check_tokens(number, document)
        found = [index.get(token, -1) for token in document]
        total += len(found)
        for number in found:
            if number >= 0:
                tokens[number] += 1
        width = len(found) if window is None else window
        for start in range(max(1, len(found) - width + 1)):
            present = {number for number in found[start : start + width] if number >= 0}
            rows += [units] * len(present)
            columns += sorted(present)
            units += 1
    if not total:
        raise InterpError("the corpus holds no tokens; give a document that is not empty")
    there = csr_array(
        (torch.ones(len(rows), dtype=torch.long).numpy(), (rows, columns)),
        shape=(units, len(words)),
    )
    joint = torch.from_numpy((there.T @ there).toarray())
    return Cooccurrence(tuple(words), units, joint, tokens, total)


def pivot_ratio(
    documents: Iterable[Sequence[Hashable]], pivots: Iterable[Hashable]
) -> Float[Tensor, " document"]:
    """Share of each document's tokens that are pivot words; an empty document has none.

    Documents rich in pivots are what 2505.16385 continues pre-training on.

    Args:
        documents: each a sequence of tokens (ids or strings).
        pivots: the words that are a pivot of some translation.

    Raises:
        InterpError: no documents, a text where tokens belong, no pivots.

    Examples:
        >>> probes.pivot_ratio([["Vel", "water"], ["is", "told"]], ["water"]).tolist()
        [0.5, 0.0]

    Source: 2505.16385; the share of tokens is our specification, its text could not be read.
    """
    wanted = set(pivots)
    if not wanted:
        raise InterpError("no pivots; give the words that carry a meaning between two languages")
    shares = []
    for number, tokens in enumerate(documents):
        _check_tokens(number, tokens)
        shares.append(sum(token in wanted for token in tokens) / max(1, len(tokens)))
    if not shares:
        raise InterpError("no documents; give at least one")
    return torch.tensor(shares)


def _check_tokens(number: int, document: object) -> None:
    if isinstance(document, str):
        raise InterpError(
            f"document {number} is a text, of which single letters would be counted; give its "
            f"tokens, such as text.split() or a tokenizer's ids"
        )
