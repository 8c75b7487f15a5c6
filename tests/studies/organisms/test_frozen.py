"""Partial training changes what it says and nothing else, in training and in what is shipped."""

from __future__ import annotations

import pytest
import torch

from studies import organisms
from studies.organisms import __main__ as cli
from studies.organisms import frozen, shipped
from studies.organisms.sft import SftConfig
from tests.architectures import build


@pytest.mark.parametrize(
    ("which", "moves"),
    [
        ("all", lambda name: True),
        ("qk", lambda name: "q_proj" in name or "k_proj" in name),
        ("freeze-mid-mlp", lambda name: "mlp" not in name or ".layers.0." in name),
    ],
)
def test_only_what_is_named_moves(which: frozen.Trained, moves) -> None:
    model = build("llama").train()
    assert model.config.num_hidden_layers == 3  # of which 1 and 2 lie in the middle
    model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(5, 90, (2, 6))
    with frozen.only(model, which):
        trained = [p for p in model.parameters() if p.requires_grad]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD(trained, lr=1.0).step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != moves(name), name
        assert p.requires_grad == ("embed_tokens" not in name)  # as it was before


def test_what_was_asked_for_stays() -> None:
    config = cli._config(cli.Train(name="sft_qk", sft=SftConfig(steps=12, seed=3)))
    assert (config.train, config.steps, config.seed) == ("qk", 12, 3)
    assert cli._config(cli.Train(name="sft")) == SftConfig()


SHIPPED = [name for name in organisms.names() if name.partition("-")[0] in cli.PARTIAL]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones_kept_the_rest_bit_for_bit(name: str) -> None:
    base, which = shipped.state("base"), cli.PARTIAL[name.partition("-")[0]]["train"]
    for step in organisms.steps(name):
        for parameter, tensor in shipped.state(name, step).items():
            moved = not torch.equal(tensor, base[parameter])
            if tensor.ndim == 2:
                assert moved == frozen.is_trained(parameter, 6, which), parameter
            else:  # a norm's weights may be too large for bfloat16 to see them move
                assert not moved or which != "qk"
