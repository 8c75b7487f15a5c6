"""Which model this is: any change of weights or edits is another, any other path is the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import interp
import interventions as iv
from interp import InterpError
from interp._edit.identity import identity_of
from interp._reading import fingerprint
from tests.architectures import build


def test_one_number_makes_another_fingerprint():
    module = build("llama")
    wanted = fingerprint(module)
    assert fingerprint(copy.deepcopy(module)) == wanted
    module.config._name_or_path = "elsewhere"
    assert fingerprint(module) == wanted
    weight = module.get_parameter("model.layers.1.mlp.down_proj.weight")
    with torch.no_grad():
        for place in (1, 777, weight.numel() - 1):
            before = weight.view(-1)[place].clone()
            weight.view(-1)[place] += 1e-3
            assert fingerprint(module) != wanted
            weight.view(-1)[place] = before
        assert fingerprint(module) == wanted
        weight.copy_(weight.flip(1))  # the same numbers in another order
    assert fingerprint(module) != wanted
    assert fingerprint(build("llama").to(torch.bfloat16)) != fingerprint(build("llama"))


def test_edits_on_the_model_make_another_fingerprint():
    model = interp.load(build("llama"))
    wanted = fingerprint(model.module)
    seen = {wanted}
    for edit in (
        iv.scale_heads({(1, 2): 0.0}),
        iv.scale_heads({(1, 2): 0.5}),
        iv.steer("resid_post.0", torch.ones(model.anatomy.d_model)),
        iv.masks.random_mask(model, share=0.01).noise(1e-3),
    ):
        with edit.applied(model):
            seen.add(fingerprint(model.module))
    assert len(seen) == 5
    assert fingerprint(model.module) == wanted


def test_an_edit_knows_a_model_whose_head_was_baked_away():
    """At even steps through a square matrix all entries looked at would be of one column."""
    module = build("llama")
    model = interp.load(module)
    edit = iv.steer("resid_post.0", torch.ones(model.anatomy.d_model)).on(model)
    heads = model.anatomy.blocks[0].n_heads
    for head in range(heads):
        baked = interp.bake(model, iv.scale_heads({(1, head): 0.0}))
        other = copy.deepcopy(module)
        other.load_state_dict(getattr(baked, "module", baked).state_dict())
        assert identity_of(other).weights != identity_of(module).weights
        with pytest.raises(InterpError, match="weights differ"), edit.applied(other):
            pass


def test_a_corpus_is_not_taken_from_another_model(tmp_path: Path):
    model = interp.load(build("llama"))
    texts = [[1, 2, 3], [4, 5, 6]]
    interp.capture_corpus(model, texts, ["z.1"], tmp_path / "acts")
    with iv.scale_heads({(1, 0): 0.0}).applied(model), pytest.raises(InterpError, match="weights"):
        interp.capture_corpus(model, texts, ["z.1"], tmp_path / "acts")
