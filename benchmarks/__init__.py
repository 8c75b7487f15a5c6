"""Speed and memory beside the peers, measured in one process: `python -m benchmarks`."""
