"""Padding never changes a result: a batch equals its prompts one by one."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._hooked import ports_of
from interp._site import KINDS
from tests.architectures import build
from tests.oracles.layout import EVERY

LENGTHS = (3, 11, 7)
SIDES = ("left", "right")
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in LENGTHS]


def sites_of(model: interp.Model) -> list[str]:
    found = []
    for kind in KINDS:
        try:
            found += [str(site) for site in ports_of(model, kind)]
        except interp.UnsupportedSite:
            continue
    return found


def same_up_to_length(batched, single, row: int, length: int) -> None:
    for site, alone in single.items():
        value = batched[site][row]
        if site.kind == "pattern":
            value, rest = value[:, :length, :length], value[:, :, length:]
        else:
            value, rest = value[:length], value[length:]
        torch.testing.assert_close(
            value, alone[0], **TOLERANCE, msg=lambda m, s=site: f"{s}, prompt {row}: {m}"
        )
        assert float(rest.abs().sum()) == 0, f"{site} is not zero beyond prompt {row}'s end"
    torch.testing.assert_close(batched.logits[row, :length], single.logits[0], **TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_capture_of_a_padded_batch_equals_one_by_one(name, prompts) -> None:
    model = interp.load(build(name))
    sites = sites_of(model)
    singles = [interp.capture(model, [prompt], sites, logits=True) for prompt in prompts]
    for side in SIDES:
        batched = interp.capture(model, model.batch(prompts, padding=side), sites, logits=True)
        assert all(bool(tensor.isfinite().all()) for tensor in batched.values())
        for row, (prompt, single) in enumerate(zip(prompts, singles, strict=True)):
            same_up_to_length(batched, single, row, len(prompt))
            for site, ids in single.expert_ids.items():
                assert torch.equal(batched.expert_ids[site][row, : len(prompt)], ids[0])
            beyond = 11 - len(prompt)
            assert batched.tokens[row].tolist() == prompt + [-1] * beyond
            assert batched.mask[row].tolist() == [True] * len(prompt) + [False] * beyond


@pytest.mark.parametrize("name", EVERY)
def test_the_lens_of_a_padded_batch_equals_one_by_one(name, prompts) -> None:
    model = interp.load(build(name))
    singles = [interp.logit_lens(model, [prompt], 5, positions="all") for prompt in prompts]
    for side in SIDES:
        batched = interp.logit_lens(model, model.batch(prompts, padding=side), 5, positions="all")
        for row, (prompt, single) in enumerate(zip(prompts, singles, strict=True)):
            mine = batched.prompt == row
            assert batched.position[mine].tolist() == list(range(len(prompt)))
            assert batched.token[mine].tolist() == prompt
            for part in ("logprob", "entropy", "kl"):
                torch.testing.assert_close(
                    getattr(batched, part)[mine], getattr(single, part), rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("name", EVERY)
def test_greedy_generation_from_a_padded_batch_equals_one_by_one(name, prompts) -> None:
    model = interp.load(build(name))
    site, options = "resid_post.1", {"max_new_tokens": 3, "eos_token_id": None}
    singles = [interp.capture_generation(model, [p], site, **options) for p in prompts]
    for side in SIDES:
        batch = model.batch(prompts, padding=side)
        batched = interp.capture_generation(model, batch, site, **options)
        assert batched.meta["prompt_lengths"] == list(LENGTHS)
        for row, (prompt, single) in enumerate(zip(prompts, singles, strict=True)):
            length = len(prompt) + 2
            assert batched.tokens[row, :length].tolist() == single.tokens[0].tolist()
            assert single.tokens[0, : len(prompt)].tolist() == prompt
            torch.testing.assert_close(batched[site][row, :length], single[site][0], **TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_replay_of_a_padded_batch_equals_one_by_one(name, prompts) -> None:
    model = interp.load(build(name))
    for side in SIDES:
        batch = model.batch(prompts, padding=side)
        again = interp.replay(model, batch)
        changed = again.streams[1] + 0.5
        stream = again.run(1, changed)
        last = interp.replay_last(model, batch)
        last_stream = last.run(1, last.streams[1] + 0.5)
        for row, prompt in enumerate(prompts):
            alone = interp.replay(model, [prompt])
            expected = alone.run(1, alone.streams[1] + 0.5)
            columns = slice(int(batch.starts[row]), int(batch.starts[row]) + len(prompt))
            torch.testing.assert_close(stream[row, columns], expected[0], **TOLERANCE)
            only_last = alone.streams[1].clone()
            only_last[:, -1] += 0.5
            expected = alone.run(1, only_last)
            torch.testing.assert_close(last_stream[row, 0], expected[0, -1], **TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "bloom", "llama"])
def test_a_padded_batch_whose_padding_holds_other_tokens_gives_the_same(name, prompts) -> None:
    """What stands in the padding is never read."""
    model = interp.load(build(name))
    batch = model.batch(prompts, padding="left")
    other = torch.where(
        batch.attention_mask.bool(), batch.input_ids, torch.full_like(batch.input_ids, 50)
    )
    swapped = interp.Batch(other, batch.attention_mask, batch.position_ids)
    first, second = (interp.capture(model, b, "resid_post.*") for b in (batch, swapped))
    for site, value in first.items():
        torch.testing.assert_close(second[site], value, **TOLERANCE)
