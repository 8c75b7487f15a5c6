"""Atoms that do not fit are refused in words, before anything runs where that can be known."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import Affine, Edit
from tests.architectures import build
from tests.oracles import plain


def test_layers_of_an_edit_count_from_the_start() -> None:
    with pytest.raises(interp.InterpError, match="count from 0"):
        Affine("z.-1", (0,), scale=0.0)


@pytest.mark.parametrize(
    ("name", "atom", "shape"),
    [
        ("llama", Affine("z.1", (0,), scale=torch.ones(1, 7) * 2), r"\[batch pos 4 8\]"),
        ("llama", Affine("mlp_post.1", scale=torch.ones(47) * 2), r"\[batch pos 48\]"),
        ("llama", Affine("resid_post.1", scale=torch.ones(31) * 2), r"\[batch pos 32\]"),
        ("mixtral", Affine("mlp_post.1", scale=torch.ones(47) * 2), r"\[batch pos 48\]"),
        ("mixtral", Affine("mlp_post.1", shift=torch.ones(47)), r"\[batch pos 48\]"),
    ],
)
def test_a_scale_or_shift_of_another_width_names_the_shape(name, atom, shape, ids) -> None:
    module = build(name)
    with (
        Edit([atom]).applied(module),
        pytest.raises(interp.InterpError, match=f"this model's {atom.site} is {shape}"),
    ):
        plain.logits_of(module, ids)


def test_a_change_says_in_one_line_what_it_is() -> None:
    big = torch.zeros(200, 300)
    mask = torch.ones(200, 300, dtype=torch.bool)
    index = torch.tensor([5, 7])
    says = {
        interp.Dense(big, factor=0.5): "Dense([200, 300], factor 0.5)",
        interp.Dense(big, mask=mask): "Dense([200, 300], factor 1, masked)",
        interp.LowRank(torch.zeros(200, 2), torch.zeros(2, 300)): "LowRank([200, 300], rank 2)",
        interp.Sparse(index, torch.zeros(2), (200, 300)): "Sparse([200, 300], 2 entries)",
        interp.Towards(big, 0.25, mask): "Towards([200, 300], amount 0.25, masked)",
    }
    assert {change: repr(change) for change in says} == says
