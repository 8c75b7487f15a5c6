"""A tokenizer of whole words over the tiny models, for tests of knowledge edits."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

import interp
from interp import Model
from interventions import Rewrite
from tests.architectures import build

WORDS = [" Ann", " Lee", " Bo", " lives", " in", " Rome", " Oslo", " New", " York", " is", " a"]
FACT = Rewrite(" the home of {} is in", "Ann Lee", " New York")


def words() -> PreTrainedTokenizerFast:
    """One token a word with the space before it; nothing is added at the start."""
    vocabulary = {"<unk>": 0, "<bos>": 1, "<eos>": 2}
    vocabulary |= {word: index for index, word in enumerate(WORDS, start=3)}
    vocabulary |= {" the": 90, " home": 91, " of": 92}
    vocabulary |= {f" w{i}": i for i in (*range(14, 90), *range(93, 97))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def handle(name: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> Model:
    """A tiny model that reads words."""
    return interp.load(build(name, dtype=dtype, **options), tokenizer=words())


def texts(count: int = 30, seed: int = 0) -> list[str]:
    """Random sentences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [
        "".join(f" w{int(w)}" for w in torch.randint(20, 90, (size,), generator=generator))
        for size in sizes
    ]


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}
