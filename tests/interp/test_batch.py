"""Prompts become ids, mask and positions; positions count real tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp._batch import make_batch
from tests.architectures import build

rows = st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=9), min_size=1, max_size=5)


@given(rows, st.sampled_from(["left", "right"]))
def test_a_batch_holds_its_prompts_whatever_the_padding(prompts, side) -> None:
    batch = make_batch(prompts, None, padding=side)
    assert batch.lengths.tolist() == [len(p) for p in prompts]
    assert batch.padded == (len(set(map(len, prompts))) > 1)
    for row, prompt in enumerate(prompts):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == prompt
        assert batch.position_ids[row][real].tolist() == list(range(len(prompt)))
        assert int(batch.position_ids.min()) >= 0


@given(rows, st.sampled_from(["left", "right"]), st.data())
def test_positions_find_the_same_token_from_either_end(prompts, side, data) -> None:
    batch = make_batch(prompts, None, padding=side)
    shortest = min(map(len, prompts))
    wanted = data.draw(st.lists(st.integers(-shortest, shortest - 1), min_size=1, max_size=4))
    columns, real = batch.columns(wanted)
    assert bool(real.all())
    found = batch.input_ids.gather(1, columns).tolist()
    assert found == [[prompt[at] for at in wanted] for prompt in prompts]
    columns, real = batch.columns("all")
    for row, prompt in enumerate(prompts):
        assert batch.input_ids[row, columns[row]][real[row]].tolist() == prompt
        assert real[row].tolist() == [i < len(prompt) for i in range(real.shape[1])]
    columns, _ = batch.columns("last")
    assert batch.input_ids.gather(1, columns)[:, 0].tolist() == [p[-1] for p in prompts]
    for outside in (shortest, -shortest - 1):
        with pytest.raises(interp.InterpError, match=f"position {outside} is outside prompt"):
            batch.columns(outside)


def test_every_form_of_prompt_gives_the_same_batch(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    ids = tokenizer("The capital")["input_ids"]
    forms = ["The capital", ["The capital"], [ids], torch.tensor(ids), torch.tensor([ids])]
    forms.append(model.batch("The capital"))
    for form in forms:
        assert model.batch(form).input_ids.tolist() == [ids]


def test_a_text_that_starts_with_the_bos_gets_no_second_one(sentencepiece) -> None:
    model = interp.load(build("llama"), tokenizer=sentencepiece)
    once = model.batch("The capital").input_ids.tolist()[0]
    assert once[0] == sentencepiece.bos_token_id
    again = model.batch("<s>The capital").input_ids.tolist()[0]
    assert again.count(sentencepiece.bos_token_id) == 1
    bare = model.batch("The capital", add_special_tokens=False).input_ids.tolist()[0]
    assert bare == once[1:]


def test_what_cannot_be_a_prompt_is_refused_with_its_reason(tokenizer) -> None:
    model = interp.load(build("llama"), tokenizer=tokenizer)
    for prompts, says in (
        ("", r"prompt 0 is empty"),
        (["is", ""], r"prompt 1 is empty"),
        ([], r"batch is empty"),
        ([[3, 4], []], r"prompt 1 has no tokens"),
        ([[3] * 129], r"prompt 0 has 129 tokens, over this model's context of 128"),
        ([[3, 97]], r"token id 97, outside this model's vocabulary of 97"),
        ([[3, -1]], r"token id -1, outside this model's vocabulary"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            model.batch(prompts)
    silent = interp.load(build("llama"))
    with pytest.raises(interp.InterpError, match=r"no tokenizer.*tokenizer=.*token ids"):
        silent.batch("text")
    with pytest.raises(interp.InterpError, match=r"needs a tokenizer.*generate on ids"):
        silent.generate("text")
    with pytest.raises(interp.InterpError, match=r"'is' is text and this model has no tokenizer"):
        interp.logit_lens(silent, [[3, 4]], "is")
