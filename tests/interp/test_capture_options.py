"""What capture runs, keeps and where: early stop, positions, device, dtype, bytes held."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.layout import EVERY, block_of


def count_calls(name: str, model) -> list[int]:
    """How often each block ran, counted in its own forward."""
    calls = [0] * model.config.num_hidden_layers
    for layer in range(len(calls)):

        def counting(x, layer=layer):
            calls[layer] += 1
            return x

        plain.map_input(block_of(name, model, layer), counting)
    return calls


@pytest.mark.parametrize("name", EVERY)
def test_blocks_after_the_last_site_do_not_run(name, ids) -> None:
    model = build(name)
    interp.capture(model, ids, "resid_pre.0")  # the one-time check
    calls = count_calls(name, model)
    interp.capture(model, ids, ["embed", "resid_post.1"])
    assert calls[:2] == [1, 1]
    assert not any(calls[2:])
    interp.capture(model, ids, "resid_post.*", stop_at_layer=1)
    assert calls[0] == 2
    assert not any(calls[2:])
    interp.capture(model, ids, "resid_post.0", logits=True)
    assert calls[-1] == 1


def test_stop_at_layer_narrows_a_star_and_refuses_what_lies_beyond(ids) -> None:
    model = build("llama")
    acts = interp.capture(model, ids, ["resid_post.*", "z.*"], stop_at_layer=2)
    assert {site.layer for site in acts} == {0, 1}
    whole = interp.capture(model, ids, ["resid_post.*", "z.*"])
    assert all(torch.equal(acts[site], whole[site]) for site in acts)
    with pytest.raises(interp.SiteNotFound, match=r"stop_at_layer=1"):
        interp.capture(model, ids, "z.2", stop_at_layer=1)
    with pytest.raises(interp.InterpError, match="logits need the whole model"):
        interp.capture(model, ids, "z.*", stop_at_layer=1, logits=True)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "mixtral", "phi3", "gpt_neox"])
@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
def test_positions_choose_real_tokens(name, padding, ids) -> None:
    model = interp.load(build(name))
    sites = ["resid_post.1", "z.1", "q.1", "mlp_post.1", "pattern.1"]
    prompts = [ids[0, :6].tolist(), ids[1].tolist()] if padding else ids
    whole = interp.capture(model, prompts, sites)
    for positions, columns in (
        ("last", [[5, 10]] if padding else [[10, 10]]),
        (0, [[0, 0]]),
        (-2, [[4, 9]] if padding else [[9, 9]]),
        ([0, -1, 3], [[0, 0], [5, 10] if padding else [10, 10], [3, 3]]),
    ):
        acts = interp.capture(model, prompts, sites, positions=positions)
        for number, at in enumerate(columns):
            for row, column in enumerate(at):
                assert int(acts.tokens[row, number]) == int(whole.tokens[row, column])
                for site, tensor in acts.items():
                    axis = 2 if site.kind == "pattern" else 1
                    mine = tensor.select(axis, number)[row]
                    assert torch.equal(mine, whole[site].select(axis, column)[row]), site
        for site, experts in acts.expert_ids.items():
            assert experts.shape[1] == len(columns)
            assert experts.shape[0] == acts[site].shape[0]


def test_a_position_beyond_the_shortest_prompt_is_refused_by_name() -> None:
    model = build("llama")
    with pytest.raises(interp.InterpError, match=r"position 3 is outside prompt 1, which has 2"):
        interp.capture(model, [[3, 4, 5, 6], [7, 8]], "z.0", positions=3)


@pytest.mark.parametrize("name", EVERY)
def test_memory_held_is_what_was_asked_for(name, ids) -> None:
    """No captured tensor is a view that keeps a larger one alive."""
    model = build(name)
    sites = ["resid_post.1", "z.1", "attn_out.1", "mlp_out.1", "mlp_post.1", "pattern.1"]
    sites += [] if name == "deepseek_v3" else ["q.1", "v.1"]
    for positions in ("all", [0, 2]):
        acts = interp.capture(model, ids, sites, positions=positions)
        for site, tensor in acts.items():
            held = tensor.untyped_storage().nbytes()
            assert held == tensor.numel() * tensor.element_size(), (site, positions)


def test_captured_tensors_do_not_change_when_the_model_runs_on(ids) -> None:
    """Also those that modeling files overwrite in place (Falcon adds attention to its MLP)."""
    for name in EVERY:
        model = build(name)
        sites = ["attn_out.1", "mlp_out.1"]
        early = {site: interp.capture(model, ids, site)[site] for site in sites}  # stops there
        whole = interp.capture(model, ids, sites, logits=True)
        for site in sites:
            assert torch.equal(whole[site], early[site]), (name, site)


def test_dtype_and_device_are_those_asked_for(ids) -> None:
    model = build("llama")
    full = interp.capture(model, ids, "resid_post.1")["resid_post.1"]
    half = interp.capture(model, ids, "resid_post.1", dtype=torch.float16)["resid_post.1"]
    assert torch.equal(half, full.half())
    stay = interp.capture(model, ids, "resid_post.1", device=None)["resid_post.1"]
    assert stay.device == model.device
    assert torch.equal(stay, full)
    assert not full.requires_grad


@pytest.mark.gpu
def test_capture_on_a_gpu_equals_capture_on_the_cpu(ids) -> None:
    here = interp.capture(build("llama"), ids, ["z.1", "pattern.1"], logits=True)
    model = build("llama").cuda()
    there = interp.capture(model, ids, ["z.1", "pattern.1"], logits=True)
    assert all(tensor.device.type == "cpu" for tensor in there.values())
    for site, value in here.items():
        torch.testing.assert_close(there[site], value, rtol=1e-3, atol=1e-4)
    kept = interp.capture(model, ids, "z.1", device=None)["z.1"]
    assert kept.device.type == "cuda"


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_models_pass_the_self_check(name, ids) -> None:
    model = interp.load(build(name, dtype=torch.bfloat16))
    acts = interp.capture(model, ids, ["resid_post.*", "attn_out.*", "mlp_out.*", "z.*"])
    assert acts["resid_post.1"].dtype == torch.bfloat16
    assert bool(acts["z.1"].isfinite().all())
    interp.logit_lens(model, ids, 5)


def test_a_checked_model_is_left_in_its_mode_and_dropout_is_off_during_the_check(ids) -> None:
    model = build("gpt2").train()
    interp.capture(model, ids, "resid_post.0")
    assert all(module.training for module in model.modules())
