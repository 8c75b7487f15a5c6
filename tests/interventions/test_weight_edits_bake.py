"""Edits of weights written into plain checkpoints, in memory and streamed from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
import interventions as iv
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_baked_task_vector_is_the_tuned_model(name: str, tmp_path: Path):
    base, tuned = build(name), noisy(build(name))
    start = saved(base, tmp_path / "base")
    tau = iv.task_vector(saved(tuned, tmp_path / "tuned"), start)
    with torch.no_grad():
        want = tuned(IDS).logits
        torch.testing.assert_close(interp.bake(base, tau)(IDS).logits, want, rtol=1e-4, atol=1e-4)
        interp.bake(start, tau, out=tmp_path / "baked", verify=False)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
        torch.testing.assert_close(plain(IDS).logits, want, rtol=1e-4, atol=1e-4)


def test_transplants_resets_and_noise_bake_to_what_they_apply(tmp_path: Path):
    base = build("phi3")
    tuned = noisy(base, 0.05)
    start = saved(tuned, tmp_path / "tuned")
    tau = iv.task_vector(tuned, base, modules="attn")
    edits = [
        iv.transplant(base, heads=[(1, 2), (0, 3)]),
        iv.reset(base, 0.5, by="category", seed=4),
        iv.reset(base, 0.3, seed=4),
        iv.norm_matched_random(-1 * tau, seed=2),
    ]
    for number, edit in enumerate(edits):
        out = tmp_path / str(number)
        interp.bake(start, edit, out=out, verify=False, transfer=True)
        plain = AutoModelForCausalLM.from_pretrained(out)
        with edit.applied(tuned, transfer=True):
            for key, p in plain.named_parameters():
                assert torch.equal(p, tuned.get_parameter(key)), key
