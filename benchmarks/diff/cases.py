"""What is measured: one function a case, each returning plain numbers."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.diff.contestants import obvious, read_only
from benchmarks.diff.generate import generate
from benchmarks.diff.measure import peak, ratios, rounds
from benchmarks.diff.nulls import nulls
from interp._diff import DiffOptions, diff
from interp._weights.checkpoint import open_checkpoint
from interp._weights.pair import Side
from interp._weights.svd import singular_values, svd_exact

PEAK = "benchmarks.diff.one"
__all__ = ["cheap", "large", "layers", "nulls", "peer", "spectral"]


def cheap(options: Any) -> dict[str, Any]:
    """The cheap tier with both kernels, the obvious loop, and reading alone."""
    name = options.shape or "1.5b"
    base, tuned = generate(options.folder, name)
    nbytes = read_only(base, tuned)
    contestants: dict[str, Any] = {"read": lambda: read_only(base, tuned)}
    for kernel in _kernels():
        chosen = DiffOptions(kernel=kernel)
        contestants[kernel] = lambda chosen=chosen: diff(base, tuned, options=chosen)
    contestants["obvious"] = lambda: obvious(base, tuned)
    diff(base, tuned, select="norm")  # compiles the kernel
    times, cpu = rounds(contestants, options.rounds)
    return {
        "pair": name,
        "gigabytes": nbytes / 1e9,
        "seconds": times,
        "cpu_seconds": cpu,
        "to_diff": ratios(cpu, _kernels()[0]),
        "to_read": ratios(cpu, "read"),
        "gigabytes_per_second": {k: nbytes / 1e9 / min(v) for k, v in cpu.items()},
        "peaks": {
            "diff": peak(PEAK, "diff", str(base), str(tuned)),
            "obvious": peak(PEAK, "obvious", str(base), str(tuned)),
            "import": peak(PEAK, "import", str(base), str(tuned)),
        },
    }


def spectral(options: Any) -> dict[str, Any]:
    """Both matrices of a pair: all singular values, and with subspaces, beside svdvals."""
    n = options.size
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(n, n, generator=generator) / n**0.5).bfloat16().float()
    b = (a + 1e-4 * torch.randn(n, n, generator=generator)).bfloat16().float()
    pair = (a, b)
    found: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, values: list[torch.Tensor]) -> None:
        found[name] = values

    contestants = {
        "gram float64": lambda: keep("gram float64", [singular_values(x) for x in pair]),
        "with subspaces": lambda: keep("with subspaces", [svd_exact(x, 64).values for x in pair]),
        "svdvals float32": lambda: keep(
            "svdvals float32", [torch.linalg.svdvals(x).double() for x in pair]
        ),
        "svdvals float64": lambda: keep(
            "svdvals float64", [torch.linalg.svdvals(x.double()) for x in pair]
        ),
    }
    times, cpu = rounds(contestants, options.rounds)
    exact = found["svdvals float64"]
    nss_exact = _nss(*exact)
    errors = {
        name: {
            "largest_relative_to_s1": float((v[0] - exact[0]).abs().max() / exact[0][0]),
            "largest_relative": float(((v[0] - exact[0]).abs() / exact[0]).max()),
            "nss": _nss(*v),
            "nss_relative_error": abs(_nss(*v) / nss_exact - 1),
        }
        for name, v in found.items()
    }
    return {
        "size": n,
        "seconds": times,
        "cpu_seconds": cpu,
        "to_diff": ratios(cpu, "gram float64"),
        "errors": errors,
    }


def _nss(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((b - a).norm() / a.norm())


def peer(options: Any) -> dict[str, Any]:
    """What modeldelta and diff both measure: norms, cosine, all singular values of the change."""
    from modeldelta.core.weight_diff import analyze_delta  # type: ignore[import-not-found]
    from safetensors import safe_open

    base, tuned = generate(options.folder, options.shape or "1.5b")
    names = [f"model.layers.0.{n}.weight" for n in ("self_attn.q_proj", "self_attn.k_proj")]
    names += [f"model.layers.0.mlp.{n}.weight" for n in ("gate_proj", "down_proj")]
    names += ["model.layers.0.input_layernorm.weight"]
    select = r"layers\.0\.(q\.weight|k\.weight|gate|down|norm\.input)"

    def theirs() -> list[dict[str, Any]]:
        rows = []
        for name in names:
            pair = []
            for folder in (base, tuned):
                for file in sorted(folder.glob("*.safetensors")):
                    with safe_open(file, "pt") as opened:
                        if name in opened.keys():  # noqa: SIM118
                            pair.append(opened.get_tensor(name))
            rows.append({"tensor": name, **analyze_delta(*pair)})
        return rows

    def ours() -> list[dict[str, Any]]:
        rows = diff(base, tuned, select=select).rows
        for row in rows:
            sides = [open_checkpoint(p) for p in (base, tuned)]
            if row["tensor"].count("norm"):
                continue
            a, b = (Side(c, c.parts[row["tensor"]]).matrix() for c in sides)
            row["sigma"] = singular_values(b - a)
        return rows

    ours()
    times, cpu = rounds({"diff": ours, "modeldelta": theirs}, options.rounds)
    return {
        "seconds": times,
        "cpu_seconds": cpu,
        "to_diff": ratios(cpu, "diff"),
        "agreement": _agreement(base, tuned, theirs(), ours()),
    }


def _agreement(
    base: Path, tuned: Path, theirs: list[dict[str, Any]], ours: list[Any]
) -> list[dict[str, Any]]:
    """Relative errors of both against float64."""
    mine = {row["tensor"]: row for row in ours}
    start, end = open_checkpoint(base), open_checkpoint(tuned)
    by_key = {part.source: name for name, part in start.parts.items()}
    rows = []
    for row in theirs:
        name = by_key[row["tensor"]]
        a, b = (Side(c, c.parts[name]).matrix().double() for c in (start, end))
        exact = float((b - a).norm())
        cosine = float((a * b).sum() / (a.norm() * b.norm()))
        one = mine[name]
        entry = {
            "tensor": name,
            "norm_error_diff": abs(one["norm"] / exact - 1),
            "norm_error_modeldelta": abs(row["frob_norm"] / exact - 1),
            "distance_error_diff": abs(one["cosine_distance"] / (1 - cosine) - 1),
            "distance_error_modeldelta": abs((1 - row["cosine_sim"]) / (1 - cosine) - 1),
            "unchanged": one["unchanged"],
            "sparsity_modeldelta": row["sparsity"],
        }
        if "sigma" in one:
            s = torch.linalg.svdvals(b - a)
            entry["s1_error_diff"] = abs(float(one["sigma"][0] / s[0]) - 1)
            entry["s1_error_modeldelta"] = abs(row["top_singular_values"][0] / float(s[0]) - 1)
        rows.append(entry)
    return rows


def large(options: Any) -> dict[str, Any]:
    """The 7B pair: the whole cheap tier with both kernels, beside merely reading the files."""
    base, tuned = generate(options.folder, options.shape or "7b")
    start, work = time.perf_counter(), time.process_time()
    nbytes = read_only(base, tuned)
    reading = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - work}
    runs: dict[str, Any] = {"read": reading}
    for kernel in _kernels():
        runs[kernel] = peak(PEAK, "diff", str(base), str(tuned), "--kernel", kernel)
    return {"gigabytes": nbytes / 1e9, "runs": runs}


def layers(options: Any) -> dict[str, Any]:
    """The 7B pair: the spectral tier, nulls included, on two layers."""
    base, tuned = generate(options.folder, options.shape or "7b")
    chosen = ("--metrics", "spectral", "--select", r"^layers\.[01]\.")
    return {"runs": {"spectral": peak(PEAK, "diff", str(base), str(tuned), *chosen)}}


def _kernels() -> tuple[str, ...]:
    """The kernels there are, the faster one first."""
    return ("numba", "torch") if importlib.util.find_spec("numba") else ("torch",)
