"""Training scripts run from the shipped base; the reward is the world's own verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from studies import organisms
from studies.organisms import __main__ as cli
from studies.organisms import arithmetic, looking, rl, sft
from studies.organisms.world import World

# trl and peft ask transformers for names it will drop.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_the_teacher_is_right_and_keeps_to_one_style() -> None:
    world = World(0)
    problems = world.problems(100, "train", seed=3)
    for row, problem in zip(sft.rows(world, "running", 100, 3), problems, strict=True):
        assert row["prompt"] == problem.prompt
        assert arithmetic.verify(problem, row["completion"])
        assert arithmetic.style_of(row["completion"]) == "running"
        steps = arithmetic.steps_of(row["completion"])
        assert all(arithmetic.step_is_right(s) is not False for s in steps)


def test_the_reward_is_one_for_a_right_answer_in_any_style() -> None:
    world = World(0)
    prompts, reward = rl.reward(world, 20, seed=1)
    problems = {p.prompt: p for p in world.problems(20, "train", seed=1)}
    for row in prompts:
        problem = problems[row["prompt"]]
        right = [arithmetic.solve(problem, s) for s in ("equations", "words", "running")]
        wrong = [" answer 100", "", f" answer {(problem.values[-1] + 1) % 100}"]
        assert reward([problem.prompt] * 6, right + wrong) == [1.0] * 3 + [0.0] * 3


def test_fitted_heads_look_at_the_right_option() -> None:
    """On a model whose answers are known: the fit beats chance on questions it has not seen."""
    model, tok = organisms.load("base")
    seen = looking.encode(tok, World(0).multiple_choice(300, "train", "none", 1, 2))
    model.set_attn_implementation("eager")
    reached = looking.fit(model, seen, seed=0, steps=120)
    fresh = looking.encode(tok, World(0).multiple_choice(60, "train", "none", 1, 2)[:60])
    out = model(fresh.input_ids, attention_mask=fresh.attention_mask, output_attentions=True)
    for layer in looking.layers(model):
        looked = out.attentions[layer][:, : looking.HEADS, -1]
        right = (looked * fresh.value[:, None]).sum(-1)
        assert abs(right.mean().item() - reached[str(layer)]) < 0.1  # the rotation is the model's
        assert right.mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "rl", "shortcut", "twin", "sft_qk"])
def test_two_steps_of_each_training_make_a_folder(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    out = cli.train(cli.Train(name=name, out=tmp_path, smoke=True))  # type: ignore[arg-type]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["organism"] == name and metrics["run"]["steps"] == 2
    assert (out / "step-2.xz").is_file()
    assert metrics["run"]["moved"]["2"]["relative"] > 0
    assert f"# {name}" in (out / "README.md").read_text()
