"""Verdicts on planted edits, patches beside `interp.patch`, probes on streams we wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import interp
import probes
from interp import InterpError, Model
from probes import Fact, Forgetting
from probes._forgetting_fact import check_facts
from probes._forgetting_probe import _shuffled, check_probe, probed
from probes._forgetting_verdict import gate_of
from probes._random_twin import random_twin
from studies import organisms
from studies.organisms import lexicon
from studies.organisms.world import World, question
from tests.architectures import build

PATCHES = ("restore", "restore_other", "destroy", "destroy_other", "recover")


@pytest.fixture(scope="module")
def base() -> Model:
    module, tokenizer = organisms.load("base")
    return Model(module, tokenizer, "base")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    """Two attributes of twelve people, of questions of different lengths."""
    people = World(0).people[:12]
    return [
        Fact(question(p, attribute, phrasing), p.value(attribute), p.name, attribute)
        for p in people
        for attribute, phrasing in (("job", 0), ("pet", 2))
    ]


def edited(model: Model, change: Callable[[nn.Module], None]) -> Model:
    """A copy of the model with its weights changed."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module)
    return Model(module, model.tokenizer, "edited")


def noise_in_block(layer: int) -> Callable[[nn.Module], None]:
    """What this block adds drowns the stream: nothing is left for the base or for the lens."""

    def change(module: nn.Module) -> None:
        weight = module.model.layers[layer].mlp.down_proj.weight  # type: ignore[union-attr]
        weight += 50 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    return change


def lost_verdicts(found: Forgetting, **options: object) -> dict[str, int]:
    table = found.verdicts(**options)  # type: ignore[arg-type]
    return table[table["verdict"] != "unknown"]["verdict"].value_counts().to_dict()


# Planted edits of the base: what happened is known.


def test_nothing_changed_is_nothing_lost(base: Model, facts: list[Fact]) -> None:
    before = {name: p.clone() for name, p in base.module.state_dict().items()}
    found = probes.forgetting(base, edited(base, lambda _: None), facts, probe=None)
    assert lost_verdicts(found) == {"kept": len(facts)}
    assert not found.moved.any()
    own = found.prob["base_lens"][:, -1:]
    for name in ("restore", "destroy", "recover"):  # patched with what stood there anyway
        torch.testing.assert_close(found.prob[name], own.expand_as(found.prob[name]))
    assert all(torch.equal(p, before[name]) for name, p in base.module.state_dict().items())


def test_an_unembedding_turned_against_the_answers_hides_them_late(
    base: Model, facts: list[Fact]
) -> None:
    tokens = [base.tokenizer(f.answer, add_special_tokens=False)["input_ids"][0] for f in facts]

    def change(module: nn.Module) -> None:
        module.lm_head.weight[sorted(set(tokens))] *= -1  # type: ignore[index]

    found = probes.forgetting(base, edited(base, change), facts, probe=None)
    table = found.verdicts()
    assert set(table["verdict"]) == {"hidden late"}
    assert set(table["held"]) == {base.anatomy.n_layers}  # the base's head reads it in the end
    assert set(table["held_by"]) == {"patch"}
    assert set(table["null"]) == {"erased"}
    assert not found.moved.any()  # the streams did not change


@pytest.mark.parametrize(
    ("layer", "verdict"), [(0, "erased"), (1, "hidden early"), (4, "hidden late")]
)
def test_a_stream_drowned_in_a_block_is_held_up_to_it(
    base: Model, facts: list[Fact], layer: int, verdict: str
) -> None:
    found = probes.forgetting(base, edited(base, noise_in_block(layer)), facts, probe=None)
    table = found.verdicts()
    lost = table[table["verdict"] != "kept"]
    assert len(lost) >= 20
    assert (lost["verdict"] == verdict).mean() > 0.9  # a drowned model may hit by chance
    assert (lost["null"] == "erased").mean() > 0.8
    torch.testing.assert_close(found.moved[:, : layer + 1], torch.zeros(len(facts), layer + 1))
    assert (found.moved[:, layer + 1 :] > 1).all()
    if layer:
        assert (lost[lost["verdict"] == verdict]["recover_layer"] == layer).mean() > 0.9
    # The base's own state brings every answer back from above the noise on (or from where it has
    # come to hold the answer: lower down the drowned positions have to give it), another's none.
    assert lost["restore_layer"].notna().mean() > 0.9 and (lost["restore_layer"] > layer).all()
    assert lost["restore_other_layer"].isna().mean() > 0.9


def test_who_is_asked_about_lost_from_the_embedding_is_erased(
    base: Model, facts: list[Fact]
) -> None:
    names = base.tokenizer([f" {w}" for w in (*lexicon.FIRST_NAMES, *lexicon.LAST_NAMES)],
                           add_special_tokens=False)["input_ids"]  # fmt: skip

    def change(module: nn.Module) -> None:
        module.model.embed_tokens.weight[[ids[0] for ids in names]] = 0  # type: ignore[union-attr]

    found = probes.forgetting(base, edited(base, change), facts, probe=None)
    table = found.verdicts()
    lost = table[table["verdict"] != "kept"]
    assert len(lost) > 0.8 * len(facts)
    assert set(lost["verdict"]) == {"erased"}
    # It says one pet to everybody, which is nobody's memory: without the gate some would count.
    assert "hidden early" in set(found.verdicts(gate=False)["verdict"])


# Patches.


def test_patches_are_those_of_interp_patch(base: Model, facts: list[Fact]) -> None:
    some = facts[:9:2] + facts[1:8:2]  # two lengths in one batch
    tuned = edited(base, noise_in_block(3))
    with torch.no_grad():
        tuned.module.model.layers[3].mlp.down_proj.weight.copy_(
            base.module.model.layers[3].mlp.down_proj.weight * 0.2
        )
    found = probes.forgetting(base, tuned, some, probe=None, batch_size=4)
    prompts = [fact.prompt for fact in some]
    metric = interp.Target("prob", [fact.answer for fact in some])
    options = {"source": base, "progress": False}
    cases = {
        "restore": {"positions": "last"},
        "destroy": {"positions": "last", "direction": "noising"},
        "recover": {"positions": "together", "direction": "noising"},
    }
    for name, how in cases.items():
        theirs = interp.patch(tuned, prompts, None, "resid_post", metric, **options, **how)
        expected = theirs.stack("resid_post")[..., 0].T
        torch.testing.assert_close(found.prob[name][:, 1:, 0], expected, rtol=1e-4, atol=1e-6)
    foreign = [prompts[int(i)] for i in found.other]
    theirs = interp.patch(
        tuned, foreign, prompts, "resid_post", metric, positions="last", align="ends", **options
    )
    expected = theirs.stack("resid_post")[..., 0].T
    torch.testing.assert_close(
        found.prob["restore_other"][:, 1:, 0], expected, rtol=1e-4, atol=1e-6
    )


def test_the_last_layer_is_the_base_itself(base: Model, facts: list[Fact]) -> None:
    found = probes.forgetting(base, edited(base, noise_in_block(2)), facts, probe=None)
    # Of equal heads: the base's last stream through the tuned head is what the base says.
    torch.testing.assert_close(found.prob["restore"][:, -1], found.prob["base_lens"][:, -1])
    torch.testing.assert_close(found.prob["recover"][:, -1], found.prob["tuned_lens"][:, -1])
    torch.testing.assert_close(found.prob["destroy"][:, 0], found.prob["base_lens"][:, -1])


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_batches_do_not_change_a_reading(name: str, assets_free_tokenizer: object) -> None:
    one, two = (Model(build(name, seed=seed), assets_free_tokenizer) for seed in (0, 3))
    some = [
        Fact(" a b c d", " x", "ann", "q"),
        Fact(" a b", " y", "bo", "q"),
        Fact(" c a d", " z", "cy", "q"),
    ]
    whole = probes.forgetting(one, two, some, probe=None)
    single = probes.forgetting(one, two, some, probe=None, batch_size=1)
    for reading in whole.readings:
        torch.testing.assert_close(whole.prob[reading], single.prob[reading], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.moved, single.moved, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def assets_free_tokenizer() -> object:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = [" a", " b", " c", " d", " x", " y", " z"]
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {w: i for i, w in enumerate(words, 3)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>")


# Probes, on streams we wrote ourselves.


def people(n: int, answers: int) -> tuple[list[Fact], Tensor]:
    """Each person twice, with one of a few answers."""
    labels = torch.arange(n) % answers
    some = [Fact("p", f" {int(labels[i])}", f"person {i}", "a") for i in range(n) for _ in (0, 1)]
    return some, labels.repeat_interleave(2)


def streams(labels: Tensor, n_layers: int = 2) -> Tensor:
    """Noise, and at layer 1 the answer in a direction of its own."""
    generator = torch.Generator().manual_seed(0)
    written = torch.randn(int(labels.max()) + 1, 24, generator=generator)
    out = torch.randn(len(labels), n_layers, 24, generator=generator)
    out[:, 1] = 0.3 * out[:, 1] + written[labels]
    return out


def test_a_probe_reads_what_is_written_and_its_controls_do_not() -> None:
    some, labels = people(60, 4)
    written, noise = streams(labels), torch.randn(len(labels), 2, 24)
    wanted = torch.stack([labels, (labels + 1) % 4], dim=1)
    found = probed(
        {"base": written, "tuned": written, "random": noise},
        some, [], labels, wanted, probes.LinearProbe(), 5, 0,
    )  # fmt: skip
    right = {name: (rank[..., 0] == 1).float().mean(0) for name, (rank, _) in found.items()}
    assert right["tuned_probe"][1] > 0.95
    assert right["tuned_probe"][0] < 0.45
    assert right["shuffled_probe"].max() < 0.5
    assert right["random_probe"].max() < 0.45
    decoy = (found["tuned_probe"][0][:, 1, 1] == 1).float().mean()
    assert decoy < 0.05


def test_a_person_is_never_on_both_sides_of_a_probe() -> None:
    """Streams that tell who is asked about, and nothing of the answer: chance, not memory."""
    some, labels = people(40, 2)
    who = torch.randn(40, 24).repeat_interleave(2, 0)[:, None]
    wanted = torch.stack([labels, 1 - labels], dim=1)
    found = probed(
        {"base": who, "tuned": who}, some, [], labels, wanted, probes.LinearProbe(), 5, 0
    )
    right = (found["tuned_probe"][0][:, 0, 0] == 1).float().mean()
    assert right < 0.75
    memory = probes.LinearProbe().fit(who[:, 0], labels).predict(who[:, 0])
    assert (memory == labels.numpy()).mean() > 0.9


def test_facts_to_train_on_replace_the_folds_and_rare_answers_cannot_be_told() -> None:
    some, labels = people(30, 3)
    written = streams(labels)
    wanted = torch.stack([labels, (labels + 1) % 3], dim=1)
    labels = labels.clone()
    labels[:2] = 9  # one judged person with an answer nobody else has
    wanted[:2, 0] = 9
    judged, train = some[:20], some[20:]
    found = probed(
        {"base": written, "tuned": written}, judged, train, labels, wanted[:20],
        probes.LinearProbe(), 5, 0,
    )  # fmt: skip
    by_hand = probes.LinearProbe().fit(
        written[20:, 1].double(), labels[20:], groups=[f.entity for f in train]
    )
    prob = torch.from_numpy(by_hand.predict_proba(written[:20, 1].double())).float()
    rank, mine = found["tuned_probe"]
    assert (rank[:2, :, 0] == 0).all() and mine[:2, :, 0].isnan().all()
    torch.testing.assert_close(mine[2:, 1], prob[2:].gather(1, wanted[2:20]))
    assert (rank[2:, 1, 0] == 1).all()


def test_streams_that_are_all_the_same_cannot_be_told_apart() -> None:
    """The embedding, where all prompts end with one token."""
    some, labels = people(20, 2)
    written = streams(labels)
    written[:, 0] = written[0, 0]
    wanted = torch.stack([labels, 1 - labels], dim=1)
    rank, prob = probed(
        {"base": written, "tuned": written}, some, [], labels, wanted, probes.LinearProbe(), 5, 0
    )["tuned_probe"]
    assert not rank[:, 0].any() and prob[:, 0].isnan().all()
    assert (rank[:, 1] > 0).all() and prob[:, 1].isfinite().all()


def test_a_part_with_one_answer_to_learn_tells_nothing_and_stops_nothing() -> None:
    """Left out one at a time: without an "a" there is one "a" left, and only "b" can be learnt."""
    some = [Fact("p", answer, f"{answer}{i}", "x") for i, answer in enumerate("aabbb")]
    labels = torch.tensor([0, 0, 1, 1, 1])
    check_probe(some, [], labels, 5)
    wanted = torch.stack([labels, 1 - labels], dim=1)
    last = {name: streams(labels) for name in ("base", "tuned")}
    for seed in range(4):  # in some of them the shuffled labels, too, leave a part with one answer
        found = probed(last, some, [], labels, wanted, probes.LinearProbe(), 5, seed)
        rank, prob = found["tuned_probe"]
        assert (rank[:, 1, 0] > 0).tolist() == [False, False, True, True, True]
        assert prob[:2].isnan().all()


def test_answers_only_to_train_on_are_dealt_among_themselves() -> None:
    judged = [Fact("p", f"{i}", f"judged {i}", "x") for i in range(20)]
    train = [Fact("p", "ab"[i % 2], f"train {i}", "x") for i in range(4)]
    labels = torch.cat([torch.arange(20), torch.tensor([0, 1, 0, 1])])
    for seed in range(4):
        dealt = _shuffled([*judged, *train], labels, 20, seed)
        assert sorted(dealt[20:].tolist()) == [0, 0, 1, 1]
        assert sorted(dealt[:20].tolist()) == list(range(20))
        assert not torch.equal(dealt, labels)


def test_what_no_probe_could_read_is_refused_before_the_work(
    base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer that two have, one is left when the other is read."""
    cities = lexicon.VALUES["city"][:14]
    answers = [cities[0], cities[0], cities[1], cities[1], *cities[2:]]
    some = [Fact(f"Person {i} lives in", f" {city}", f"p{i}", "city")
            for i, city in enumerate(answers)]  # fmt: skip
    monkeypatch.setattr("probes._forgetting._lens", None)
    for seed in range(4):
        with pytest.raises(InterpError, match="no fact of attribute 'city' can be read by a probe"):
            probes.forgetting(base, base, some, seed=seed)


def test_the_untrained_twin_has_the_shape_and_not_the_weights(base: Model) -> None:
    twin, again = random_twin(base, seed=1), random_twin(base, seed=1)
    ours, theirs = base.module.state_dict(), twin.module.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    name = "model.layers.3.mlp.up_proj.weight"
    assert not torch.equal(ours[name], theirs[name])
    assert torch.equal(theirs[name], again.module.state_dict()[name])


# Verdicts, on records we wrote ourselves.


def record(rows: list[dict[str, list[int]]], n_layers: int = 5) -> Forgetting:
    """Ranks of the answer by reading; what is left out is never on top, decoys never are."""
    names = ("base_lens", "tuned_lens", *PATCHES, "base_probe", "tuned_probe", "shuffled_probe")
    rank = {name: torch.full((len(rows), n_layers, 2), 9) for name in names}
    rank["base_lens"][:, -1, 0] = 1
    for i, row in enumerate(rows):
        for name, layers in row.items():
            rank[name][i, layers, 0] = 1
    facts = [Fact(f"p{i}", " a", f"person {i}", "x") for i in range(len(rows))]
    return Forgetting(
        rank,
        {name: 1 / value.float() for name, value in rank.items()},
        torch.zeros(len(rows), n_layers),
        torch.tensor([[1, 2]] * len(rows)),
        torch.zeros(len(rows), dtype=torch.long),
        facts,
        {0: " f", 1: " a", 2: " b"},
        {"base": "b", "tuned": "t", "says": [[1, 0]] * len(rows)},
    )


def test_verdicts_by_hand() -> None:
    cases: list[tuple[dict[str, list[int]], str]] = [
        ({"tuned_lens": [4]}, "kept"),  # the output
        ({"tuned_lens": [2]}, "hidden late"),  # 2 of 4 blocks
        ({"tuned_lens": [1]}, "hidden early"),
        ({"tuned_lens": [0], "recover": [0]}, "erased"),  # the embedding is no knowledge
        ({"recover": [1], "tuned_lens": [3]}, "hidden late"),  # the last layer that holds counts
        ({"recover": [1, 2, 3, 4]}, "hidden late"),  # the base's own head may read the last stream
        ({"recover": [3, 4]}, "erased"),  # a hit above a miss
        ({"restore": [0, 1, 2, 3, 4]}, "erased"),  # lending the base's state is no evidence
    ]
    found = record([row for row, _ in cases])
    table = found.verdicts(gate=False)
    assert table["verdict"].tolist() == [verdict for _, verdict in cases]
    only = found.verdicts(gate=False, evidence=("lens",))["verdict"]
    assert set(only[5:]) == {"erased"}
    assert found.verdicts(gate=False, late=0.75)["verdict"][1] == "hidden early"
    assert table["restore_layer"].isna().tolist() == [True] * 7 + [False]
    assert table["tuned_says"][0] == " f"
    found.rank["base_lens"][0, -1, 0] = 2
    assert found.verdicts()["verdict"][0] == "unknown"
    assert found.verdicts(top=2)["verdict"][0] == "kept"
    assert set(found.select([1, 2, 3]).verdicts()["verdict"]) == {"untold"}


def test_restoring_and_destroying_count_only_where_they_last() -> None:
    found = record([{"restore": [1, 3, 4], "destroy": [0, 1, 3]}, {"destroy": [0, 1, 2, 3, 4]}])
    table = found.verdicts()
    assert table["restore_layer"][0] == 3  # lost again at 2
    assert table["destroy_layer"][0] == 4  # there the base fails for good
    assert table["destroy_layer"].isna()[1]  # it never fails


def test_a_probe_counts_only_where_it_beats_its_control() -> None:
    told = {"tuned_probe": [2]}
    assert lost_verdicts(record([told] * 40)) == {"hidden late": 40}
    both = {"tuned_probe": [2], "shuffled_probe": [2]}
    assert lost_verdicts(record([both] * 40)) == {"erased": 40}
    # p = 1/32 of five, 1/64 of six.
    assert lost_verdicts(record([told] * 5 + [{}] * 35)) == {"erased": 40}
    assert lost_verdicts(record([told] * 6 + [{}] * 34)) == {"hidden late": 6, "erased": 34}
    found = record([told] * 40)
    found.rank["tuned_probe"][:30, 2] = torch.tensor([9, 1])  # the decoy for thirty of them
    assert lost_verdicts(found) == {"erased": 40}


def test_the_gate_is_the_exact_sign_test_over_entities() -> None:
    from scipy.stats import binomtest

    generator = torch.Generator().manual_seed(1)
    found = record([{}] * 30)
    for who, rate in ((0, 0.5), (1, 0.2)):
        hits = torch.rand(30, 5, generator=generator) < rate
        found.rank["tuned_lens"][..., who] = torch.where(hits, 1, 9)
    facts = [replace(fact, entity=f"p{i // 2}") for i, fact in enumerate(found.facts)]
    found = replace(found, facts=facts)  # two facts each
    hit = (found.rank["tuned_lens"] == 1).long()
    gap = (hit[..., 0] - hit[..., 1]).view(15, 2, 5).sum(1)
    opened = []
    for layer in range(5):
        wins, losses = int((gap[:, layer] > 0).sum()), int((gap[:, layer] < 0).sum())
        opened.append(binomtest(wins, wins + losses, alternative="greater").pvalue < 0.025)
    assert gate_of(found, "lens", 1)[0].tolist() == opened
    assert 0 < sum(opened) < 5


def test_shares_are_of_people_and_decoys_follow_the_same_rule() -> None:
    found = record([{"tuned_lens": [4]}] * 10 + [{"tuned_lens": [3]}] * 20 + [{}] * 10)
    found.rank["tuned_lens"][12:17, 3, 1] = 1  # five of the thirty lost: the decoy is there
    at = found.shares().set_index(["verdict", "of"])["mean"]
    assert at["kept", "facts"] == 0.25 and at["hidden late", "facts"] == 0.5
    assert at["hidden late", "lost"] == pytest.approx(2 / 3)
    assert at["hidden late", "decoys"] == pytest.approx(5 / 30)
    by = found.layers().query("reading == 'tuned_lens' and quantity == 'top' and layer == 3")
    assert by.set_index("who")["mean"].to_dict() == pytest.approx({"answer": 2 / 3, "decoy": 1 / 6})
    assert set(by["facts"]) == {30}
    half = found.select(range(10, 40, 2))
    assert len(half.facts) == 15 and half.facts[1].entity == "person 12"


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    found = record([{"tuned_lens": [3]}, {"recover": [1]}])
    again = Forgetting.load(found.save(tmp_path / "f"))
    assert again.facts == found.facts and again.texts == found.texts
    assert all(torch.equal(again.rank[name], found.rank[name]) for name in found.readings)
    assert again.verdicts().equals(found.verdicts())
    table = again.table()
    row = table.query("fact == 0 and layer == 3 and reading == 'tuned_lens' and who == 'answer'")
    assert row[["rank", "prob"]].values.tolist() == [[1, 1.0]]
    assert len(table) == 2 * 5 * 2 * len(found.readings)


def test_the_figure_has_a_line_for_each_reading(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ax = record([{"tuned_lens": [3]}, {}]).plot()
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    assert lines["lens, tuned"] == [0, 0, 0, 0.5, 0]
    plt.close("all")


# What is refused.


def test_facts_that_cannot_be_judged_are_refused(base: Model) -> None:
    one = Fact("Question:", " baker", "Ann", "job")
    with pytest.raises(InterpError, match="no facts to judge"):
        probes.forgetting(base, base, [])
    with pytest.raises(InterpError, match=r"facts\[0\] has no entity, whom the fact is about"):
        check_facts([Fact("Question:", " baker", "", "job")], [])
    with pytest.raises(InterpError, match=r"train\[0\] is a str; expected probes\.Fact"):
        check_facts([one], ["Question:"])
    with pytest.raises(InterpError, match="no other answer can be its control"):
        probes.forgetting(base, base, [one, Fact("Question:", " baker", "Bo", "job")], probe=None)
    with pytest.raises(InterpError, match="need a tokenizer"):
        probes.forgetting(base, Model(base.module), [one])
    with pytest.raises(InterpError, match="evidence 'lense'; "):
        record([{}]).verdicts(evidence=("lense",))
    with pytest.raises(InterpError, match="of='forgotten'; "):
        record([{}]).layers("forgotten")


def test_answers_that_share_their_first_token_are_one_value(base: Model) -> None:
    asked = "Question: Where does Ada Bell live? Answer:"
    some = [Fact(asked, answer, f"p{i}", "city")
            for i, answer in enumerate([" Port Alder", " Port Maple", " Arlen"])]  # fmt: skip
    found = probes.forgetting(base, base, some, probe=None)
    assert found.token[0, 0] == found.token[1, 0]
    assert found.other.tolist()[:2] == [2, 2]
    with pytest.raises(InterpError, match="no other answer can be its control"):
        probes.forgetting(base, base, some[:2], probe=None)


def test_too_few_facts_for_a_probe_are_refused() -> None:
    some, labels = people(6, 2)
    with pytest.raises(InterpError, match="facts about 6 entities, fewer than folds=7"):
        check_probe(some, [], labels, 7)
    check_probe(some, [], labels, 6)
    with pytest.raises(InterpError, match="has 0 answers that two entities or more of its 6 share"):
        check_probe(some, [], torch.arange(6).repeat_interleave(2), 6)
    with pytest.raises(InterpError, match=r"has 1 answers .* or probe=None to go without"):
        check_probe(some[:2], some[2:], torch.tensor([0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), 2)


def test_another_tokenizer_is_refused(base: Model, assets_free_tokenizer: object) -> None:
    other = Model(build("llama"), assets_free_tokenizer)
    with pytest.raises(InterpError, match="tokenizers of model and source differ"):
        probes.forgetting(base, other, [Fact("Question:", " baker", "Ann", "job")])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No figure stays open."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
