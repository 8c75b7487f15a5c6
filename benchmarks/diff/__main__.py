"""`python -m benchmarks.diff cheap --folder /big/disk`: weight diffs, measured.

cheap     the 1.5B pair: the cheap tier beside the obvious loop and merely reading the files
spectral  a 4096 x 4096 pair: singular values and subspaces beside svdvals
peer      two layers of the 1.5B pair beside modeldelta (in the same environment)
nulls     published overlaps and Jaccards beside gated isotropic noise of the same density
large     the 7B pair: the cheap tier
layers    the 7B pair: the spectral tier on two layers
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Parse, generate, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diff",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=["cheap", "spectral", "peer", "nulls", "large", "layers"])
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (31 GB for 7B)")
    parser.add_argument("--shape", default=None, choices=["0.5b", "1.5b", "7b"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="side of the spectral pair")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.name not in ("spectral", "nulls") and options.folder is None:
        parser.error("--folder says where the checkpoints go; they are large and stay there")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    import torch

    torch.set_num_threads(1)
    from benchmarks.diff import cases, write

    result: dict[str, Any] = getattr(cases, options.name)(options)
    result["numba"] = importlib.util.find_spec("numba") is not None
    for path in write.write(options.name, result, options.out):
        print(f"wrote {path.name}")
    print(write.markdown(options.name, result))


if __name__ == "__main__":
    main()
