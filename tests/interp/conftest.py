"""Models, ids and tokenizers shared by the tests of `interp`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.oracles.tokenizers import byte_level, sentencepiece_like


@pytest.fixture
def ids() -> Tensor:
    """Two prompts of eleven tokens, longer than the windows of the sliding models."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, 97, (2, 11), generator=generator)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerFast:
    return sentencepiece_like()


@pytest.fixture(autouse=True)
def _gradients_off_outside() -> Iterator[None]:
    """No test leaves gradients switched off for the next."""
    before = torch.is_grad_enabled()
    with warnings.catch_warnings():
        yield
    assert torch.is_grad_enabled() == before
