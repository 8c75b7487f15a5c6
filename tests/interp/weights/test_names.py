"""Canonical names and splits, proved against the projections of every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from interp._resolve import anatomy_of
from interp._weights.checkpoint import open_checkpoint
from interp._weights.pair import Side
from interp._weights.stored import Buffers
from tests.architectures import NAMES, VARIANTS, build

ALL = [*NAMES, *VARIANTS]


def matrix(checkpoint, name: str) -> torch.Tensor:
    return Side(checkpoint, checkpoint.parts[name]).matrix()


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_named_once_and_reads_the_same_from_disk(name: str, tmp_path: Path):
    model = build(name, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    disk, held = open_checkpoint(tmp_path), open_checkpoint(model)
    assert list(sorted(disk.parts)) == list(sorted(held.parts))
    buffers = sum(b.numel() for n, b in model.named_buffers() if n.endswith("correction_bias"))
    expected = sum(p.numel() for p in model.parameters()) + buffers
    assert sum(part.numel for part in disk.parts.values()) == expected
    total = 0.0
    for key in disk.parts:
        a, b = matrix(disk, key), matrix(held, key)
        assert torch.equal(a, b), key
        total += float(a.double().square().sum())
    squares = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    assert total == pytest.approx(squares + _buffer_squares(model), rel=1e-12)


def _buffer_squares(model: PreTrainedModel) -> float:
    named = model.named_buffers()
    return sum(float(b.double().square().sum()) for n, b in named if n.endswith("correction_bias"))


@pytest.mark.parametrize("name", ALL)
def test_q_k_v_rows_are_what_the_projections_compute(name: str):
    """x @ W_q^T equals the q that the anatomy reads from the projection's output."""
    model = build(name)
    checkpoint = open_checkpoint(model)
    torch.manual_seed(3)
    for block in anatomy_of(model).blocks:
        if block.qkv is None:
            continue
        for kind, module in zip("qkv", block.qkv.modules, strict=True):
            key = f"layers.{block.index}.{kind}.weight"
            if key not in checkpoint.parts or "q_a_proj" in dict(block.attn.named_children()):
                continue
            width = next(iter(module.parameters())).shape
            x = torch.randn(1, 1, width[0] if type(module).__name__ == "Conv1D" else width[1])
            bias = module.bias
            heads = block.qkv.view(kind, module(x) - (bias if bias is not None else 0))
            torch.testing.assert_close(
                x[0, 0] @ matrix(checkpoint, key).T,
                heads.detach().reshape(-1),
                rtol=1e-5,
                atol=1e-5,
            )
            part = checkpoint.parts[key]
            n = block.qkv.n_heads if kind == "q" else block.qkv.n_kv_heads
            assert part.heads == (n if n > 1 else 0)


@pytest.mark.parametrize("name", ["phi3", "glm4", "mixtral", "qwen3_moe", "gpt_oss", "olmoe"])
def test_gate_and_up_are_split_as_the_mlp_multiplies_them(name: str):
    """up enters the MLP linearly and gate does not: doubling up doubles each expert's output."""
    model = build(name)
    layer = model.model.layers[0].mlp
    checkpoint = open_checkpoint(model)
    if hasattr(layer, "experts"):
        gate, up = (matrix(checkpoint, f"layers.0.experts.1.{m}.weight") for m in ("gate", "up"))
        fused = layer.experts.gate_up_proj[1]
        fused = fused.T if name == "gpt_oss" else fused
        halves = (fused[::2], fused[1::2]) if name == "gpt_oss" else fused.chunk(2)
    else:
        gate, up = (matrix(checkpoint, f"layers.0.{m}.weight") for m in ("gate", "up"))
        halves = layer.gate_up_proj.weight.chunk(2)
    assert torch.equal(gate, halves[0]) and torch.equal(up, halves[1])


def test_heads_of_o_are_its_columns_and_of_q_its_rows():
    parts = open_checkpoint(build("qwen3")).parts
    assert (parts["layers.0.q.weight"].heads, parts["layers.0.q.weight"].segments) == (4, 1)
    assert (parts["layers.0.o.weight"].heads, parts["layers.0.o.weight"].segments) == (4, 4)
    gpt2 = open_checkpoint(build("gpt2")).parts  # stored [in, out]: the other way round
    assert (gpt2["layers.0.q.weight"].segments, gpt2["layers.0.o.weight"].segments) == (4, 1)


def test_chunks_of_any_height_give_the_same_matrix():
    checkpoint = open_checkpoint(build("gpt_neox"))
    side = Side(checkpoint, checkpoint.parts["layers.0.k.weight"])
    whole = side.matrix()
    for height in (1, 3, 7, 100):
        pieces = [chunk.clone() for chunk in side.chunks(height, Buffers(), "x")]
        assert torch.equal(torch.cat(pieces), whole)
