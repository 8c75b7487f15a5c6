"""Random bfloat16 checkpoints of real shapes, written without holding them in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_POOL = 1 << 26  # random numbers drawn once and cut from at different places
_SHARD = 4 << 30


class Shape(NamedTuple):
    layers: int
    d: int
    mlp: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool


SHAPES = {
    "0.5b": Shape(24, 896, 4864, 14, 2, 151936, True),
    "1.5b": Shape(28, 1536, 8960, 12, 2, 151936, True),
    "7b": Shape(28, 3584, 18944, 28, 4, 152064, False),
}


def generate(folder: Path, name: str, *, step: float = 3e-4) -> tuple[Path, Path]:
    """A base and a tuned checkpoint of Qwen2.5 shapes: `tuned = bf16(base + step * noise)`."""
    paths = folder / name / "base", folder / name / "tuned"
    if all((path / "config.json").is_file() for path in paths):
        return paths
    generator = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(_POOL, generator=generator)
    moved = (weights + step * torch.randn(_POOL, generator=generator)).bfloat16()
    for path, pool in zip(paths, (weights.bfloat16(), moved), strict=True):
        _write(path, SHAPES[name], pool)
    return paths


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Qwen2 state dict."""
    d, d_head = shape.d, shape.d // shape.heads
    yield "model.embed_tokens.weight", (shape.vocab, d)
    for i in range(shape.layers):
        block = f"model.layers.{i}"
        for kind, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            yield f"{block}.self_attn.{kind}_proj.weight", (heads * d_head, d)
            yield f"{block}.self_attn.{kind}_proj.bias", (heads * d_head,)
        yield f"{block}.self_attn.o_proj.weight", (d, d)
        yield f"{block}.mlp.gate_proj.weight", (shape.mlp, d)
        yield f"{block}.mlp.up_proj.weight", (shape.mlp, d)
        yield f"{block}.mlp.down_proj.weight", (d, shape.mlp)
        yield f"{block}.input_layernorm.weight", (d,)
        yield f"{block}.post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, d)


def _write(path: Path, shape: Shape, pool: Tensor) -> None:
    path.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, dims in tensors(shape):
        nbytes = 2 * _numel(dims)
        if size + nbytes > _SHARD and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, dims))
        size += nbytes
    files, offset = {}, 0
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        files |= dict.fromkeys([name for name, _ in shard], file)
        offset = _write_shard(path / file, shard, pool, offset)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(_config(shape)))


def _write_shard(
    file: Path, shard: list[tuple[str, tuple[int, ...]]], pool: Tensor, offset: int
) -> int:
    header: dict[str, Any] = {}
    end = 0
    for name, dims in shard:
        start, end = end, end + 2 * _numel(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    bits = pool.view(torch.int16).numpy()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, dims in shard:
            left = _numel(dims)
            while left:
                take = min(left, _POOL - offset)
                stream.write(bits[offset : offset + take].data)
                left -= take
                offset = (offset + take) % _POOL
    return offset


def _numel(dims: tuple[int, ...]) -> int:
    total = 1
    for size in dims:
        total *= size
    return total


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": shape.d,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "dtype": "bfloat16",
    }
