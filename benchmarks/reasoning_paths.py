"""`python -m benchmarks.reasoning_paths chrf|graph [--quick]`: reasoning paths at size.

chrf   all pairs of 256 outputs: probes.chrf_matrix beside one sacreBLEU call a pair
graph  200,000 steps of 256 dimensions in 2000 nodes, with betweenness, in a process of its own;
       --controls adds what rates and ratios with their nulls cost
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS, PEAK = 180, 4 * 2**30  # promised for the graph
FACTOR = 10  # promised for chrF
SIZES = {True: (600, 40, 16), False: (200_000, 2000, 256)}  # steps, nodes, dimensions
MODELS, PROBLEMS, LENGTH = 3, 40, 20


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reasoning_paths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=["chrf", "graph", "graph-here"])
    parser.add_argument("--quick", action="store_true", help="tiny, nothing written")
    parser.add_argument("--controls", action="store_true", help="of the graph: minutes more")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS, K-means and rustworkx")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    if options.name == "graph-here":
        print(json.dumps(graph_here(quick=options.quick, controls=options.controls)))
        return
    if options.name == "chrf":
        result = chrf(quick=options.quick)
    else:
        result = graph(quick=options.quick, threads=options.threads, controls=options.controls)
    from benchmarks._report import machine

    about = machine() | {"torch_threads": options.threads}
    text = markdown(options.name, result, about)
    print(text)
    if not options.quick:
        file = RESULTS / f"reasoning-{options.name}"
        file.with_suffix(".md").write_text(text, encoding="utf-8")
        data = json.dumps({"machine": about, **result}, indent=1)
        file.with_suffix(".json").write_text(data + "\n", encoding="utf-8")


def outputs(count: int, words: int, seed: int = 0) -> list[str]:
    """Outputs that resemble each other as samples for one problem do."""
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choices("abcdefghij=+ 0123", k=rng.randint(1, 7))) for _ in range(300)
    ]
    base = rng.choices(vocabulary, k=words)
    return [
        " ".join(w if rng.random() < 0.8 else rng.choice(vocabulary) for w in base)
        for _ in range(count)
    ]


def chrf(*, quick: bool) -> dict[str, Any]:
    """Both ways on the same outputs, and the largest difference of any pair."""
    from sacrebleu.metrics import CHRF

    from probes import chrf_matrix

    texts = outputs(12 if quick else 256, 20 if quick else 120)
    metric = CHRF()
    chrf_matrix(texts[:4])  # imports
    rows, difference = [], 0.0
    ours: list[tuple[float, float]] = []
    for _ in range(5):
        matrix, *spent = _timed(lambda: chrf_matrix(texts))
        ours.append((spent[0], spent[1]))
    theirs, wall, cpu = _timed(
        lambda: np.array([[metric.sentence_score(a, [b]).score for b in texts] for a in texts])
    )
    difference = float(np.abs(matrix.numpy() - theirs).max())
    best = sorted(ours, key=lambda pair: pair[1])[len(ours) // 2]
    rows.append({"": "sacreBLEU, one call a pair", "wall s": wall, "CPU s": cpu})
    rows.append({"": "probes.chrf_matrix (median of 5)", "wall s": best[0], "CPU s": best[1]})
    factor = cpu / best[1]
    return {
        "what": f"{len(texts)} outputs of about {np.mean([len(t) for t in texts]):.0f} characters, "
        f"all {len(texts) ** 2:,} ordered pairs.",
        "rows": rows,
        "found": {
            "times faster (CPU)": factor,
            "largest difference": difference,
            f"promised: at least {FACTOR} times": "met" if factor >= FACTOR else "missed",
        },
    }


def graph(*, quick: bool, threads: int, controls: bool) -> dict[str, Any]:
    """The graph in a fresh process, so that the peak is its own."""
    command = [sys.executable, "-m", "benchmarks.reasoning_paths", "graph-here"]
    command += ["--threads", str(threads)]
    command += ["--quick"] * quick + ["--controls"] * controls
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    promised = [row for row in result["rows"] if row["promised"]]
    wall = sum(row["wall s"] for row in promised)
    cpu = sum(row["CPU s"] for row in promised)
    within = cpu if threads == 1 else wall
    peak = result["peak_bytes"]
    result["found"] = {
        "graph and node table, wall s": wall,
        "graph and node table, CPU s": cpu,
        "peak GiB, inputs and imports included": peak / 2**30,
        f"promised: under {SECONDS} s (CPU of one thread, or wall)": "met"
        if within < SECONDS
        else "missed",
        f"promised: under {PEAK // 2**30} GiB": "met" if peak < PEAK else "missed",
    }
    return result


def graph_here(*, quick: bool, controls: bool) -> dict[str, Any]:
    """Planted steps in this process: what each stage costs; the peak after the promised ones."""
    import probes

    steps, nodes, dimensions = SIZES[quick]
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((nodes, dimensions)).astype(np.float32)
    weight = 1 / np.arange(1, nodes + 1) ** 0.7
    node = rng.choice(nodes, steps, p=weight / weight.sum())
    points = centres[node]
    points += 0.7 * rng.standard_normal(points.shape, dtype=np.float32)
    traces = [
        probes.Rollout(
            str(number % PROBLEMS), f"model {number % MODELS}",
            ";".join(map(str, range(at, min(at + LENGTH, steps)))),
        )
        for number, at in enumerate(range(0, steps, LENGTH))
    ]  # fmt: skip

    def embed(texts: list[str]) -> np.ndarray:
        return points[np.array([int(text) for text in texts])]

    stages: list[tuple[str, bool, Callable[[], Any]]] = [
        (
            "graph: split, K-means, walks",
            True,
            lambda: probes.reasoning_graph(
                traces, separator=";", embed=embed, k=nodes, progress=False
            ),
        ),
        ("visits, degree, betweenness of every node of 3 models", True, lambda: found.table()),
        (
            "rates of 3 graphs, 5 draws of each of 3 controls",
            False,
            lambda: found.rates(per="model", draws=5),
        ),
        ("ratios over 40 problems, 5 draws of each", False, lambda: found.compare(draws=5)),
    ]
    rows, peak = [], 0
    for name, promised, call in stages if controls else stages[:2]:
        result, wall, cpu = _timed(call)
        if promised:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not rows:
            found = result
        rows.append({"": name, "promised": promised, "wall s": wall, "CPU s": cpu})
    edges = [len(found.edges(model)) for model in found.models]
    return {
        "what": f"{steps:,} steps of {dimensions} dimensions, {len(traces):,} outputs of {MODELS} "
        f"models for {PROBLEMS} problems; {found.meta['nodes']} nodes by "
        f"{found.meta['clustering']}; {min(edges):,} to {max(edges):,} edges a model.",
        "rows": rows,
        "peak_bytes": peak,
    }


def markdown(name: str, result: dict[str, Any], about: dict[str, Any]) -> str:
    """One page."""
    columns = list(result["rows"][0])
    lines = [
        f"# reasoning paths: {name}",
        "",
        f"Written by `python -m benchmarks.reasoning_paths {name}`; do not edit.",
        "",
        result["what"],
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in result["rows"]]
    lines += ["", *(f"- {key}: {_cell(value)}" for key, value in result["found"].items())]
    lines += ["", "Machine:", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
