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
