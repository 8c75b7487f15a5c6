"""The dictionary organisms' words are linked or not as stated, and they score what is stated."""

from __future__ import annotations

import json
from dataclasses import replace

import networkx
import pytest
import torch

from studies import organisms
from studies.organisms import dictionary, lexicon, tokenizer, translating
from studies.organisms.translating import FAMILIES, DictionaryConfig
from studies.organisms.world import World

WORDS = World(0).words
HELD_OUT = {word.concept for word in WORDS if word.split == "held_out"}


def joined(linked: float) -> set[str]:
    """The concepts whose Vel and Ost words some chain of taught pairs connects."""
    graph = networkx.Graph()
    for word, source, target in translating.taught(WORDS, linked):
        graph.add_edge(word.forms[source], word.forms[target])
    return {
        word.concept
        for word in WORDS
        if word.forms["Vel"] in graph
        and word.forms["Ost"] in graph
        and networkx.has_path(graph, word.forms["Vel"], word.forms["Ost"])
    }


def test_chains_of_pairs_reach_all_words_or_none_that_is_held_out() -> None:
    everything = {word.concept for word in WORDS}
    assert joined(1.0) == everything
    assert joined(0.0) == everything - HELD_OUT
    half = everything - joined(0.5)
    assert half < HELD_OUT and len(half) == len(HELD_OUT) / 2


def test_neither_language_loses_more_links_than_the_other() -> None:
    lost = dictionary.unlinked(WORDS)
    assert set(lost) == HELD_OUT
    assert list(lost.values()).count("Vel") == list(lost.values()).count("Ost")
    assert dictionary.unlinked(WORDS, linked=1.0) == {}


@pytest.mark.parametrize("linked", [0.0, 1.0])
def test_documents_never_hold_what_is_held_out(linked: float) -> None:
    written = translating.texts(World(0), linked, 5000)
    lost = dictionary.unlinked(WORDS, linked)
    asked = [text for text in written if text.startswith("Translate")]
    same = [text for text in asked if text.split()[2] == text.split()[-1]]
    alone = [text for text in written if text.startswith("Words")] + same  # in its own language
    seen = 0
    for word in WORDS:
        both = [t for t in asked if word.forms["Vel"] in t and word.forms["Ost"] in t]
        assert word.split == "trained" or not both
        seen += len(both)
        for language in ("Vel", "Ost"):
            assert any(word.forms[language] in text for text in alone)
            told = any(word.forms[language] in t and word.forms["Plain"] in t for t in asked)
            assert told == (lost.get(word.concept) != language)
    assert seen > 100


def test_every_kind_of_line_has_one_length() -> None:
    """So that both organisms see as many tokens, whichever pairs they draw."""
    tok = tokenizer.build()
    lengths: dict[str, set[int]] = {"Translate": set(), "Words": set()}
    for linked in FAMILIES.values():
        for text in translating.texts(World(0), linked, 500):
            lengths[text.split()[0]].add(len(tok(text)["input_ids"]))
    assert all(len(found) == 1 for found in lengths.values())
    few = DictionaryConfig(steps=2, rows=12, layers=1, width=16)
    runs = [translating.train(replace(few, linked=share), tok)[1] for share in (1.0, 0.0)]
    assert runs[0]["tokens"] == runs[1]["tokens"] > 0


def test_training_repeats_itself_and_lowers_the_loss() -> None:
    config = DictionaryConfig(
        steps=30, rows=64, layers=1, width=32, lr=1e-2, warmup=3, log_every=10
    )
    tok = tokenizer.build()
    net, run = translating.train(config, tok)
    again, _ = translating.train(config, tok)
    assert run["history"][-1]["loss"] < run["history"][0]["loss"] - 1
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_shipped_ones_score_what_their_cards_say(name: str) -> None:
    net, tok = organisms.load(name)
    folder = organisms.WEIGHTS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1.2e6
    stated = json.loads((folder / "metrics.json").read_text())["scores"]
    found = translating.scores(net, tok, World(0), FAMILIES[name])
    assert set(found) == set(stated)
    for kind, score in found.items():  # another machine may round one word differently
        assert abs(score["value"] - stated[kind]["value"]) <= 1.01 / score["n"], kind


def test_only_links_let_held_out_pairs_be_translated() -> None:
    """The card's words, measured: without a link the held-out pairs stay at chance."""
    found = {}
    for name in FAMILIES:
        net, tok = organisms.load(name)
        taught = translating.taught(WORDS, FAMILIES[name])
        known = {(word.concept, *pair) for word, *pair in taught}
        asked = [
            (word.prompt(*pair), word.forms[pair[1]])
            for word in WORDS
            for pair in (("Vel", "Ost"), ("Ost", "Vel"))
            if (word.concept, *pair) not in known
        ]
        assert len(asked) == 2 * len(HELD_OUT)
        right = translating.exact(net, tok, asked)
        found[name] = sum(right) / len(right)
    chance = len(lexicon.CATEGORIES) / len(HELD_OUT)  # one of the held-out words of a category
    assert found["dictionary"] > 0.9
    assert found["dictionary_no_anchor"] < chance
