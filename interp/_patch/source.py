"""Whether activations of one checkpoint mean the same in another."""

from __future__ import annotations

from interp._errors import InterpError
from interp._model import Model


def check_source(model: Model, source: Model) -> None:
    """Refuse a source whose tokens or sizes are not the model's.

    Raises:
        InterpError: saying what differs.
    """
    ours, theirs = model.tokenizer, source.tokenizer
    if ours is not None and theirs is not None and ours is not theirs:
        one, other = ours.get_vocab(), theirs.get_vocab()
        if one != other:
            token = next(t for t in [*one, *other] if one.get(t) != other.get(t))
            raise InterpError(
                f"the tokenizers of model and source differ: {token!r} is token {one.get(token)} "
                f"in the one and {other.get(token)} in the other; patch between checkpoints of one "
                f"family"
            )
    a, b = model.anatomy, source.anatomy
    sizes = {
        "vocabulary": (a.d_vocab, b.d_vocab),
        "layers": (a.n_layers, b.n_layers),
        "width": (a.d_model, b.d_model),
        "heads": (a.n_heads, b.n_heads),
    }
    for name, (mine, other_size) in sizes.items():
        if mine != other_size:
            raise InterpError(
                f"model and source differ in {name}: {mine} and {other_size}; activations can be "
                f"patched between models of equal shapes only"
            )
