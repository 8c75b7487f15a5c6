"""Hook == bake, over every architecture and every atom that can be folded; the others refuse."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import Affine, Edit
from interp._bake.plan import make_plan
from tests.architectures import build
from tests.interp.bake.atoms import REFUSED, atoms, foldable
from tests.oracles import plain
from tests.oracles.layout import EVERY


def check(module: Any, edit: Edit, ids: Tensor, moved: float = 1e-3) -> Any:
    """The baked model's logits are the hooked model's; the base keeps its bits."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bare = plain.logits_of(module, ids)
    with edit.applied(module):
        expected = plain.logits_of(module, ids)
    baked = interp.bake(module, edit, verify=False)
    found = plain.logits_of(baked, ids)
    assert float((expected - bare).abs().max()) > moved
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    assert torch.equal(plain.logits_of(module, ids), bare)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    return baked


@pytest.mark.parametrize("name", EVERY)
def test_what_can_be_folded_is_folded_and_the_rest_names_itself(name) -> None:
    module = build(name)
    anatomy = interp.Model(module).anatomy
    refused = set()
    for what, atom in atoms(name, module).items():
        try:
            plan = make_plan(anatomy, Edit([atom]))
        except interp.InterpError as error:
            assert atom.describe() in str(error)
            assert "edit.applied(model)" in str(error)
            refused.add(what)
        else:
            assert {slot.part for slot in plan.slots} == {what.split()[1]}
    assert refused == (REFUSED[name] & set(atoms(name, module))) | {"resid_post scale"}


@pytest.mark.parametrize("name", EVERY)
def test_all_foldable_atoms_at_once_in_any_order(name, ids) -> None:
    module = build(name)
    for seed in range(2):
        chosen = [
            *foldable(name, module, seed).values(),
            *foldable(name, module, seed + 9).values(),
        ]
        random.Random(seed).shuffle(chosen)
        check(module, Edit(chosen), ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_each_foldable_atom_alone(name, ids) -> None:
    module = build(name)
    for what, atom in foldable(name, module).items():
        # A norm of each head follows the query and the key, and undoes an even scale.
        check(module, Edit([atom]), ids, moved=0.0 if what in ("q scale", "k scale") else 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt_oss", "cohere", "bloom"])
def test_hooks_under_other_kernels_and_in_training_mode(name, ids) -> None:
    module = build(name).train()
    edit = Edit(foldable(name, module).values())
    baked = interp.bake(module, edit)
    assert module.training and not baked.training
    assert baked.bake_report.verification.difference <= 1e-5 * 40


def test_opt_350m_keeps_a_norm_after_the_sum_which_takes_even_a_scale(ids) -> None:
    module = build("opt", do_layer_norm_before=False)
    d_model = module.config.hidden_size
    stream = [
        Affine("resid_post.1", scale=0.5 + torch.rand(d_model), shift=torch.randn(d_model)),
        Affine("resid_pre.1", scale=1.5),
        Affine("z.1", (2,), shift=torch.randn(1, 8)),
    ]
    check(module, Edit(stream), ids)


def test_mean_ablation_and_pruning_of_all_units(ids) -> None:
    module = build("llama")
    edit = Edit(
        [
            Affine("z.0", scale=0.0, shift=torch.randn(4, 8)),
            Affine("mlp_post.1", scale=0.0),
            Affine("mlp_post.2", list(range(10)), scale=0.0, shift=torch.randn(10)),
            Affine("v.2", scale=torch.tensor([0.0, 2.0])),
        ]
    )
    check(module, edit, ids)


def test_gpt_oss_experts_take_a_shift_of_single_neurons_and_of_all(ids) -> None:
    module = build("gpt_oss")
    edit = Edit(
        [
            Affine("mlp_post.0", scale=0.5, shift=torch.randn(48)),
            Affine("mlp_post.1", ((0, 1), (3, 2)), scale=[0.0, 3.0], shift=[1.0, -2.0]),
            Affine("mlp_out.1", scale=-0.5, shift=torch.randn(32)),
        ]
    )
    check(module, edit, ids)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_in_float64_the_two_agree_to_fourteen_digits(dtype, ids) -> None:
    with warnings.catch_warnings():
        module = build("gpt2", dtype=dtype)
    edit = Edit(foldable("gpt2", module).values())
    with edit.applied(module):
        expected = plain.logits_of(module, ids)
    found = plain.logits_of(interp.bake(module, edit), ids)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
