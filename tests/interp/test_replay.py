"""Replay equals the full forward, of which it runs only what changed."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.layout import EVERY, EXPERTS, block_of

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.mark.parametrize("name", EVERY)
def test_replay_from_every_layer_is_bit_equal(name, ids) -> None:
    model = build(name)
    again = interp.replay(model, ids)
    assert torch.equal(again.logits, plain.logits_of(model, ids))
    assert torch.equal(again.unembed(again.streams[-1]), again.logits)
    for layer in range(model.config.num_hidden_layers):
        assert torch.equal(again.run(layer, again.streams[layer]), again.streams[-1])
        until = again.run(0, again.streams[0], until=layer)
        assert torch.equal(until, again.streams[layer])


@pytest.mark.parametrize("name", EVERY)
def test_replaying_a_changed_stream_equals_the_full_forward(name, ids) -> None:
    model, edited = build(name), build(name)
    vector = torch.randn(32)
    plain.map_input(block_of(name, edited, 1), lambda x: x + vector)
    again = interp.replay(model, ids)
    logits = again.unembed(again.run(1, again.streams[1] + vector))
    expected = plain.logits_of(edited, ids)
    if name in EXPERTS:  # grouped kernels differ in the last bit
        torch.testing.assert_close(logits, expected, **TOLERANCE)
    else:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", EVERY)
def test_rows_say_which_prompt_each_stream_belongs_to(name, ids) -> None:
    """In another order, one of them twice, each row as if its prompt stood alone."""
    model = interp.load(build(name))
    prompts = [ids[0, :6].tolist(), ids[1].tolist(), ids[0].tolist()]
    again = interp.replay(model, model.batch(prompts))
    rows = [2, 0, 1, 2]
    whole = again.run(1, again.streams[1] * 1.1)
    picked = again.run(1, again.streams[1][rows] * 1.1, rows=rows)
    lengths = [len(prompt) for prompt in prompts]
    for index, row in enumerate(rows):
        torch.testing.assert_close(
            picked[index, : lengths[row]], whole[row, : lengths[row]], **TOLERANCE
        )
    last = interp.replay_last(model, prompts)
    whole = last.run(1, last.streams[1] * 1.1)
    picked = last.run(1, last.streams[1][rows] * 1.1, rows=rows)
    torch.testing.assert_close(picked, whole[rows], **TOLERANCE)
    again_whole = last.run(1, last.streams[1] * 1.1)  # the cache was not used up
    torch.testing.assert_close(again_whole, whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_one_token_replay_equals_a_full_forward_changed_at_the_last_position(name, ids) -> None:
    model = build(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    last = interp.replay_last(model, ids)
    torch.testing.assert_close(last.logits[:, -1], plain.logits_of(model, ids)[:, -1], **TOLERANCE)
    for layer in range(model.config.num_hidden_layers):
        edited = build(name)

        def change(x):
            x = x.clone()
            x[:, -1] += vector
            return x

        plain.map_input(block_of(name, edited, layer), change)
        stream = last.run(layer, last.streams[layer] + vector)
        expected = plain.logits_of(edited, ids)[:, -1]
        # One token of the delta rule is a recurrence, a whole sequence is worked in chunks.
        tolerance = {"rtol": 1e-3, "atol": 5e-4} if name == "qwen3_next" else TOLERANCE
        torch.testing.assert_close(last.unembed(stream)[:, 0], expected, **tolerance)


def test_hooks_fire_in_a_replay(ids) -> None:
    model = build("llama")
    again = interp.replay(model, ids)
    with interp.hooked(model, {"z.1": lambda z, site: z * 0}):
        edited = again.run(1, again.streams[1])
        expected = plain.logits_of(model, ids)
    torch.testing.assert_close(again.unembed(edited), expected, rtol=0, atol=0)


def test_replay_refuses_what_it_cannot_run(ids) -> None:
    model = interp.load(build("llama"))
    again = interp.replay(model, ids)
    with pytest.raises(interp.InterpError, match=r"replay of 2 prompts given 3 rows.*rows="):
        again.run(0, again.streams[0][[0, 1, 1]])
    with pytest.raises(interp.InterpError, match="must name one of the 2 prompts"):
        again.run(0, again.streams[0][[0, 1, 1]], rows=[0, 1, 2])
    with pytest.raises(interp.InterpError, match="cannot run blocks 2 to 1"):
        again.run(2, again.streams[2], until=1)
    with pytest.raises(interp.InterpError, match=r"prompt 1 has one token.*use replay"):
        interp.replay_last(model, [[3, 4], [5]])
    before = plain.snapshot(model.module)
    interp.replay_last(model, ids).run(0, again.streams[0][:, -1:])
    plain.assert_unchanged(before, model.module)
