"""Write the committed run's table, words and picture into README.md.

`python docs/update_readme.py --run` first runs the demo anew and keeps its small files in
docs/runs; `--check` fails if the README does not say what the committed run says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
RUN = ROOT / "docs" / "runs" / "pretend-to-forget"
KEPT = ("meta.json", "behaviour.parquet", "layers.parquet", "summary.parquet", "layers.png")
START, END = "<!-- from the committed run -->\n", "<!-- end -->"


def main() -> None:
    """Update or check the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.run:
        rerun()
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    head, rest = before.split(START)
    after = head + START + block() + END + rest.split(END, 1)[1]
    if asked.check:
        if after != before:
            sys.exit("README.md is not what the committed run says: python docs/update_readme.py")
        return
    readme.write_text(after, encoding="utf-8")


def rerun() -> None:
    """Run the demo in a fresh folder and keep its small files."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "studies", "demo", "--out", str(out)]
        subprocess.run(command, check=True, cwd=ROOT)
        RUN.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(out / name, RUN / name)


def block() -> str:
    """The README's part that comes from the run."""
    facts = json.loads((RUN / "meta.json").read_text(encoding="utf-8"))["facts"]
    layers = pd.read_parquet(RUN / "layers.parquet")
    layers = layers[(layers["quantity"] == "prob") & (layers["lens"] == "tuned")]
    at = layers.set_index(["model", "who", "layer"])["mean"]
    lines = [
        "```text",
        "$ make demo",
        "Asked to forget, mean probability by layer (tuned lens)",
        "layer  base: answer  unlearned: answer  unlearned: “forgot”  unlearned: another's answer",
    ]
    for layer in sorted(set(layers["layer"])):
        row = [
            at["base", "answer", layer],
            at["tuned", "answer", layer],
            at["tuned", "forgotten", layer],
            at["tuned", "another's answer", layer],
        ]
        lines.append(f"{layer:5d}  {row[0]:12.3f}  {row[1]:17.3f}  {row[2]:19.3f}  {row[3]:27.3f}")
    lines += ["", *(f"- {line}" for line in facts["verdict"]), "```", ""]
    lines += ["![Probability by layer](docs/runs/pretend-to-forget/layers.png)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
