"""A tiny checkpoint on disk with a tokenizer of its own, so that commands run without a network."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from tests.architectures import build

WORDS = [" the", " capital", " of", " France", " is", " Paris", " Rome", " <b>bold</b>", " forgot"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained writes it; its tokens are words with their leading space."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = {"<unk>": 0, "<bos>": 1, "<eos>": 2}
    vocabulary |= {word: index for index, word in enumerate(WORDS, start=3)}
    vocabulary |= {f" w{i}": i for i in range(len(vocabulary), 97)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(" ", "merged_with_next")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.save_pretrained(folder)
    build("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer over other weights: somebody's tuned model."""
    folder = tmp_path_factory.mktemp("tuned")
    for file in checkpoint.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    build("llama", seed=5).save_pretrained(folder)
    return folder
