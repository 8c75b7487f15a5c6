"""Positions mean the same tokens with and without a cache, under any padding, and in beams."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import Affine, Edit
from tests.architectures import build

PROMPTS = [[5, 17, 44, 8, 60], [9, 31, 7], [71]]
SHIFT = 3 * torch.linspace(-1, 1, 32)
EVERYWHERE = ["all", "prompt", "last", "generated", (0,), (-1,), (6,), (0, 6)]


def edit_at(positions) -> Edit:
    return Edit([Affine("resid_post.1", scale=0.5, shift=SHIFT, positions=positions)])


def greedy(model, prompts, padding: str, **options) -> list[list[int]]:
    batch = interp.load(model).batch(prompts, padding=padding)
    out = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return out[:, batch.input_ids.shape[1] :].tolist()


def by_hand(model, prompt: list[int], positions, steps: int = 5) -> list[int]:
    """Greedy without a cache; the edit as a function that knows the prompt's length."""
    tokens = list(prompt)
    n = len(prompt)

    def edited(x, _site):
        chosen = {
            "all": range(len(tokens)),
            "prompt": range(n),
            "last": [n - 1],
            "generated": range(n, len(tokens)),
        }
        which = (
            chosen[positions]
            if isinstance(positions, str)
            else [p if p >= 0 else n + p for p in positions]
        )
        y = x.clone()
        for place in which:
            if place < len(tokens):
                y[:, place] = 0.5 * x[:, place] + SHIFT
        return y

    with torch.no_grad(), interp.hooked(model, {"resid_post.1": edited}):
        for _ in range(steps):
            logits = model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[n:]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "qwen3_next", "falcon"])
@pytest.mark.parametrize("positions", EVERYWHERE, ids=str)
def test_generation_with_a_cache_equals_a_loop_without_one(name, positions) -> None:
    model = build(name)
    expected = [by_hand(model, prompt, positions) for prompt in PROMPTS]
    for prompt, wanted in zip(PROMPTS, expected, strict=True):
        with edit_at(positions).applied(model):
            assert greedy(model, [prompt], "left") == [wanted]


@pytest.mark.parametrize("positions", EVERYWHERE, ids=str)
def test_left_padded_prompts_generate_what_each_generates_alone(positions) -> None:
    model = build("llama")
    expected = [by_hand(model, prompt, positions) for prompt in PROMPTS]
    with edit_at(positions).applied(model):
        assert greedy(model, PROMPTS, "left") == expected


@pytest.mark.parametrize("positions", EVERYWHERE, ids=str)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_never_changes_a_result(positions, padding) -> None:
    model = build("llama")
    batch = interp.load(model).batch(PROMPTS, padding=padding)
    with edit_at(positions).applied(model, prompt_len=batch.lengths), torch.no_grad():
        logits = model(**batch.inputs).logits
    for row, prompt in enumerate(PROMPTS):
        with edit_at(positions).applied(model), torch.no_grad():
            alone = model(torch.tensor([prompt])).logits[0]
        real = batch.attention_mask[row].bool()
        torch.testing.assert_close(logits[row, real], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["prompt", "last", "generated", (-1,)], ids=str)
def test_beams_and_samples_follow_their_prompt(positions) -> None:
    """The best of beams has the score that a forward over the finished text gives it."""
    model = build("llama")
    batch = interp.load(model).batch(PROMPTS[:2], padding="left")
    with edit_at(positions).applied(model):
        out = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=4,
            num_beams=3,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            length_penalty=0.0,
        )
    for row, prompt in enumerate(PROMPTS[:2]):
        new = out.sequences[row, batch.input_ids.shape[1] :].tolist()
        with edit_at(positions).applied(model, prompt_len=len(prompt)), torch.no_grad():
            logits = model(torch.tensor([prompt + new]), use_cache=False).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        score = logprobs.gather(1, torch.tensor(new)[:, None]).sum()
        torch.testing.assert_close(out.sequences_scores[row], score, rtol=1e-4, atol=1e-4)


def test_a_second_generation_starts_a_new_prompt() -> None:
    model = build("llama")
    with edit_at("generated").applied(model):
        first = [greedy(model, [p], "left") for p in PROMPTS]
        again = [greedy(model, [p], "left") for p in PROMPTS]
    assert first == again


def test_values_of_another_prompt_go_where_its_tokens_were() -> None:
    """A shift with batch and pos: row i, token p gets shift[i, p], under both paddings."""
    model = build("llama")
    values = torch.randn(3, 5, 4, 8)
    edit = Edit([Affine("z.1", (2, 0), 0.0, values[:, :, [2, 0]])])
    for padding in ("left", "right"):
        batch = interp.load(model).batch(PROMPTS, padding=padding)
        with edit.applied(model):
            z = interp.capture(model, batch, "z.1")["z.1"]
        for row, prompt in enumerate(PROMPTS):
            here = z[row, : len(prompt)]
            assert torch.equal(here[:, [0, 2]], values[row, : len(prompt)][:, [0, 2]])
    with (
        pytest.raises(interp.InterpError, match=r"holds 5 tokens.*positions='prompt'"),
        edit.applied(model),
    ):
        greedy(model, PROMPTS, "left")
    with pytest.raises(interp.InterpError, match="for 3 prompts"), edit.applied(model):
        model(torch.tensor(PROMPTS[:1] * 2))


def test_without_a_cache_the_prompt_must_be_told() -> None:
    model, ids = build("llama"), torch.tensor(PROMPTS[:1])
    with pytest.raises(ValueError, match="prompt_len"), edit_at("last").applied(model):
        model(ids, use_cache=False)
    with edit_at("last").applied(model, prompt_len=3), torch.no_grad():
        told = model(ids, use_cache=False).logits
    with edit_at((2,)).applied(model), torch.no_grad():
        assert torch.equal(told, model(ids, use_cache=False).logits)


def test_blocks_called_on_their_own_cannot_follow_positions(ids) -> None:
    model = build("llama")
    again = interp.replay(model, ids)
    with (
        pytest.raises(interp.InterpError, match="blocks were called on their own"),
        edit_at((0,)).applied(model),
    ):
        again.run(0, again.streams[0])


def test_a_position_before_the_prompt_is_refused() -> None:
    model = build("llama")
    with pytest.raises(interp.InterpError, match="prompt 2 has only 1 tokens"), torch.no_grad():
        batch = interp.load(model).batch(PROMPTS)
        with edit_at((-2,)).applied(model):
            model(**batch.inputs)
