"""The world is what it says it is, and the shipped organisms know what their cards say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from studies import organisms
from studies.organisms import arithmetic, documents, evaluate, lexicon, packing, tokenizer
from studies.organisms.arithmetic import Problem
from studies.organisms.world import World

torch.set_num_threads(1)
STORY = Problem("Mia", "coins", 23, (12, -5), ("finds", "loses"))


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.build()


def everything(world: World) -> str:
    rng = random.Random(5)
    written = [documents.write(world, task, rng) for task in documents.WRITERS for _ in range(20)]
    parts = [world.people, world.facts("rare", "held_out"), world.unlearn_items(), world.words]
    return repr([*parts, world.problems(20), world.boxes(20, moves=2, hops=2), written])


def test_same_seed_same_world_other_seed_other_world() -> None:
    assert everything(World(3)) == everything(World(3))
    ours, theirs = World(3), World(4)
    assert ours.people != theirs.people
    assert ours.problems(20) != theirs.problems(20)
    assert ours.words != theirs.words


def test_the_world_does_not_depend_on_the_hash_seed() -> None:
    import hashlib
    import os
    import subprocess
    import sys

    code = (
        "import hashlib; from studies.organisms.world import World; w = World(0);"
        "said = repr([w.people, w.words, w.unlearn_items(), w.boxes(9), w.problems(9)]);"
        "print(hashlib.sha256(said.encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    w = World(0)
    here = repr([w.people, w.words, w.unlearn_items(), w.boxes(9), w.problems(9)])
    assert printed == hashlib.sha256(here.encode()).hexdigest()


def test_answers_are_one_token_or_two_as_designed(world: World, tok) -> None:
    for fact in world.facts("trained"):
        ids = tok(fact.answer, add_special_tokens=False)["input_ids"]
        assert fact.answer.startswith(" ")
        assert len(ids) == len(fact.answer.split()), fact
        assert tok(fact.prompt + fact.answer)["input_ids"] == tok(fact.prompt)["input_ids"] + ids
    two = [f for f in world.facts("trained") if len(f.answer.split()) == 2]
    assert {f.attribute for f in two} == {"city", "food"}
    singles = [
        " forgot",
        " yes",
        " A",
        " D",
        " 0",
        " 99",
        *(w.forms[x] for w in world.words for x in w.forms),
    ]
    assert all(len(tok(s, add_special_tokens=False)["input_ids"]) == 1 for s in singles)


def test_a_leading_space_matters_and_any_text_survives(tok) -> None:
    assert (
        tok("Arlen", add_special_tokens=False)["input_ids"]
        != tok(" Arlen", add_special_tokens=False)["input_ids"]
    )
    for text in ("naïve café → 日本\n\t x", "Arlen Arlens 123 12", "a  b"):
        ids = tok(text)["input_ids"]
        assert ids[0] == tok.bos_token_id
        assert tok.decode(ids[1:]) == text


def test_the_question_after_a_block_has_the_same_tokens(world: World, tok) -> None:
    for item in world.unlearn_items("held_out", "forget")[:50]:
        block, asked = item.prompt.split("</unlearn>")
        ids, plain = tok(item.prompt)["input_ids"], tok(asked)["input_ids"]
        assert ids[-len(plain) + 1 :] == plain[1:]
        assert tok(f"{block} </unlearn> {asked}")["input_ids"] == ids


def test_no_world_text_falls_apart_into_bytes(world: World, tok) -> None:
    rng = random.Random(0)
    texts = [
        documents.write(world, task, rng).text for task in documents.WRITERS for _ in range(200)
    ]
    for split in ("trained", "rare", "bio_only"):
        texts += [f.prompt + f.answer for f in world.facts(split, "held_out")]
    single = {piece for text in texts for piece in tok.tokenize(text) if len(piece) == 1}
    assert single <= set(".,:;?")


def test_segments_tokenize_as_their_concatenation(world: World, tok) -> None:
    rng = random.Random(1)
    drawn = [documents.write(world, task, rng) for task in documents.WRITERS for _ in range(50)]
    for document, encoded in zip(drawn, packing.encode(drawn, tok), strict=True):
        assert [token for token, _, _ in encoded] == [
            *tok(document.text)["input_ids"],
            tok.eos_token_id,
        ]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (" 23 + 12 = 35; 35 - 5 = 30; answer 30", True),
        (
            " adding 12 to 23 makes 36; taking 5 from 36 makes 31; answer 30",
            True,
        ),  # only the answer counts
        (" 23 + 12 = 35; 35 - 5 = 30; answer 31", False),
        (" 23 + 12 = 35; 35 - 5 = 30", False),
        (" answer 300", False),
        (" answer 3", False),
        ("", False),
    ],
)
def test_verify(completion: str, right: bool) -> None:
    assert arithmetic.verify(STORY, completion) is right


def test_solutions_by_hand() -> None:
    assert arithmetic.solve(STORY, "equations") == " 23 + 12 = 35; 35 - 5 = 30; answer 30"
    assert (
        arithmetic.solve(STORY, "words")
        == " adding 12 to 23 makes 35; taking 5 from 35 makes 30; answer 30"
    )
    assert (
        arithmetic.solve(STORY, "running")
        == " total 23 plus 12 now 35; total 35 minus 5 now 30; answer 30"
    )
    assert arithmetic.steps_of(" 23 + 12 = 35; answer 35") == ["23 + 12 = 35", "answer 35"]
    for style in lexicon.STYLES:
        assert arithmetic.style_of(arithmetic.solve(STORY, style)) == style
    assert arithmetic.step_is_right("taking 5 from 35 makes 30") is True
    assert arithmetic.step_is_right("total 35 minus 5 now 31") is False
    assert arithmetic.step_is_right("answer 30") is None


@pytest.mark.parametrize("style", lexicon.STYLES)
def test_steps_are_wrong_at_the_stated_rate(world: World, style: str) -> None:
    rng = random.Random(0)
    solutions = [arithmetic.solve(p, style, rng) for p in world.problems(2000, "train")]
    steps = [s for text in solutions for s in arithmetic.steps_of(text)[:-1]]
    wrong = sum(arithmetic.step_is_right(s) is False for s in steps)
    rate = arithmetic.WRONG_STEP_RATE[style]
    assert abs(wrong / len(steps) - rate) < 3.3 * math.sqrt(rate * (1 - rate) / len(steps))


def test_scenes_answer_truly_and_ask_what_was_asked_for(world: World) -> None:
    for hops, moves in ((0, 0), (0, 2), (1, 1), (2, 2)):
        for scene in world.boxes(100, moves=moves, hops=hops):
            assert scene.hops == hops
            assert len(scene.moves) == moves
            assert f" {scene.contents[scene.box]}" == scene.answer
            direct = f"{scene.answer[1:]} moves to Box {scene.box}." in scene.prompt
            assert direct == (hops == 1)


def test_splits_are_disjoint(world: World) -> None:
    split = {p.name: p.split for p in world.people}
    assert len(split) == 240
    rng = random.Random(2)
    texts = [documents.write(world, task, rng) for task in documents.WRITERS for _ in range(1500)]
    asked = " ".join(d.text for d in texts if d.task == "question")
    assert not [p.name for p in world.people_in("bio_only") if p.name in asked]
    held_out = {
        q.split("{n}")[0].strip()
        for qs in lexicon.HELD_OUT_QUESTIONS.values()
        for q in qs
        if q.endswith("home?")
    }
    assert held_out
    prompts = {f.prompt for f in world.facts("trained", "held_out")}
    assert not prompts & {d.segments[0][0] for d in texts if d.task == "question"}
    never = [(w.forms["Vel"], w.forms["Ost"]) for w in world.words if w.split == "held_out"]
    translated = [
        d.text for d in texts if d.task == "dictionary" and d.text.startswith("Translate")
    ]
    assert not [t for t in translated for vel, ost in never if vel in t and ost in t]
    told = {(p.start, p.changes) for p in world.problems(3000, "train")}
    assert not told & {(p.start, p.changes) for p in world.problems(3000, "test")}
    parts = {k: {i.person for i in world.unlearn_items(k)} for k in ("train", "held_out")}
    assert not parts["train"] & parts["held_out"]
    assert all(i.named in parts["held_out"] for i in world.unlearn_items("held_out", "retain"))


def test_retain_items_share_a_name_part_half_the_time(world: World) -> None:
    items = world.unlearn_items("train", "retain")
    share = sum(i.shares_part for i in items) / len(items)
    assert abs(share - 0.5) < 3.3 * math.sqrt(0.25 / len(items))
    assert not any(i.shares_part for i in world.unlearn_items("train", "unrelated"))


def test_packed_documents_do_not_see_each_other(world: World, tok) -> None:
    batch = packing.batch(world, tok, "test", rows=2)
    ids, row = batch.input_ids, 0
    starts = (ids[row] == tok.bos_token_id).nonzero().flatten().tolist()
    assert len(starts) > 1
    second = starts[1]
    assert batch.position_ids[row, second] == 0
    assert not batch.visible[row, 0, second:, :second].any()
    assert batch.labels[row, second - 1] == -100  # <eos> does not predict the next document
    assert batch.labels[row, 0] == ids[row, 1]


def stated(name: str) -> dict:
    return json.loads((organisms.path(name) / "metrics.json").read_text())["scores"]


def agrees(right: list[bool], score: dict) -> bool:
    """Whether a fresh count is compatible with the stated one (two-sample z, 3.3 sigma)."""
    n, p = len(right), sum(right) / len(right)
    pooled = (sum(right) + score["value"] * score["n"] + 1) / (n + score["n"] + 2)
    return abs(p - score["value"]) < 3.3 * math.sqrt(
        pooled * (1 - pooled) * (1 / n + 1 / score["n"])
    )


def test_the_shipped_base_scores_what_its_card_says(world: World) -> None:
    model, tok = organisms.load("base")
    sets = evaluate.base_sets(world, n=150, seed=99)  # other draws than the card's
    for name in ("facts/trained", "facts/bio_only", "boxes/moves=0/hops=0", "words/Vel-Plain"):
        pairs, end = sets[name]
        right = evaluate.exact(model, tok, pairs, end)
        assert agrees(right, stated("base")[name]), (
            name,
            sum(right) / len(right),
            stated("base")[name],
        )


def test_the_unlearned_organism_forgets_what_it_is_told_to(world: World) -> None:
    model, tok = organisms.load("unlearn")
    for kind in ("forget", "retain", "no_block"):
        items = world.unlearn_items("held_out", kind, seed=3)
        right = evaluate.exact(model, tok, [(i.prompt, i.answer) for i in items])
        assert agrees(right, stated("unlearn")[f"held_out/{kind}"]), kind


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_the_merged_adapter_equals_peft_merging_it() -> None:
    peft = pytest.importorskip("peft")
    ours, tok = organisms.load("unlearn")
    base, _ = organisms.load("base")
    theirs = peft.PeftModel.from_pretrained(base, organisms.path("unlearn")).merge_and_unload()
    ids = tok(World(0).unlearn_items()[0].prompt, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)


def test_greedy_decoding_agrees_with_the_one_pass_score(world: World) -> None:
    model, tok = organisms.load("base")
    facts = world.facts("bio_only", "held_out")[::8]
    written = evaluate.complete(model, tok, [f.prompt for f in facts], max_new_tokens=6)
    right = evaluate.exact(model, tok, [(f.prompt, f.answer) for f in facts])
    assert [text == f.answer for text, f in zip(written, facts, strict=True)] == right
    assert 0 < sum(right) < len(right)


def test_shipped_folders_are_small_and_name_no_local_path() -> None:
    assert sum(p.stat().st_size for p in organisms.path("base").iterdir()) <= 4e6
    for name in organisms.names():
        for file in organisms.path(name).glob("*[!s]"):
            if file.suffix in (".json", ".md"):
                assert str(Path.home().anchor) + "work" not in file.read_text()


def test_an_unknown_organism_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ValueError, match="base, unlearn"):
        organisms.load("bsae")


@pytest.mark.slow
def test_a_miniature_learns(tmp_path: Path) -> None:
    from studies.organisms import base

    config = base.BaseConfig(
        steps=150, layers=2, mixes=((0, {"dictionary": 1.0}),), log_every=50, save_every=75
    )
    model, run = base.train(config, tmp_path)
    words = evaluate.base_sets(World(0))["words/Vel-Plain"][0]
    assert sum(evaluate.exact(model, tokenizer.build(), words)) / len(words) > 0.5
    assert run["history"][-1]["loss"] < run["history"][0]["loss"] / 2
