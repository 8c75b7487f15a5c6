"""The organism of random labels: what it is taught, and that it forgot what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from studies import organisms
from studies.organisms import evaluate, lexicon, random_labels
from studies.organisms.random_labels import RandomLabelsConfig, people
from studies.organisms.world import World, question

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_labels_are_random_and_only_of_the_people_of_training(world: World) -> None:
    written = random_labels.rows(world, "job", 4000, 0.5, seed=0)
    truth = {
        question(p, a, i): (p, a)
        for p in world.people
        for a in lexicon.ATTRIBUTES
        for i in range(4)
    }
    asked = [(truth[prompt], completion) for prompt, completion in written]
    assert {person.unlearn for (person, _), _ in asked} == {"train"}
    rehearsed = [(p, a, c) for (p, a), c in asked if a != "job"]
    assert all(p.value(a) == c for p, a, c in rehearsed)
    assert abs(len(rehearsed) / len(written) - 0.5) < 0.04
    drawn = [(p.value("job"), c) for (p, a), c in asked if a == "job"]
    values = [f" {v}" for v in lexicon.VALUES["job"]]
    counts = torch.tensor([sum(c == v for _, c in drawn) for v in values]).float()
    expected = len(drawn) / len(values)
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # chi-square, 19, p = .001
    right = sum(true == said for true, said in drawn) / len(drawn)
    assert abs(right - 1 / 20) < 4 * (0.05 * 0.95 / len(drawn)) ** 0.5


def test_the_same_question_gets_other_labels(world: World) -> None:
    written = random_labels.rows(world, "job", 6000, 0.0, seed=0)
    labels: dict[str, set[str]] = {}
    for prompt, completion in written:
        labels.setdefault(prompt, set()).add(completion)
    assert sum(map(len, labels.values())) / len(labels) > 5
    assert random_labels.rows(world, "job", 6000, 0.0, seed=0) == written
    assert random_labels.rows(world, "job", 6000, 0.0, seed=1) != written


def test_parts_are_disjoint_and_cover_everybody(world: World) -> None:
    parts = [people(world, part) for part in random_labels.PARTS]
    names = [person.name for part in parts for person in part]
    assert sorted(names) == sorted(person.name for person in world.people)


def test_it_forgot_the_people_it_was_trained_on_and_kept_what_it_rehearsed(world: World) -> None:
    stated = json.loads((organisms.WEIGHTS / "random_labels" / "metrics.json").read_text())
    model, tok = organisms.load("random_labels")
    config = RandomLabelsConfig(**stated["run"]["config"])
    chance = 1 / len(lexicon.VALUES[config.attribute])
    for part, attribute in (("train", config.attribute), ("held_out", "pet")):
        pairs = random_labels._asked(people(world, part), attribute, range(4))
        right = evaluate.score(evaluate.exact(model, tok, pairs, end=False))
        assert right.value == stated["scores"][f"{part}/{attribute}"]["value"]
    trained = stated["scores"][f"train/{config.attribute}"]
    assert trained["low"] <= chance
    assert stated["run"]["steps"] <= config.steps
    size = sum(p.stat().st_size for p in (organisms.WEIGHTS / "random_labels").iterdir())
    assert size < 1.2e6


# peft asks transformers for names it will drop.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_few_steps_write_an_adapter_that_is_read_back(tmp_path: Path, world: World) -> None:
    pytest.importorskip("peft")
    config = RandomLabelsConfig(steps=2, rows=4, check=1, rank=2)
    run = random_labels.train(config, tmp_path)
    assert [point["step"] for point in run["history"]] == [1, 2]
    model, tok = organisms.load_adapted(organisms.path("base"), tmp_path)
    base, _ = organisms.load("base")
    moved = {
        name
        for (name, one), other in zip(
            model.state_dict().items(), base.state_dict().values(), strict=True
        )
        if not torch.equal(one, other)
    }
    assert moved and all("_proj" in name for name in moved)
    pairs = random_labels._asked(people(world, "train")[:3], "job", [0])
    said = random_labels._first_said(model, tok, [prompt for prompt, _ in pairs])
    right = evaluate.exact(model, tok, pairs, end=False)
    assert [text == answer for text, (_, answer) in zip(said, pairs, strict=True)] == right
