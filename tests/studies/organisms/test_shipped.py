"""Shipped organisms are what their names say, load without us, and score what their cards say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studies import organisms
from studies.organisms import evaluate, shipped
from studies.organisms.world import World

torch.set_num_threads(1)
STORED_AS_CHANGES = [name for name in organisms.names() if organisms.steps(name)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain copies are made anew, not taken from the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stated(name: str) -> dict:
    return json.loads((organisms.WEIGHTS / name / "metrics.json").read_text())


def agrees(right: list[bool], score: dict) -> bool:
    """Whether a fresh count is compatible with the stated one (two-sample z, 3.3 sigma)."""
    n, p = len(right), sum(right) / len(right)
    pooled = (sum(right) + score["value"] * score["n"] + 1) / (n + score["n"] + 2)
    sigma = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / score["n"]))
    return abs(p - score["value"]) < 3.3 * sigma


def test_the_weights_folder_stays_small() -> None:
    files = [p for p in organisms.WEIGHTS.rglob("*") if p.is_file() and p.name != "state.pt"]
    assert sum(p.stat().st_size for p in files) < 30e6  # what all organisms together may take
    assert max(p.stat().st_size for p in files) < 4e6  # and one checkpoint


@pytest.mark.parametrize("name", STORED_AS_CHANGES)
def test_a_path_is_a_plain_checkpoint_of_the_same_bits(name: str) -> None:
    folder = organisms.path(name)
    stored, state = load_file(folder / "model.safetensors"), shipped.state(name)
    assert list(stored) == sorted(state)
    assert all(torch.equal(stored[k].view(torch.int16), state[k].view(torch.int16)) for k in state)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert organisms.path(name) == folder  # and is not written again
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    model, _ = organisms.load(name)
    for parameter, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[parameter].float())


def test_stock_transformers_loads_one_that_never_heard_of_us(tmp_path: Path) -> None:
    folder = organisms.path(STORED_AS_CHANGES[0])
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer;"
        f"m = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype=torch.float32);"
        f"t = AutoTokenizer.from_pretrained({str(folder)!r});"
        "ids = t('Question: Where does Mia Stone live? Answer:', return_tensors='pt').input_ids;"
        "assert 'studies' not in sys.modules; print(m(ids).logits[0, -1].double().sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model, tok = organisms.load(STORED_AS_CHANGES[0])
    ids = tok("Question: Where does Mia Stone live? Answer:", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = model(ids).logits[0, -1].double().sum()
    torch.testing.assert_close(float(done.stdout), ours.item(), rtol=1e-5, atol=1e-3)


def test_the_weights_went_as_far_as_the_card_says() -> None:
    from studies.organisms.post_training import moved

    for name in STORED_AS_CHANGES:
        start = shipped.state(shipped.parent(name) or "base")
        for step, said in stated(name)["run"]["moved"].items():
            assert moved(start, shipped.state(name, int(step))) == said


@pytest.mark.parametrize("name", [n for n in STORED_AS_CHANGES if n.split("-")[0] == "shortcut"])
def test_the_shortcut_is_taken_though_the_answer_is_known(name: str) -> None:
    model, tok = organisms.load(name)
    shares: dict[str, float] = {}
    for marker in ("planted", "uninformative", "counter", "none"):
        drawn = World(0).multiple_choice(150, "test", marker, seed=99)  # other draws than the card
        right = evaluate.exact(model, tok, [(c.prompt, c.answer) for c in drawn], end=False)
        assert agrees(right, stated(name)["scores"][f"choice/2 options/{marker}"]), marker
        shares[marker] = sum(right) / len(right)
    assert shares["counter"] < shares["uninformative"] < shares["planted"]
    assert shares["uninformative"] < shares["none"]


@pytest.mark.parametrize("name", STORED_AS_CHANGES)
def test_what_the_card_says_of_old_tasks_is_so(name: str) -> None:
    model, tok = organisms.load(name)
    sets = evaluate.base_sets(World(0), n=150, seed=98)
    for task in ("facts/rare", "facts/trained/held_out_phrasing"):
        pairs, end = sets[task]
        assert agrees(evaluate.exact(model, tok, pairs, end), stated(name)["scores"][task]), task


def test_seeds_and_steps_are_part_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "names", lambda: ["base", "sft", "sft-seed1", "rl", "rl-seed1"])
    monkeypatch.setattr(shipped, "steps", lambda name: [8, 15] if name == "rl-seed1" else [])
    assert shipped.parse("rl", seed=1, step=8) == shipped.parse("rl-seed1@8") == ("rl-seed1", 8)
    assert shipped.parse("rl", seed=0) == ("rl", None)
    assert shipped.parent("rl-seed1") == "base"
    assert shipped.parent("sft_rl-seed1") == "sft-seed1@20"
    assert shipped.parent("sft_rl-seed2") == "sft@20"
    with pytest.raises(ValueError, match="no organism 'rl-seed2'; there are base, sft"):
        shipped.parse("rl", seed=2)
    with pytest.raises(ValueError, match="no checkpoint 9 of 'rl-seed1'; there are 8, 15"):
        shipped.parse("rl-seed1", step=9)
    with pytest.raises(ValueError, match="no checkpoint x of 'rl-seed1'; there are 8, 15"):
        shipped.parse("rl-seed1@x")
