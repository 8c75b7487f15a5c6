"""What a baked checkpoint is: the same class, a config flag more, or the Llama that it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import Affine, Edit
from tests.architectures import build
from tests.oracles import plain

STEER = Edit([Affine("resid_post.1", shift=torch.linspace(-1, 1, 32))])
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e6,
}


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
@pytest.mark.parametrize(
    "options", [{}, {"tie_word_embeddings": True}, {"rope_parameters": YARN}, {"head_dim": 10}]
)
def test_a_qwen2_or_mistral_without_a_window_is_a_llama_bit_for_bit(name, options, ids) -> None:
    """The parts before the shift give the same bits, and so do all where the shift is tiny."""
    module = build(name, **options)
    smallest = torch.full((32,), 1e-30)  # adds nothing to any float32 of ordinary size
    baked = interp.bake(module, Edit([Affine("resid_post.1", shift=smallest)]))
    assert type(baked).__name__ == "LlamaForCausalLM" and baked.config.model_type == "llama"
    assert torch.equal(plain.logits_of(baked, ids), plain.logits_of(module, ids))
    long = torch.randint(3, 97, (1, 100))
    assert torch.equal(plain.logits_of(baked, long), plain.logits_of(module, long))
    assert baked.config.tie_word_embeddings == module.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 4}),
    ],
)
def test_with_a_window_it_is_none_and_refuses_with_the_reason(name, options, ids) -> None:
    module = build(name, **options)
    with pytest.raises(interp.InterpError, match="sliding window this model is not a Llama"):
        interp.bake(module, STEER)
    head = Edit([Affine("z.1", (1,), scale=0.0)])  # needs no bias
    with head.applied(module):
        expected = plain.logits_of(module, ids)
    baked = interp.bake(module, head)
    assert type(baked) is type(module)
    torch.testing.assert_close(plain.logits_of(baked, ids), expected, rtol=1e-5, atol=1e-5)


def test_a_form_changes_no_more_than_it_must() -> None:
    head = Edit([Affine("z.1", (1,), shift=torch.ones(1, 8))])
    assert interp.bake(build("llama"), head).bake_report.config == {"attention_bias": True}
    assert interp.bake(build("llama"), STEER).bake_report.config == {"mlp_bias": True}
    assert interp.bake(build("gpt2"), head).bake_report.config == {}
    as_llama = {"model_type": "llama", "attention_bias": True}
    qwen2 = build("qwen2")
    assert interp.bake(qwen2, head).bake_report.config == as_llama
    assert interp.bake(qwen2, STEER).bake_report.config == {**as_llama, "mlp_bias": True}
    query = Edit([Affine("q.1", (1,), shift=torch.ones(1, 8))])  # a Qwen2 has that bias
    assert interp.bake(qwen2, query).bake_report.config == {}
    assert qwen2.config.model_type == "qwen2" and not hasattr(qwen2.config, "mlp_bias")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "smollm3", "cohere", "falcon"])
def test_untying_lets_the_embedding_move_without_the_head(name, ids) -> None:
    module = build(name)
    edit = Edit([Affine("embed", scale=0.5 + torch.rand(32), shift=torch.randn(32))])
    with pytest.raises(interp.InterpError, match="untie=True"):
        interp.bake(module, edit)
    with edit.applied(module):
        expected = plain.logits_of(module, ids)
    baked = interp.bake(module, edit, untie=True)
    scale = float(expected.abs().max())
    torch.testing.assert_close(plain.logits_of(baked, ids), expected, rtol=0, atol=1e-5 * scale)
    assert not baked.config.tie_word_embeddings and module.config.tie_word_embeddings
    assert torch.equal(baked.lm_head.weight, module.lm_head.weight)
    own = {p.data_ptr() for p in module.parameters()}
    assert not own & {p.data_ptr() for p in baked.parameters()}


def test_a_config_that_ties_more_than_a_head_cannot_be_taken_apart() -> None:
    module = build("llama")
    module.model.layers[1].mlp.up_proj.weight = module.model.layers[0].mlp.up_proj.weight
    change = interp.LowRank(torch.ones(48, 1), torch.ones(1, 32))
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(interp.InterpError, match="only an embedding and its head"):
        interp.bake(module, Edit([interp.Delta(name, change, untie=True)]))


def test_the_new_model_is_plain_and_apart_from_the_old(ids, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    module = build("llama")
    module.generation_config.max_new_tokens = 7
    baked = interp.bake(module, STEER)
    assert type(baked) is type(module) and not baked.training
    assert baked.generation_config.max_new_tokens == 7
    own = {p.data_ptr() for p in module.parameters()}
    assert not own & {p.data_ptr() for p in baked.parameters()}
    expected = plain.logits_of(baked, ids)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(plain.logits_of(baked, ids), expected)
    baked.save_pretrained(tmp_path / "edited")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert torch.equal(plain.logits_of(loaded, ids), expected)


def test_dtypes_kernels_and_mixed_precision_stay(ids) -> None:
    module = build("deepseek_v3", dtype=torch.bfloat16)
    module.set_attn_implementation("eager")
    for block in module.model.layers[1:]:  # real checkpoints keep this one in float32
        block.mlp.gate.e_score_correction_bias.data = torch.rand(4)
    baked = interp.bake(module, Edit([Affine("z.1", (1,), scale=0.0)]))
    assert baked.config._attn_implementation == "eager"
    for name, tensor in baked.state_dict().items():
        assert tensor.dtype == module.state_dict()[name].dtype


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_realised_change_is_told(name, dtype, ids) -> None:
    module = build(name, dtype=dtype)
    edit = Edit([Affine("z.1", (1,), scale=0.7), Affine("mlp_out.0", scale=1.001)])
    report = interp.bake(module, edit).bake_report
    assert report.verification.dtype == str(dtype).removeprefix("torch.")
    weights = {f.tensor: f for f in report.folded if f.change_norm > 0}
    assert all(f.dtype == report.verification.dtype for f in weights.values())
    state = module.state_dict()
    for tensor, folded in weights.items():
        assert 0 <= folded.unmoved <= 1 and folded.moving <= state[tensor].numel()
    # A thousandth is less than half a bfloat16 step of nearly every weight: almost nothing moves.
    tiny = [f for t, f in weights.items() if "o_proj" not in t and "attn" not in t]
    assert all(f.unmoved > 0.8 for f in tiny) == (dtype == torch.bfloat16)
    large = [f for t, f in weights.items() if f not in tiny]
    assert all(f.cosine > 0.999 and abs(f.norm_ratio - 1) < 0.01 for f in large)
    assert 0 < report.realised["unmoved"] < 1 or dtype == torch.float16
    assert list(report.table().columns)[:4] == ["tensor", "shape", "dtype", "new"]


def test_the_realised_change_is_measured_on_the_stored_numbers() -> None:
    module = build("llama", dtype=torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    change = 1e-3 * torch.randn(48, 32)
    baked = interp.bake(module, Edit([interp.Delta(name, change)]))
    (folded,) = baked.bake_report.folded
    before, after = (m.state_dict()[name].float() for m in (module, baked))
    stored: Tensor = after - before
    torch.testing.assert_close(folded.norm_ratio, float(stored.norm() / change.norm()))
    cosine = float((stored * change).sum() / stored.norm() / change.norm())
    torch.testing.assert_close(folded.cosine, cosine, rtol=1e-5, atol=1e-5)
    assert folded.unmoved == float((stored == 0).float().mean())
