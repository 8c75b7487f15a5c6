"""Variants over one shared prefix equal variants that each have their own."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._replay_shared import _can_share, block_runner, overwrites_cache
from tests.architectures import build
from tests.oracles.layout import EVERY

TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}
# ALiBi as numbers by key in another layout, and eager attention where SDPA is the default.
MORE = {"falcon-alibi": ("falcon", {"alibi": True}), "llama-eager": ("llama", {})}


@pytest.mark.parametrize("name", [*EVERY, *MORE])
def test_each_variant_runs_as_if_it_were_alone(name, ids) -> None:
    base, extra = MORE.get(name, (name, {}))
    model = build(base, **extra)
    if name == "llama-eager":
        model.set_attn_implementation("eager")
    recording = interp.replay_last(model, [ids[0].tolist(), ids[1, :7].tolist()])
    assert _can_share(recording) == (name != "qwen3_next") != overwrites_cache(recording)
    run_block = block_runner(recording)
    stream = recording.streams[0] + 0.3 * torch.randn(2, 5, 32)
    alone = [stream[:, row : row + 1] for row in range(5)]
    with torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            stream = run_block(layer, stream)
        for row, variant in enumerate(alone):
            torch.testing.assert_close(
                stream[:, row : row + 1], recording.run(0, variant), **TOLERANCE
            )


def test_prefixes_are_copied_where_positions_may_be_counted(ids) -> None:
    """Under an edit, an attention function of one's own, or without a cache."""
    model = build("llama")
    recording = interp.replay_last(model, ids)
    assert _can_share(recording)
    with interp.hooked(model, {"z.1": lambda z, site: None}):
        assert not _can_share(recording)
    with interp.hooked(model, {"pattern.1": lambda pattern, site: None}):
        assert not _can_share(recording)
    assert _can_share(recording)
    assert not _can_share(interp.replay(model, ids[:, :1]))


def test_a_recording_can_be_run_again(ids) -> None:
    model = build("gemma3")
    recording = interp.replay_last(model, ids)
    with torch.no_grad():
        once, again = (block_runner(recording)(0, recording.streams[0]) for _ in range(2))
    assert torch.equal(once, again)
