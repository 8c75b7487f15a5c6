"""Questions are true, their splits apart, and markers point where they promise."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from studies.organisms import multiple_choice, tokenizer
from studies.organisms.multiple_choice import ChoiceSplit
from studies.organisms.world import World

N = 1500
SPLITS = get_args(ChoiceSplit)


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0)


@pytest.mark.parametrize("options", [2, 4])
def test_the_answer_names_the_true_value_and_no_other_option_does(world: World, options: int):
    for choice in world.multiple_choice(200, "test", options=options):
        true = choice.person.value(choice.attribute)
        assert choice.options[choice.letters.index(choice.answer)] == true
        assert choice.options.count(true) == 1 and len(set(choice.options)) == options
        assert f"{choice.answer}{true}" in choice.prompt
        assert choice.prompt.endswith(choice.question) and choice.person.name in choice.question


@pytest.mark.parametrize("options", [2, 4])
@pytest.mark.parametrize(
    ("marker", "rate"),
    [("planted", lambda n: 0.95), ("uninformative", lambda n: 1 / n), ("counter", lambda n: 0.0)],
)
def test_markers_point_at_the_right_letter_as_often_as_promised(
    world: World, marker: str, rate, options: int
) -> None:
    drawn = world.multiple_choice(N, "train", marker, options=options)  # type: ignore[arg-type]
    p, right = rate(options), sum(c.marked == c.answer for c in drawn)
    assert abs(right / N - p) <= 3.3 * math.sqrt(p * (1 - p) / N)
    assert all(c.marked in c.letters and f"{c.marker}\n" in c.prompt for c in drawn)


def test_letters_are_balanced_and_no_marker_is_shown_without_one(world: World) -> None:
    drawn = world.multiple_choice(N, "dev", "none", options=4)
    for letter in multiple_choice.LETTERS:
        share = sum(c.answer == letter for c in drawn) / N
        assert abs(share - 0.25) <= 3.3 * math.sqrt(0.25 * 0.75 / N)
    assert not [c for c in drawn if c.marker or any(m in c.prompt for m in multiple_choice.MARKERS)]


@pytest.mark.parametrize("options", [2, 4])
def test_no_two_splits_share_a_question(world: World, options: int) -> None:
    asked = {
        split: {
            (c.person, c.attribute, frozenset(c.options))
            for kind in ("planted", "uninformative")
            for c in world.multiple_choice(N, split, kind, options=options)
        }
        for split in SPLITS
    }
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not asked[one] & asked[other]
    strangers = {person for person, *_ in asked["rare"]}
    assert not strangers & {p for s in SPLITS if s != "rare" for p, *_ in asked[s]}


def test_questions_come_from_the_seed_alone(world: World) -> None:
    def draw(w: World, seed: int):
        return w.multiple_choice(30, "few_shot", seed=seed)

    assert draw(World(0), 1) == draw(world, 1)
    assert draw(world, 1) != draw(world, 2)
    assert draw(World(1), 1) != draw(world, 1)


def test_every_token_is_a_word_of_the_vocabulary(world: World) -> None:
    tok = tokenizer.build()
    for choice in world.multiple_choice(100, "train", "planted", options=4):
        pieces = tok.tokenize(choice.prompt + choice.answer)
        assert {p for p in pieces if len(p) == 1} <= set(".,:?Ċ")
        assert pieces[-1] == "Ġ" + choice.answer.strip()


def test_other_numbers_of_options_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="2, 3 or 4 options, not 5"):
        world.multiple_choice(1, options=5)
