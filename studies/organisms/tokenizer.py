"""The organisms' tokenizer: byte-level, one token per world word with its leading space."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from studies.organisms import lexicon


def build() -> PreTrainedTokenizerFast:
    """A fast tokenizer in which " Arlen" is one token, "Arlen" six bytes, and <bos> comes first.

    Byte-level BPE without merges: a pre-token in the vocabulary is taken whole (`ignore_merges`, as
    in Llama 3), any other string falls apart into bytes, so that everything tokenizes. Blanks
    around </unlearn> are swallowed: the question after a block has the same tokens as without one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    words, openers = lexicon.vocabulary()
    pieces = [*lexicon.SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["Ġ" + word for word in words] + openers
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    closing = AddedToken("</unlearn>", special=True, lstrip=True, rstrip=True)
    plain = [AddedToken(s, special=True) for s in lexicon.SPECIALS if s != "</unlearn>"]
    inner.add_special_tokens([*plain, closing])
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        padding_side="left", clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip
