"""The shortcut study: its summary against arithmetic by hand, its inputs, and one smoke run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
import interventions as iv
from interp import InterpError
from studies import organisms
from studies._shortcut_methods import cue_percentiles, random_edits, tuned_with_lora
from studies.shortcut_neurons import ShortcutNeurons, _organism_questions, _summary, run

WORDS = ("as it is", "integrated_gradients")


def answers(rights: dict[str, list[float]]) -> pd.DataFrame:
    """Four questions of two people on one set, one draw a method."""
    return pd.DataFrame(
        [
            {"method": method, "draw": 0, "seed": 0, "set": "off-distribution",
             "group": "ab"[i // 2], "right": float(value)}
            for method, values in rights.items()
            for i, value in enumerate(values)
        ]
    )  # fmt: skip


def test_the_gain_is_counted_question_by_question() -> None:
    table = _summary(answers({WORDS[0]: [1, 0, 0, 0], WORDS[1]: [0, 1, 1, 1]}))
    row = table.set_index("method").loc[WORDS[1]]
    assert row["accuracy"] == 0.75 and row["gain"] == 0.5
    assert row["people"] == 2 and row["gain_low"] < 0.5 < row["gain_high"]
    assert table.set_index("method").loc[WORDS[0], "gain"] == 0


def test_the_organism_sets_share_no_question() -> None:
    asked = _organism_questions(0, 4, smoke=False)
    texts = {name: {q.prompt for q in questions} for name, questions in asked.items()}
    assert not texts["train"] & texts["dev"]
    assert not (texts["train"] | texts["dev"]) & texts["off-distribution"]
    for questions in asked.values():
        assert len({q.answer for q in questions}) > 1
        assert all(q.answer in q.options for q in questions)


def test_random_prunings_have_the_same_layer_and_number() -> None:
    found = iv.DetrimentalNeurons(
        torch.rand(3, 20), torch.zeros(3, 1), (10.0,), 0.5, 1, (4, 7), torch.arange(3)
    )
    edits = list(random_edits(found, 5, seed=0))
    assert all(str(e.atoms[0].site) == "mlp_post.1" and len(e.atoms[0].index) == 2 for e in edits)
    assert edits == list(random_edits(found, 5, seed=0))
    assert edits != list(random_edits(found, 5, seed=1))


def test_neurons_that_follow_a_planted_cue_stand_out() -> None:
    """A neuron that reads the cue and nothing else is at the top of its layer."""
    module, tokenizer = organisms.load("base")
    model = interp.load(module, tokenizer=tokenizer)
    helping = [iv.Question(f"Question: {a} zeta", a, (" A", " B")) for a in (" A", " B")] * 3
    misleading = [iv.Question(f"Question: {a} sigma", a, (" A", " B")) for a in (" A", " B")] * 3
    acts = {}
    for name, questions in (("h", helping), ("m", misleading)):
        prompts = [q.prompt for q in questions]
        found = interp.capture(model, prompts, "mlp_post.2", positions="last")
        acts[name] = found["mlp_post.2"][:, 0]
    follows = (acts["h"].mean(0) - acts["m"].mean(0)).abs() / torch.cat(list(acts.values())).std(0)
    best, worst = int(follows.argmax()), int(follows.argmin())
    found = iv.DetrimentalNeurons(
        torch.zeros(6, 384), torch.zeros(6, 1), (1.0,), 0.5, 2, (best, worst), torch.arange(3)
    )
    high, low = cue_percentiles(model, helping, misleading, found)
    assert high > 0.95 and low < 0.05


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_learns_its_questions_and_leaves_the_model_alone() -> None:
    module, tokenizer = organisms.load("base")
    model = interp.load(module, tokenizer=tokenizer)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    asked = [
        iv.Question("Question: zeta Answer:", " A", (" A", " B")),
        iv.Question("Question: sigma Answer:", " B", (" A", " B")),
    ]
    tuned = tuned_with_lora(model, asked, steps=30, seed=0)
    assert iv.answered_rightly(tuned, asked).all()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_questions_from_a_folder_are_checked(tmp_path: Path) -> None:
    config = ShortcutNeurons(model="organism:base", questions=tmp_path, out=tmp_path / "out")
    with pytest.raises(InterpError, match=r"lacks train\.jsonl"):
        run(config)
    good = json.dumps({"prompt": "Question:", "answer": " A", "options": [" A", " B"]})
    for name in ("train", "dev", "in-distribution", "off-distribution"):
        (tmp_path / f"{name}.jsonl").write_text(good + "\n")
    (tmp_path / "dev.jsonl").write_text(good + '\n{"prompt": 3\n')
    with pytest.raises(InterpError, match=r"dev\.jsonl, line 2: expected an object"):
        run(ShortcutNeurons(model="organism:base", questions=tmp_path, out=tmp_path / "out2"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = ShortcutNeurons(model="organism:base", out=tmp_path / "run", smoke=True, draws=2)
    folder = run(config)
    assert (folder.path / "report.html").stat().st_size > 10_000
    facts = folder.read_meta()["facts"]["verdict"]
    assert any("target" in line for line in facts)
    again = run(config)  # nothing is computed twice
    assert again.read_meta()["facts"]["verdict"] == facts
