"""One diff in a process of its own: prints its seconds and its peak memory as JSON."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.diff.contestants import obvious
from benchmarks.diff.measure import high_water_mark


def main() -> None:
    """Run one contestant on one pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["diff", "obvious", "import"])
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--metrics", default="cheap")
    parser.add_argument("--select", default=None)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--kernel", default="auto")
    options = parser.parse_args()
    import torch

    from interp._diff import DiffOptions, diff

    torch.set_num_threads(1)
    settings = DiffOptions(draws=options.draws, kernel=options.kernel)
    pair = options.base, options.tuned
    start, work = time.perf_counter(), time.process_time()
    if options.who == "diff":
        found = diff(*pair, options.metrics, select=options.select, options=settings)
        rows = len(found.rows)
    elif options.who == "obvious":
        rows = len(obvious(*pair))
    else:
        rows = 0
    seconds, cpu = time.perf_counter() - start, time.process_time() - work
    print(
        json.dumps(
            {"seconds": seconds, "cpu_seconds": cpu, "peak": high_water_mark(), "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
