import random

import numpy as np
import pytest
import torch

import probes
from interp import InterpError

ODD = ["", "a", "ab", "aaa bbb aaa", "héé 😀 ", "  ", "aaaaaaaaaa", "\ud800 x", "x\ny\tz"]


def sacrebleu_matrix(texts: list[str]) -> torch.Tensor:
    chrf = pytest.importorskip("sacrebleu.metrics").CHRF()
    scores = [[chrf.sentence_score(a, [b]).score for b in texts] for a in texts]
    return torch.tensor(scores, dtype=torch.float64)


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeé1=", k=rng.randint(1, 6))) for _ in range(30)]
    return [" ".join(rng.choices(words, k=rng.randint(0, 25))) for _ in range(count)]


def test_every_pair_equals_sacrebleu() -> None:
    for texts in (ODD, sentences(40, 0)):
        got = probes.chrf_matrix(texts)
        torch.testing.assert_close(got, sacrebleu_matrix(texts), atol=1e-9, rtol=0)


def test_common_and_rare_n_grams_together_equal_sacrebleu() -> None:
    # Repeated blocks make n-grams that all texts have many times, beside ones that two have.
    texts = [("ab " * (5 + i % 3)) + f"{i % 11}{i % 7}xyz" for i in range(60)]
    torch.testing.assert_close(
        probes.chrf_matrix(texts), sacrebleu_matrix(texts), atol=1e-9, rtol=0
    )


def test_matrix_does_not_depend_on_who_else_is_in_it() -> None:
    texts = sentences(12, 1)
    both = probes.chrf_matrix(texts + sentences(30, 2))[:12, :12]
    assert torch.equal(both, probes.chrf_matrix(texts))


def test_no_texts_and_only_empty_texts() -> None:
    assert probes.chrf_matrix([]).shape == (0, 0)
    assert torch.equal(probes.chrf_matrix(["", " "]), torch.zeros(2, 2, dtype=torch.float64))


def test_white_space_is_left_out_and_order_matters() -> None:
    one = probes.chrf_matrix(["a b c d e f g", "abcdefg", "abc"]).numpy()
    assert one[0, 1] == 100
    assert not np.isclose(one[0, 2], one[2, 0])


def test_one_string_is_refused() -> None:
    with pytest.raises(InterpError, match=r"give a sequence of texts"):
        probes.chrf_matrix("text")
