"""The same work done in other ways: merely read, the obvious loop, a full svdvals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def read_only(*folders: Path) -> int:
    """Every byte of the files once, by positioned reads into one buffer."""
    buffer = bytearray(1 << 20)
    total = 0
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            descriptor = os.open(file, os.O_RDONLY)
            offset = 0
            while count := os.preadv(descriptor, [buffer], offset):
                offset += count
            os.close(descriptor)
            total += offset
    return total


def obvious(base: Path, tuned: Path) -> list[dict[str, Any]]:
    """safe_open, one tensor at a time, in float32: what anyone would write for these metrics."""
    rows = []
    config = json.loads((base / "config.json").read_text())
    heads = dict.fromkeys(("q_proj", "o_proj"), config["num_attention_heads"])
    heads |= dict.fromkeys(("k_proj", "v_proj"), config["num_key_value_heads"])
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as first, safe_open(tuned / file.name, "pt") as second:
            for name in first.keys():  # noqa: SIM118
                a, b = first.get_tensor(name), second.get_tensor(name)
                rows.append({"tensor": name, **_metrics(name, a, b, heads)})
    return rows


def _metrics(name: str, a: Tensor, b: Tensor, heads: dict[str, int]) -> dict[str, Any]:
    x, y = a.float(), b.float()
    d = y - x
    changed = d.abs() > 1e-3 * torch.maximum(x.abs(), y.abs())
    row: dict[str, Any] = {
        "numel": a.numel(),
        "norm": d.norm().item(),
        "relative_norm": (d.norm() / x.norm()).item(),
        "rms": d.square().mean().sqrt().item(),
        "cosine": torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), 0).item(),
        "max_abs": d.abs().max().item(),
        "unchanged": (a.view(torch.int16) == b.view(torch.int16)).float().mean().item(),
        "sparsity": 1 - changed.float().mean().item(),
        "sign_flips": ((x * y) < 0).float().mean().item(),
        "finite": bool(torch.isfinite(x).all() and torch.isfinite(y).all()),
    }
    if a.ndim == 2:
        row["rows"], row["columns"] = changed.float().mean(1), changed.float().mean(0)
        n = heads.get(name.split(".")[-2], 0)
        if n:
            split = d.view(len(d), n, -1) if "o_proj" in name else d.view(n, -1)
            base = x.view(len(d), n, -1) if "o_proj" in name else x.view(n, -1)
            axes = (0, 2) if "o_proj" in name else (1,)
            row["heads"] = split.norm(dim=axes) / base.norm(dim=axes)
    return row
