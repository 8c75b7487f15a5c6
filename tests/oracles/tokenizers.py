"""Tiny tokenizers made in memory, of the two kinds that treat spaces differently."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: a space belongs to the word after it; no token is added at the start.

    Has words with and without their space, so that " Paris" is one token and "Paris" another, and
    "ab" merges where "a" and "b" meet.
    """
    words = ["ĠParis", "ĠRome", "Ġcapital", "Ġis", "ĠNew", "ĠYork", "Paris", "Rome", "The", "ab"]
    letters = [*"abcdefghijklmnopqrstuvwxyzPRTNY", "Ġ"]
    return _bpe(words, letters, pre_tokenizers.ByteLevel(add_prefix_space=False), None, bos=False)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama's kind: a space is prepended to the text and written as U+2581; BOS comes first."""
    words = ["▁Paris", "▁Rome", "▁The", "▁capital", "▁is", "Paris", "ab"]
    letters = [*"abcdefghijklmnopqrstuvwxyzPRTNY", "▁"]
    normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # as in Llama's file
    )
    return _bpe(words, letters, None, normalizer, bos=True)


def _bpe(
    words: list[str], letters: list[str], before: object, normalizer: object, *, bos: bool
) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):  # every prefix, so that BPE can reach the word
            prefix = word[:end]
            if prefix not in vocabulary:
                vocabulary[prefix] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.add_special_tokens(SPECIAL)
    if before is not None:
        core.pre_tokenizer = before
        core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
