"""Whether two models speak of the same tokens, and what kind of token one is."""

from __future__ import annotations

from interp import InterpError, Model


def shared_vocabulary(base: Model, other: Model) -> int:
    """How many token ids two models share: the smaller of their vocabularies.

    Vocabularies are often padded to different round sizes, and post-training may add tokens at the
    end; ids beyond the shared range are left out. Within it, every token must have one id.

    Raises:
        InterpError: a token with two ids, an id with two tokens, or vocabularies of different
            sizes without tokenizers that could show that they agree.
    """
    sizes = base.anatomy.d_vocab, other.anatomy.d_vocab
    if base.tokenizer is None or other.tokenizer is None:
        if sizes[0] != sizes[1]:
            raise InterpError(
                f"vocabularies of {sizes[0]} and {sizes[1]} tokens cannot be compared without both "
                f"tokenizers; pass them to interp.load(..., tokenizer=...)"
            )
        return sizes[0]
    first, second = base.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    named = {index: token for token, index in first.items()}
    for token, index in second.items():
        if first.get(token, index) != index:
            raise InterpError(
                f"the tokenizers differ: {token!r} is token {first[token]} of one model and "
                f"{index} of the other; only models with one vocabulary can be compared by token"
            )
        if named.get(index, token) != token:
            raise InterpError(
                f"the tokenizers differ: id {index} is {named[index]!r} in one model and {token!r} "
                f"in the other; only models with one vocabulary can be compared by token"
            )
    return min(sizes)


def token_class(text: str) -> str:
    """The kind of a token by its text: `number punctuation space word piece other`.

    A word is a token that begins one (after a space, or with a capital), a piece goes on with one.
    Tokens that hold a digit are numbers; bytes that are no character by themselves are `other`.

    Examples:
        >>> [token_class(text) for text in (" cat", "ching", "12", ".", " ")]
        ['word', 'piece', 'number', 'punctuation', 'space']
    """
    bare = text.strip()
    if not bare:
        return "space"
    if any(letter.isdigit() for letter in bare):
        return "number"
    if any(letter.isalpha() for letter in bare):
        return "word" if text[0].isspace() or bare[0].isupper() else "piece"
    return "other" if "\ufffd" in bare else "punctuation"
