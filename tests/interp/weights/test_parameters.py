"""Parameters of a checkpoint by the names its module gives them, read in part or whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp._edit.identity import identity_of, identity_on_disk
from interp._edit.parameters import named_parameters
from interp._weights.checkpoint import open_checkpoint
from interp._weights.parameters import Assembled, entries, parameters_of
from interp._weights.stored import whole
from tests.architectures import NAMES, VARIANTS, build


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_a_checkpoint_has_the_parameters_of_its_module_bit_for_bit(name: str, tmp_path: Path):
    model = build(name, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    held, params = parameters_of(checkpoint), named_parameters(model)
    assert {id(params[key].tensor) for key in held} == {id(p) for p in model.parameters()}
    in_memory = parameters_of(open_checkpoint(model))
    for key, one in held.items():
        source = one.source
        tensor = source.read() if isinstance(source, Assembled) else whole(source)
        assert torch.equal(tensor, params[key].tensor.detach()), key
        index = torch.randint(0, tensor.numel(), (20,))
        assert torch.equal(entries(source, index), tensor.reshape(-1)[index]), key
        assert one.parts == in_memory[key].parts
    # And a model is recognised from its files alone, tied heads and fused experts included.
    there, here = identity_on_disk(checkpoint), identity_of(model)
    assert there is not None
    there.check(here, transfer=False)
    here.check(there, transfer=False)
    assert dict(there.weights) == dict(here.weights)


def test_experts_stored_one_by_one_are_one_parameter(tmp_path: Path):
    build("mixtral").save_pretrained(tmp_path)
    held = parameters_of(open_checkpoint(tmp_path))
    assert isinstance(held["model.layers.0.mlp.experts.gate_up_proj"].source, Assembled)
