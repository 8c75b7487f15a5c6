"""Answers become the tokens that really follow a prompt, and their log-prob is exact."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._answers import answer_tokens, per_prompt
from tests.architectures import build
from tests.oracles import plain


def tokens_after(model, prompt, answer) -> list[int]:
    return answer_tokens(model, model.batch(prompt), [[answer]])[0][0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prompt_and_answer_tokens_are_those_of_the_whole_text(
    kind, tokenizer, sentencepiece
) -> None:
    """Byte-level and SentencePiece-like, with and without a space, of one and several tokens."""
    tok = {"gpt2": tokenizer, "llama": sentencepiece}[kind]
    model = interp.load(build(kind, vocab_size=len(tok)), tokenizer=tok)
    prompt = "The capital is"
    for answer in (" Paris", " Rome", " New York", " p"):
        found = tokens_after(model, prompt, answer)
        whole = tok(prompt + answer)["input_ids"]
        assert model.batch(prompt).input_ids[0].tolist() + found == whole
    assert len(tokens_after(model, prompt, " Paris")) == 1
    assert len(tokens_after(model, prompt, " New York")) > 1
    # A space of its own is kept: "isParis" is another text than "is Paris".
    assert tokens_after(model, prompt, "Paris") != tokens_after(model, prompt, " Paris")


def test_a_sentencepiece_answer_gets_no_second_space(sentencepiece) -> None:
    """Alone, the tokenizer would prepend one and give another token."""
    model = interp.load(build("llama", vocab_size=len(sentencepiece)), tokenizer=sentencepiece)
    alone = sentencepiece("ab", add_special_tokens=False)["input_ids"]
    assert tokens_after(model, "The", "ab") != alone
    assert sentencepiece.convert_ids_to_tokens(tokens_after(model, "The", "ab")) == ["ab"]


def test_an_answer_that_merges_with_the_prompt_is_refused(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    assert len(tokenizer("ab")["input_ids"]) == 1
    with pytest.raises(interp.InterpError, match=r"answer 'b' merges with the end of prompt 0"):
        tokens_after(model, "a", "b")


def test_answers_that_are_none_are_refused(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    for answer in ("", []):
        with pytest.raises(interp.InterpError, match="gives no tokens"):
            interp.logit_lens(model, "The", [[answer]])
    with pytest.raises(interp.InterpError, match="outside this model's vocabulary of 97"):
        interp.logit_lens(model, "The", 97)
    with pytest.raises(interp.InterpError, match="3 answers for 2 prompts"):
        interp.logit_lens(model, ["The", "is"], [5, 6, 7])
    with pytest.raises(interp.InterpError, match="same number of answers"):
        interp.logit_lens(model, ["The", "is"], [[5], [6, 7]])


def test_answers_are_shared_or_one_entry_a_prompt() -> None:
    assert per_prompt(" Paris", 2) == [[" Paris"], [" Paris"]]
    assert per_prompt([" Paris", " Rome"], 2) == [[" Paris"], [" Rome"]]
    assert per_prompt([" Paris", " Rome"], 1) == [[" Paris", " Rome"]]
    assert per_prompt([[1, 2], [3, 4]], 2) == [[1, 2], [3, 4]]
    assert per_prompt([[[1, 2]], [[3, 4, 5]]], 2) == [[[1, 2]], [[3, 4, 5]]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "mixtral", "gpt_oss"])
def test_a_whole_answers_logprob_is_that_of_teacher_forcing(name) -> None:
    """Prompts and answers of other lengths share a batch; each is checked alone."""
    model = build(name)
    prompts = [[5, 9, 11], [40, 41, 42, 43, 44, 45], [8]]
    answers = [[[7], [20, 21, 22]], [[60, 61], [7, 7]], [[50, 51, 52, 53], [3]]]
    found = interp.answer_logprob(model, prompts, answers)
    for row, prompt in enumerate(prompts):
        for column, answer in enumerate(answers[row]):
            ids = torch.tensor([prompt + answer])
            logprobs = plain.logits_of(model, ids)[0].double().log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            expected = sum(logprobs[i, token] for i, token in zip(at, answer, strict=True))
            torch.testing.assert_close(found[row, column].double(), expected, rtol=1e-5, atol=1e-4)


def test_the_lens_reads_whole_answers_at_every_layer() -> None:
    """Token by token, each as the lens reads it after the tokens before."""
    model = interp.load(build("llama"))
    prompts, answers = [[5, 9, 11], [40, 41]], [[[7, 8], [20, 21]], [[60, 61], [7, 9]]]
    trace = interp.logit_lens(model, prompts, answers)
    for row, prompt in enumerate(prompts):
        for column, answer in enumerate(answers[row]):
            expected = 0
            for n, token in enumerate(answer):
                step = interp.logit_lens(model, [prompt + answer[:n]], token)
                expected = expected + step.logprob[0, :, 0]
            torch.testing.assert_close(
                trace.answer_logprob[row, :, column], expected, rtol=1e-5, atol=1e-4
            )
    torch.testing.assert_close(
        trace.answer_logprob[:, -1],
        interp.answer_logprob(model, prompts, answers),
        rtol=1e-5,
        atol=1e-4,
    )


def test_texts_and_their_ids_give_the_same_logprob(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    by_text = interp.answer_logprob(model, "The capital is", [" Paris", " New York"])
    ids = model.batch("The capital is").input_ids
    tokens = [tokens_after(model, "The capital is", answer) for answer in (" Paris", " New York")]
    by_ids = interp.answer_logprob(model, ids, [tokens])
    torch.testing.assert_close(by_text, by_ids)
    from_ids = interp.answer_logprob(model, ids, [" Paris", " New York"])
    torch.testing.assert_close(by_text, from_ids)
