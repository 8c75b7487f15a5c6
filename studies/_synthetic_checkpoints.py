"""Checkpoints made from others, tensor by tensor, as controls: noise of a norm, a scaled update."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from interp._record import replacing
from interp._weights.checkpoint import Checkpoint, open_checkpoint
from interp._weights.nulls import generator, normal
from interp._weights.stored import whole

_SHARD = 2**30

Make = Callable[[str, Tensor, Tensor], Tensor]  # name, base, tuned (both float32) -> new


def write_noise(base: str, tuned: str, out: Path, seed: int) -> Path:
    """Isotropic Gaussian noise on every tensor, with the norm of that tensor's own update.

    Written in the base's dtype, so that it passes the same gate as a trained checkpoint.
    """

    def make(name: str, a: Tensor, b: Tensor) -> Tensor:
        rms = (b - a).double().square().mean().sqrt().float()
        return a + rms * normal(a.shape, generator(seed, "noise", name))

    return _write(base, tuned, out, make, dtype=None)


def write_at_norm(base: str, tuned: str, other: str, out: Path) -> Path:
    """An update shrunk or grown, tensor by tensor, to the norm of another's: base + t * update.

    Written in float32: rounding to bfloat16 would change both the norm and the direction.
    """
    target = open_checkpoint(other)

    def make(name: str, a: Tensor, b: Tensor) -> Tensor:
        goal = (_whole(target, name).to(torch.float32) - a).double().norm()
        own = (b - a).double().norm()
        return a + (goal / own if own > 0 else 0.0) * (b - a)

    return _write(base, tuned, out, make, dtype=torch.float32)


def _write(base: str, tuned: str, out: Path, make: Make, dtype: torch.dtype | None) -> Path:
    if out.exists():
        return out
    start, end = open_checkpoint(base), open_checkpoint(tuned, base)
    with replacing(out) as folder:
        shard: dict[str, Tensor] = {}
        files: dict[str, str] = {}
        for name in start.tensors:
            a = _whole(start, name)
            made = make(name, a.to(torch.float32), _whole(end, name).to(torch.float32))
            shard[name] = made.to(dtype or a.dtype)
            if sum(t.nbytes for t in shard.values()) > _SHARD:
                _flush(folder, shard, files)
        _flush(folder, shard, files)
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if (Path(base) / "config.json").is_file():
            shutil.copy(Path(base) / "config.json", folder)
    return out


def _flush(folder: Path, shard: dict[str, Tensor], files: dict[str, str]) -> None:
    if not shard:
        return
    name = f"model-{len(set(files.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name)
    files |= dict.fromkeys(shard, name)
    shard.clear()


def _whole(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = whole(checkpoint.tensors[name])
    change = checkpoint.low_rank.get(name)
    if change is None:
        return tensor
    return tensor.to(torch.float32) + change.rows(0, len(tensor))
