"""What cannot be baked says so in one sentence, names every atom, and leaves the model alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interp
from interp import Affine, Delta, Edit
from interp._bake import verify
from tests.architectures import build

ONES = torch.ones(32)


def refusal(module: nn.Module, *atoms: Affine | Delta) -> str:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(interp.InterpError) as caught:
        interp.bake(module, Edit(atoms))
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())
    return str(caught.value)


def test_every_atom_that_cannot_be_folded_is_named_with_its_reason() -> None:
    said = refusal(
        build("qwen3"),
        Affine("z.0", (1,), scale=0.0),
        Affine("resid_post.0", shift=ONES),
        Affine("resid_post.1", scale=0.5),
        Affine("z.2", (1,), scale=0.0, positions="last"),
        Affine("mlp_out.1", shift=torch.ones(2, 5, 32)),
    )
    assert said.startswith("4 of the edit's 5 atoms cannot be folded into the weights of Qwen3")
    for words in (
        "resid_post.0: add norm 5.66) no bias there",
        "resid_post.1: scale 0.5) scaling the stream",
        "z.2, head 1: scale 0, at last) it acts at some positions only",
        "mlp_out.1: add norm 17.9 per prompt and token) its shift differs",
        "edit.applied(model)",
        "edit.select(",
    ):
        assert words in said, words
    assert "z.0, head 1" not in said


def test_under_a_norm_that_follows_a_shift_has_no_slot() -> None:
    assert "a norm without a bias follows" in refusal(
        build("gemma2"), Affine("mlp_out.1", shift=ONES)
    )


@pytest.mark.parametrize(
    "atom",
    [
        Affine("resid_post.1", positions="last"),
        Affine("resid_post.1", shift=torch.zeros(32), positions="generated"),
        0.0 * Affine("resid_post.1", scale=0.5),
        0.0 * Affine("resid_post.1", shift=torch.ones(2, 5, 32)),
    ],
)
def test_atoms_that_do_nothing_fold_into_nothing(atom, ids) -> None:
    module = build("qwen3")
    baked = interp.bake(module, Edit([atom]))
    assert baked.bake_report.folded == () and baked.bake_report.slots == ()
    assert torch.equal(baked(ids).logits, module(ids).logits)


def test_scales_of_the_stream_that_cancel_are_no_scale() -> None:
    edit = Edit([Affine("resid_post.1", scale=2.0), Affine("resid_pre.2", scale=0.5, shift=ONES)])
    baked = interp.bake(build("llama"), edit)
    assert [slot.part for slot in baked.bake_report.slots] == ["shift"]


@pytest.mark.parametrize(
    ("atom", "words"),
    [
        (Affine("z.0", (9,), scale=0.0), "heads 0 to 3, and the edit names head 9"),
        (Affine("mlp_post.0", (48,), scale=0.0), "neurons 0 to 47"),
        (Affine("mlp_post.0", ((0, 1),), scale=0.0), "dense here"),
        (Affine("resid_post.1", shift=torch.ones(31)), "resid_post.1 is \\[batch pos 32\\]"),
        (Affine("z.7", (0,), scale=0.0), "layers 0 to 2"),
        (Delta("nope.weight", torch.ones(2)), "no parameter 'nope.weight'"),
        (Delta("lm_head.weight", torch.ones(2, 2)), "has shape \\[97, 32\\] here and \\[2, 2\\]"),
    ],
)
def test_an_edit_of_another_model_is_refused(atom, words) -> None:
    with pytest.raises(interp.InterpError, match=words):
        interp.bake(build("llama"), Edit([atom]))


def test_a_site_the_architecture_lacks_is_refused_with_the_reason() -> None:
    with pytest.raises(interp.UnsupportedSite, match="in parallel"):
        interp.bake(build("gptj"), Edit([Affine("resid_mid.1", shift=ONES)]))
    with pytest.raises(interp.UnsupportedSite, match="latents"):
        interp.bake(build("deepseek_v3"), Edit([Affine("q.1", (0,), scale=0.0)]))


def test_an_edit_that_is_on_the_model_must_come_off_first() -> None:
    module, edit = build("llama"), Edit([Affine("z.0", (1,), scale=0.0)])
    with edit.applied(module), pytest.raises(interp.InterpError, match="undo it first"):
        interp.bake(module, edit)
    interp.bake(module, edit)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_must_be_merged_first() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(interp.InterpError, match="merge_and_unload"):
        interp.bake(adapted, Edit([Affine("z.0", (1,), scale=0.0)]))


def test_an_offloaded_model_is_baked_from_its_folder() -> None:
    module = build("llama")
    with torch.device("meta"):
        module.model.layers[1].mlp.up_proj = nn.Linear(32, 48, bias=False)
    with pytest.raises(interp.InterpError, match="offloaded"):
        interp.bake(module, Edit([Affine("z.0", (1,), scale=0.0)]), verify=False)


def test_an_edit_made_on_another_model_needs_transfer() -> None:
    edit = Edit([Affine("z.0", (1,), scale=0.0)]).on(build("llama", seed=1))
    with pytest.raises(interp.InterpError, match="transfer=True"):
        interp.bake(build("llama"), edit)
    assert interp.bake(build("llama"), edit, transfer=True).bake_report.verification is not None


def test_logits_that_differ_are_not_returned(monkeypatch) -> None:
    module, edit = build("llama"), Edit([Affine("z.0", (1,), scale=0.0)])
    logits = verify._logits
    seen = []

    def third_is_off(*arguments):  # bare, hooked, baked
        seen.append(1)
        return logits(*arguments) + (1e-3 if len(seen) == 3 else 0.0)

    monkeypatch.setattr(verify, "_logits", third_is_off)
    with pytest.raises(interp.InterpError, match=r"miss the hooked model's by 1\.0e-03"):
        interp.bake(module, edit)
