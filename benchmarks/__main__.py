"""`python -m benchmarks` lists, `python -m benchmarks capture [--quick]` measures."""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = {
    "attribute": "integrated gradients of every neuron beside a bare forward and captum",
    "bake": "steered generation and baked models beside the peers; baking 3 GB on disk",
    "capture": "capture of every layer beside transformer-lens, nnsight and plain hooks",
    "divergence": "KL and its kin of two models over a corpus beside their two bare forwards",
    "lens": "the logit lens at the last position and at all, beside the same",
    "patch": "patching every layer x position beside transformer-lens, nnsight and by hand",
    "probe": "a ridge sweep, folds and penalties in one pass, beside scikit-learn's loop",
    "replay": "one-token replay, replay of a suffix and early stopping, as ratios to a forward",
    "sae": "training a topk SAE beside sparsify and sae-lens, in an environment of their own",
}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*NAMES, "peak"], metavar="NAME")
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="tiny models, nothing written")
    parser.add_argument("--seconds", type=float, default=600, help="time to spend (default 600)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    if options.name is None:
        for name, what in NAMES.items():
            print(f"python -m benchmarks {name:10} {what}")
        for inner in sorted(Path(__file__).parent.glob("*/__main__.py")):
            print(f"python -m benchmarks.{inner.parent.name}")
        return
    # Before torch is imported: the numbers are for this many threads and nothing downloaded.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(variable, "1")
    import torch

    torch.set_num_threads(options.threads)
    if options.name == "peak":
        _peak(*options.rest)
    else:
        _measure(options)


def _measure(options: Any) -> None:
    from benchmarks import _report

    about = _report.machine()
    module = import_module(f"benchmarks.{options.name}")
    report = module.run(quick=options.quick, seconds=options.seconds)
    about["load_average_after"] = round(os.getloadavg()[0], 1)
    print(_report.as_markdown(report, about))
    if not options.quick:
        for path in _report.write(report, options.out, about):
            print(f"wrote {path}")


def _peak(name: str, architecture: str, tokens: str, contestant: str) -> None:
    """In a process of its own: how far one call lifts the memory's peak."""
    from benchmarks._memory import peak_growth
    from benchmarks._models import build
    from benchmarks._peers import Peers

    model = build(architecture)
    peers = Peers(model)
    everyone = import_module(f"benchmarks.{name}").at_peak

    def named(length: int) -> Any:
        return next(one for one in everyone(model, length, peers) if one.name == contestant)

    print(json.dumps({"bytes": peak_growth(named(int(tokens)), named(8))}))


if __name__ == "__main__":
    main()
