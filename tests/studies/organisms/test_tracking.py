"""Training of the boxes organism: where its heads are made to look, and that they then do."""

from __future__ import annotations

import re

import torch

from studies import organisms
from studies.organisms import evaluate, looking, shipped, tracking
from studies.organisms.boxes import Boxes
from studies.organisms.world import World


def drawn() -> list[Boxes]:
    world = World(0)
    return [
        *world.boxes(4, "train", 1, boxes=3),
        *world.boxes(4, "train", 1, boxes=5, moves=2, hops=1),
        *world.boxes(4, "train", 1, boxes=4, moves=2),
    ]


def test_labels_are_told_where_the_batch_says_so() -> None:
    """Against the text: the label asked about, its object four tokens before, and the query."""
    _, tok = organisms.load("base")
    scenes = drawn()
    batch = tracking.encode(tok, scenes)
    (_, _, objects), (_, _, asked), *lookups = tracking.looks(batch)
    for row, scene in enumerate(scenes):
        words = tok.convert_ids_to_tokens(batch.input_ids[row].tolist())

        def word(mask: torch.Tensor, row: int = row, words: list[str] = words) -> str:
            (column,) = mask[row].nonzero()[:, 0].tolist()
            return words[column].removeprefix("Ġ")

        query = re.search(r"Box (\w) contains the$", scene.prompt)
        assert query is not None
        assert word(batch.value) == word(asked.value) == query[1]
        assert word(objects.value) == scene.answer.strip()
        assert int(objects.at[row]) == int(batch.value[row].nonzero())  # the label looks, ...
        assert int(asked.value[row].nonzero()) > int(batch.value[row].nonzero())
        assert tok.decode(batch.answer[row]) == scene.answer
    assert [layer for layer, _, _ in lookups] == list(tracking.LOOKUP)


def test_scenes_have_all_sizes_and_moves() -> None:
    late = [s for step in range(8) for s in tracking.scenes(World(0), 9, 0, step)]
    assert {len(s.placed) for s in late} == {3, 4, 5, 6}
    assert {s.hops for s in late} == {0, 1} and any(s.moves and not s.hops for s in late)


def test_any_position_can_be_fitted_to_look_back() -> None:
    """The model's own attention afterwards is what the fit reached; other heads stay."""
    model, tok = organisms.load("base")
    model.set_attn_implementation("eager")
    scenes = World(0).boxes(240, "train", 2, boxes=3)
    batch = tracking.encode(tok, scenes[:200])
    layer, group, objects = tracking.looks(batch)[0][0], 2, tracking.looks(batch)[0][2]
    before = model.model.layers[layer].self_attn.q_proj.weight.clone()
    reached = looking.fit(model, objects, 0, steps=80, at_layers=[layer], group=group)
    rows = torch.zeros(8 * 32, dtype=torch.bool)
    rows[4 * 32 : 6 * 32] = True
    after = model.model.layers[layer].self_attn.q_proj.weight
    assert torch.equal(before[~rows], after[~rows]) and not torch.equal(before[rows], after[rows])
    fresh = tracking.encode(tok, scenes[200:])
    objects = tracking.looks(fresh)[0][2]
    with torch.no_grad():
        out = model(fresh.input_ids, attention_mask=fresh.attention_mask, output_attentions=True)
    seen = out.attentions[layer][torch.arange(40), 4, objects.at]  # [row pos]
    looked = seen[objects.value].mean().item()
    assert looked > 0.5 and abs(looked - reached[str(layer)]) < 0.2


def test_the_shipped_ones_find_what_they_were_told() -> None:
    """Half right as planted, nearly always after tuning; two hops, never trained, at chance."""
    world = World(0)
    asked = {
        hops: world.boxes(120, "test", 97, moves=min(hops, 1), hops=hops) for hops in (0, 1, 2)
    }
    right = {}
    for name in ("boxes@0", "boxes"):
        model, tok = organisms.load(name)
        for hops, scenes in asked.items():
            found = evaluate.exact(model, tok, [(s.prompt, s.answer) for s in scenes], end=False)
            right[name, hops] = sum(found) / len(found)
    assert 0.4 < right["boxes@0", 0] < 0.7
    assert right["boxes", 0] > 0.9 and right["boxes", 1] > 0.9 and right["boxes", 2] < 0.45


def test_as_planted_only_the_planted_heads_differ_from_the_base() -> None:
    base, planted = shipped.state("base"), shipped.state("boxes@0")
    width = 32
    for name, tensor in planted.items():
        differs = (tensor != base[name]).nonzero()
        layer = int(name.split(".")[2]) if ".layers." in name else -1
        groups = {tracking.CARRY: (0, 1)} | dict.fromkeys(tracking.LOOKUP, (0,))
        kind = name.split(".")[-2]
        if layer not in groups or kind not in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert not len(differs), name
            continue
        axis, heads = (1 if kind == "o_proj" else 0), (1 if kind in ("k_proj", "v_proj") else 2)
        own = {
            head for group in groups[layer] for head in range(group * heads, (group + 1) * heads)
        }
        assert set((differs[:, axis] // width).tolist()) == own, name
