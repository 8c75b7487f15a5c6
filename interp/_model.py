"""A model as a plain handle: the untouched Hugging Face module, its tokenizer, its anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from interp._anatomy import Anatomy
from interp._batch import Batch, Prompts, make_batch
from interp._errors import InterpError
from interp._resolve import anatomy_of


@dataclass(frozen=True)
class Model:
    """What `interp.load` returns: four things and nothing else.

    The module is the one you would get from transformers: never wrapped, renamed or copied, so
    `save_pretrained`, peft and trl keep working on it.

    Args:
        module: the decoder.
        tokenizer: its tokenizer, or None (then prompts are token ids).
        name: where it came from, for records.
        revision: the commit of a hub checkpoint, where known.
        check: prove the anatomy on four tokens before first use.
    """

    module: Any = field(repr=False)  # a PreTrainedModel, or one that peft has wrapped
    tokenizer: Any = field(default=None, repr=False)
    name: str = ""
    revision: str | None = None
    check: bool = True

    @property
    def anatomy(self) -> Anatomy:
        """Where this module keeps its parts: blocks, norms, unembedding, sizes."""
        return anatomy_of(self.module)

    def batch(
        self,
        prompts: Prompts | Batch,
        *,
        padding: Literal["right", "left"] = "right",
        add_special_tokens: bool = True,
    ) -> Batch:
        """Texts or token ids as one batch whose padding never changes a result.

        Args:
            prompts: a text, a list or a column of texts, a tensor [batch pos], ragged lists of ids
                or what the tokenizer returns.
            padding: the side; results do not depend on it.
            add_special_tokens: as the tokenizer does by default; a text that already starts
                with the BOS token gets no second one.

        Raises:
            InterpError: an empty prompt, one over the context, an id outside the vocabulary, texts
                without a tokenizer, or chat messages.
        """
        anatomy = anatomy_of(self.module)
        return make_batch(
            prompts,
            self.tokenizer,
            padding=padding,
            add_special_tokens=add_special_tokens,
            max_positions=anatomy.max_positions,
            d_vocab=anatomy.embedding_weight.shape[0],
            device=anatomy.home,
        )

    def generate(
        self, prompts: str | Sequence[str] | Batch, *, max_new_tokens: int = 32, **options: Any
    ) -> list[str]:
        """Continuations of the prompts as texts, greedy unless `options` say otherwise.

        Args:
            prompts: texts or a batch.
            max_new_tokens: upper limit of new tokens.
            options: passed to the module's own `generate` (`do_sample=True`, `temperature=...`).
        """
        if self.tokenizer is None:
            raise InterpError("generating text needs a tokenizer; use model.module.generate on ids")
        sequences, start = generate_ids(self, prompts, max_new_tokens=max_new_tokens, **options)
        return self.tokenizer.batch_decode(sequences[:, start:], skip_special_tokens=True)


def generate_ids(
    model: Model, prompts: Any, *, max_new_tokens: int, **options: Any
) -> tuple[Tensor, int]:
    """Sequences [batch pos] and the column at which the new tokens start."""
    batch = model.batch(prompts)
    if batch.padded and not bool(batch.attention_mask[:, -1].all()):  # right-padded
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        batch = model.batch(rows, padding="left")
    settings: dict[str, Any] = {"do_sample": False, **options}
    if model.module.generation_config.pad_token_id is None and "pad_token_id" not in settings:
        pad = getattr(model.tokenizer, "pad_token_id", None)
        eos = model.module.generation_config.eos_token_id
        first_eos = eos[0] if isinstance(eos, list) else eos
        settings["pad_token_id"] = pad if pad is not None else first_eos
    with torch.no_grad():
        sequences = model.module.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            **settings,
        )
    return sequences, batch.input_ids.shape[1]


def as_model(model: Any) -> Model:
    """A handle over a module given bare."""
    if isinstance(model, Model):
        return model
    if not isinstance(model, torch.nn.Module):
        raise InterpError(
            f"expected a model, got {type(model).__name__}; open a checkpoint with interp.load(...)"
        )
    return Model(module=model)
