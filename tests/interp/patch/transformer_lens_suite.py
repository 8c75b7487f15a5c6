"""Our scores equal those of TransformerLens' patching helpers, cell by cell."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformer_lens import patching

import interp
from interp.adapters import transformer_lens as tl
from tests.architectures import build

NAMES = ["llama", "gpt2", "qwen3", "gpt_neox", "gemma2"]
STREAMS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
}
HEADS = {
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
}
BY_POSITION = {
    "z": patching.get_act_patch_attn_head_out_by_pos,
    "v": patching.get_act_patch_attn_head_v_by_pos,
}


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., 11] - logits[..., 40]


@pytest.mark.parametrize("name", NAMES)
def test_every_helper_gives_our_scores(name, ids) -> None:
    model = build(name)
    clean, corrupted = ids, (ids + 17) % 90 + 3
    bridge = tl.bridge(model)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
    parallel = name == "gpt_neox"

    def theirs(helper):
        with torch.no_grad():
            found = helper(bridge, corrupted, cache, lambda x: metric(x[:, -1]), reduce="none")
        return found.values.cpu()

    ours = partial(interp.patch, model, clean, corrupted, metric=metric)
    close = {"rtol": 1e-3, "atol": 1e-3}
    for kind, helper in STREAMS.items():
        if parallel and kind == "resid_mid":
            continue
        got = ours(sites=kind).stack(kind).permute(0, 2, 1)  # layer pos prompt
        torch.testing.assert_close(got, theirs(helper), **close, msg=lambda m, k=kind: f"{k}: {m}")
    for kind, helper in HEADS.items():
        got = ours(sites=kind, positions="together").stack(kind)[:, :, 0].transpose(1, 2)
        torch.testing.assert_close(got, theirs(helper), **close, msg=lambda m, k=kind: f"{k}: {m}")
    for kind, helper in BY_POSITION.items() if name in ("llama", "gpt2") else ():
        got = ours(sites=kind).stack(kind).permute(0, 2, 3, 1)  # layer pos head prompt
        torch.testing.assert_close(got, theirs(helper), **close, msg=lambda m, k=kind: f"{k}: {m}")
