"""The benchmarks run, compare equal things and count bytes; nothing here is timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from benchmarks import _measure, _memory, _models, _plain


@pytest.mark.parametrize("architecture", _models.ARCHITECTURES)
@pytest.mark.parametrize("logits", [False, True])
def test_capture_retains_exactly_what_was_asked(architecture: str, logits: bool) -> None:
    model = _models.build(architecture, tiny=True)
    ids = _models.random_ids(model, 2, 16)
    kinds = ("resid_post", "z", "mlp_post")
    acts = interp.capture(model, ids, [f"{kind}.*" for kind in kinds], logits=logits)
    held = _measure.Held({str(site): tensor for site, tensor in acts.items()})
    assert _memory.retained(held) == _plain.asked_bytes(model, ids, kinds)
    assert _memory.retained(held) == _memory.exact(acts.values())


def test_retained_counts_the_whole_storage_behind_a_view_once() -> None:
    whole = torch.zeros(10, 10)
    assert _memory.retained(_measure.Held({"a": whole[0], "b": whole[1:3]})) == 400


def test_median_ratio_is_paired_by_round() -> None:
    noise = np.random.default_rng(0).uniform(1, 50, 40)  # shared by both in each round
    timing = _measure.Timing({"a": list(noise), "b": list(1.25 * noise)}, {})
    ratio = timing.ratio("b", "a")
    assert ratio.median == ratio.low == ratio.high == pytest.approx(1.25)


def test_disagreement_finds_a_contestant_that_computes_something_else() -> None:
    def gives(value: float) -> _measure.Contestant:
        tensors = {"z.0": torch.full((2, 2), value)}
        return _measure.Contestant(str(value), lambda: _measure.Held(tensors))

    assert _measure.disagreement([gives(1.0), gives(1.5)]) == {"1.5": 0.5}


def test_contestants_of_ours_and_by_hand_agree() -> None:
    from benchmarks import attribute, bake, capture, divergence, lens, replay
    from benchmarks._peers import Peers

    model = _models.build("llama", tiny=True)
    ids, peers = _models.random_ids(model, 1, 16), Peers(model)
    groups = (
        capture.contestants(model, ids, peers),
        lens.contestants(model, ids, peers, True, judged=False),
        replay.contestants(model, ids),
        attribute.beside_captum(model, ids, 1.0),
        bake.contestants(model, ids, peers),
        divergence.contestants(model, divergence.moved(model), ids, 1, judged=False),
    )
    for everyone in groups:
        mine = [one for one in everyone if not one.name.startswith(("transformer-lens", "nnsight"))]
        gaps = _measure.disagreement(mine)
        assert gaps
        assert max(gaps.values()) < 1e-5


@pytest.mark.parametrize(
    "name", ["attribute", "bake", "capture", "divergence", "lens", "patch", "replay"]
)
def test_quick_runs_every_contestant_and_writes_nothing(name: str, root: Path) -> None:
    results = root / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "llama: 2 layers" in done.stdout
    assert "gpt2: 2 layers" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.glob("*")} == before
