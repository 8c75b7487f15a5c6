"""The superficial-edits study: its algebra of heads, its cases, its arithmetic, one smoke run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import interp
from interp import Edit, InterpError
from studies import _superficial_ablation as ablation
from studies import _superficial_heads as heads
from studies import _superficial_measures as measures
from studies import _superficial_report as report
from studies._checkpoints import open_checkpoint
from studies._superficial_answers import answered, prompts_of
from studies._superficial_cases import Attack, Case, organism_cases, read_cases, unlearned_cases
from studies._superficial_edits import apart, groups_of, joined
from studies._superficial_reversal import module_effects, reversal
from studies.superficial_edits import SuperficialEdits, run
from tests.interventions.knowledge import handle

PROMPTS = [" the home of Ann Lee is in", " Bo lives in"]
CASE = Case(
    " the home of {} is in", "Ann Lee", " Rome", " Oslo", " York", "Ann", "test",
    attacks=(
        Attack("Wiki", " Ann Lee lives in Rome", " Ann Lee lives in York", " w30 w31"),
        Attack("Rep", " Rome Rome", " York York", " w32 w32"),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return handle("llama")


# Heads and their vectors.


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "phi", "gemma2"])
def test_parts_add_up_to_a_head_and_heads_to_the_projection(name: str):
    model = handle(name, torch.float32)
    ids = model.batch(PROMPTS[0]).input_ids
    seen: list[Tensor] = []
    projection = model.anatomy.blocks[1].o_proj
    hook = projection.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        model.module(ids, use_cache=False)
    hook.remove()
    acts = interp.capture(model, PROMPTS[0], ["z.1", "head_out.1"], positions="last")
    total = torch.zeros(seen[0].shape[-1], dtype=torch.float64)
    for head in range(model.anatomy.blocks[1].n_heads):
        vectors = heads.head_vectors(model, (1, head))
        parts = vectors.parts(acts["z.1"][:, 0, head])
        whole = acts["head_out.1"][:, 0, head].double()
        torch.testing.assert_close(parts.sum(1), whole, rtol=1e-5, atol=1e-5)
        total += whole[0]
    bias = 0 if projection.bias is None else projection.bias.detach().double()
    torch.testing.assert_close(total + bias, seen[0][0, -1].double(), rtol=1e-5, atol=1e-5)


def test_parts_do_not_depend_on_the_signs_of_vectors(model: interp.Model):
    vectors = heads.head_vectors(model, (0, 2))
    z = torch.randn(3, vectors.right.shape[0], dtype=torch.float64)
    flip = torch.tensor([-1.0, 1.0] * (len(vectors.values) // 2), dtype=torch.float64)
    other = heads.HeadVectors(vectors.left * flip, vectors.values, vectors.right * flip)
    torch.testing.assert_close(vectors.parts(z), other.parts(z))
    torch.testing.assert_close(vectors.onto(torch.tensor([[1], [0], [2]])),
                               other.onto(torch.tensor([[1], [0], [2]])))  # fmt: skip


def test_removing_vectors_is_removing_them_from_the_matrix(model: interp.Model):
    """On one-token prompts, where the last position is all there is."""
    prompts, head = [" Rome", " Oslo"], (1, 3)
    vectors = heads.head_vectors(model, head)
    chosen = torch.tensor([[2, 0], [2, 0]])
    got = heads.last_probs(model, prompts, {head: vectors.onto(chosen)})
    weight = model.module.model.layers[1].self_attn.o_proj.weight
    width = weight.shape[1] // 4
    part = (vectors.left[:, [0, 2]] * vectors.values[[0, 2]]) @ vectors.right[:, [0, 2]].T
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 3 * width :] -= part
        ids = model.batch(prompts).input_ids
        want = model.module(ids, use_cache=False).logits[:, -1].float().softmax(-1)
        weight.copy_(before)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    plain = heads.last_probs(model, prompts, {})
    assert not torch.equal(got, plain)
    every = torch.arange(len(vectors.values)).expand(2, -1)
    torch.testing.assert_close(
        heads.last_probs(model, prompts, {head: vectors.onto(every)}),
        heads.last_probs(model, prompts, {head: None}),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip


def test_removal_is_at_the_last_position_whatever_the_padding(model: interp.Model):
    removed = {(0, 1): None, (2, 0): None}
    both = heads.last_probs(model, PROMPTS, removed)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(
            both[row], heads.last_probs(model, [prompt], removed)[0], rtol=1e-5, atol=1e-7
        )
    before = interp.capture(model, PROMPTS[0], "z.0", positions=[-2])["z.0"]
    with torch.no_grad():
        heads.last_probs(model, [PROMPTS[0]], removed)
    assert torch.equal(before, interp.capture(model, PROMPTS[0], "z.0", positions=[-2])["z.0"])


def test_loph_and_scores_by_hand(model: interp.Model):
    tokens = heads.first_tokens(model, PROMPTS, [" Rome", " Oslo"])
    table = heads.loph(model, PROMPTS, tokens)
    assert table.shape == (2, 3, 4)
    acts = interp.capture(model, PROMPTS, ["head_out.2", "z.2"], positions="last")

    def alone(vector: Tensor, token: int) -> float:
        with torch.no_grad():
            normed = model.module.model.norm(vector.double())
            return float(model.module.lm_head(normed).float().softmax(-1)[token])

    for row in (0, 1):
        want = alone(acts["head_out.2"][row, 0, 1], int(tokens[row]))
        assert float(table[row, 2, 1]) == pytest.approx(want, rel=1e-4)
    vectors = heads.head_vectors(model, (2, 1))
    scores = heads.vector_scores(model, vectors, acts["z.2"][:, 0, 1], tokens)
    parts = vectors.parts(acts["z.2"][:, 0, 1])
    for row in (0, 1):
        whole = alone(parts[row].sum(0), int(tokens[row]))
        without = alone(parts[row].sum(0) - parts[row, 3], int(tokens[row]))
        assert float(scores[row, 3]) == pytest.approx(whole - without, rel=1e-3, abs=1e-6)


def test_decoded_means_among_the_first_fifteen(model: interp.Model):
    vector = torch.randn(1, 32, dtype=torch.float64)
    order = heads.lens(model, vector)[0].argsort(descending=True)
    for rank, hit in ((0, True), (14, True), (15, False)):
        assert bool(heads.decoded(model, vector, order[rank : rank + 1])[0]) is hit


# Answers.


def test_answers_are_whole_and_greedy(model: interp.Model):
    answers = [[" Rome", " New York", " w30 w31 w32"]] * 2
    logprob, said = answered(model, PROMPTS, answers)
    want = interp.answer_logprob(model, PROMPTS, answers) / torch.tensor([1, 2, 3])
    torch.testing.assert_close(logprob, want.float(), rtol=1e-5, atol=1e-5)
    assert not said.all()
    for prompt in PROMPTS:
        start = model.batch(prompt).input_ids
        ids = model.module.generate(start, max_new_tokens=2, do_sample=False, eos_token_id=[])
        text = "".join(model.tokenizer.convert_ids_to_tokens(ids[0, start.shape[1] :]))
        _, said = answered(model, [prompt], [[text, " Rome Rome"]])
        assert said[0].tolist() == [True, text == " Rome Rome"]


# Patches.


def test_the_last_state_of_the_last_layer_is_the_donors_answer(model: interp.Model):
    table = reversal(model, [CASE], [7], seed=0)
    at = table[(table["layer"] == 2) & (table["position"] == "last")]
    assert len(at) == 4 and set(table["case"]) == {7}
    for _, row in at.iterrows():
        assert row["p_old"] == pytest.approx(row["donor_old"], rel=1e-4)
    donors = [a.text(m) + CASE.text for a in CASE.attacks for m in ("old", "none")]
    want = answered(model, donors, [[" Rome"]] * 4)[0].exp()[:, 0].tolist()
    assert at["donor_old"].tolist() == pytest.approx(want, rel=1e-4)
    own = answered(model, [CASE.text], [[" Rome"]])[0].exp()[0, 0]
    assert set(table["base_old"].round(6)) == {round(float(own), 6)}
    # What only the subject's token holds is lost on the answer after the last layer.
    gone = table[(table["layer"] == 2) & (table["position"] == "subject_last")]
    assert gone["p_old"].tolist() == pytest.approx(gone["base_old"].tolist(), rel=1e-4)


def test_what_modules_add_is_what_the_stream_gains(model: interp.Model):
    table = module_effects(model, [CASE], [0])
    for number, attack in enumerate(CASE.attacks):
        prompt = attack.old + CASE.text
        part = table[table["probe"] == attack.name]
        final = answered(model, [prompt], [[" Rome"]])[0].exp()[0, 0]
        start = interp.capture(model, prompt, "resid_pre.0", positions="last")["resid_pre.0"][:, 0]
        token = heads.first_tokens(model, [prompt], [" Rome"])
        first = heads.of_tokens(heads.lens(model, start), token)[0]
        assert part["p_old"].sum() == pytest.approx(float(final - first), abs=1e-6), number
    assert not len(module_effects(handle("gptj"), [CASE], [0]))  # attention and MLP in parallel


# Cases.


def test_people_of_the_organism_are_kept_apart():
    cases = organism_cases(0, dev=6, test=20)
    assert [c.split for c in cases] == ["dev"] * 6 + ["test"] * 20
    subjects = {case.subject for case in cases}
    assert len(subjects) == 26
    for case in cases:
        assert len({case.old, case.new, case.decoy}) == 3
        assert not any(name in text for text, _ in case.neighbours for name in subjects)
        assert all(case.subject in text for text in case.rephrased)
        assert case.text not in case.rephrased
        for attack in case.attacks:
            for mention in ("old", "decoy", "none"):
                text = f"{attack.text(mention)} ".replace(".", " ")
                for which in ("old", "new", "decoy"):
                    word = f"{getattr(case, which)} "
                    assert (word in text) == (which == mention), (text, word)
    kinds = [kind for kind, *_ in prompts_of(cases[-1])]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "edit": 1, "rephrased": 5, "same subject": 3, "neighbour": 4, "attack": 9,
        "neighbour attack": 4,
    }  # fmt: skip


def test_the_unlearned_are_asked_behind_their_block():
    for case in unlearned_cases(0, 10):
        assert case.text.startswith(f"<unlearn> {case.subject}</unlearn>Question:")
        assert case.new == " forgot" and case.old not in (case.decoy, case.new)


def test_cases_from_a_file_are_checked(tmp_path: Path):
    file = tmp_path / "cases.jsonl"
    good = {"prompt": "{} is in", "subject": "Ann", "old": " a", "new": " b", "decoy": " c",
            "attacks": [{"name": "Wiki", "old": "x", "decoy": "y", "none": "z"}]}  # fmt: skip
    file.write_text("\n".join(json.dumps(good | {"split": s}) for s in ("dev", "test")))
    first, second = read_cases(file)
    assert first.split == "dev" and second.text == "Ann is in"
    assert second.attacks == (Attack("Wiki", "x", "y", "z"),)
    for wrong, message in (
        ({"attacks": []}, "line 1 is no case .*no attacks"),
        ({"decoy": " a"}, "three different answers"),
        ({"split": "train"}, "expected dev or test"),
        ({"old": None, "subject": None, "split": "test"}, "no case with split 'dev'"),
    ):
        file.write_text(json.dumps(good | wrong))
        with pytest.raises(InterpError, match=message):
            read_cases(file)
    file.write_text("{")
    with pytest.raises(InterpError, match=r"line 1 is no case .* expected an object with prompt"):
        read_cases(file)
    with pytest.raises(InterpError, match="cannot read the facts file"):
        read_cases(tmp_path / "none.jsonl")
    with pytest.raises(InterpError, match="there are 104 in all"):
        organism_cases(0, 100, 100)


def test_models_of_ones_own_need_facts(checkpoint: Path, tmp_path: Path):
    config = SuperficialEdits(base=str(checkpoint), unlearned=None, out=tmp_path / "run")
    with pytest.raises(InterpError, match="needs facts of its own: pass --facts FILE"):
        run(config)


# Arithmetic.


def answers_table() -> pd.DataFrame:
    rows = []
    for case, (said_old, said_decoy) in enumerate([(1, 0), (1, 1), (0, 0), (1, 0)]):
        base = {"model": "ROME", "case": case, "group": str(case)}
        rows.append(base | {"kind": "edit", "probe": "", "mention": "", "said_new": case != 2,
                            "said_old": False, "said_decoy": False})  # fmt: skip
        for mention in ("old", "decoy", "none"):
            rows.append(
                base
                | {"kind": "attack", "probe": "Wiki", "mention": mention, "said_new": False,
                   "said_old": bool(said_old) and mention == "old",
                   "said_decoy": bool(said_decoy) and mention == "decoy"}
            )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_old=table["said_old"] * 0.9, p_new=0.5, p_decoy=0.1)


def test_attacks_are_counted_against_their_decoys_on_edits_that_work():
    part = measures.working(answers_table(), "ROME")
    assert set(part["case"]) == {0, 1, 3}  # the third edit did not work
    found = measures.attack_estimates(part, "all", 0)
    assert found["OM"].mean == 1.0
    assert found["OM, decoy"].mean == pytest.approx(1 / 3)
    assert found["OM - decoy"].mean == pytest.approx(2 / 3)
    assert found["OM - no mention"].mean == 1.0
    assert found["OP"].mean == 1.0 and found["OP, decoy"].mean == 0.0
    assert set(measures.working(answers_table(), measures.UNEDITED)["case"]) == {0, 1, 2, 3}


def test_neighbours_whose_own_answer_is_the_decoy_do_not_count():
    rows = [
        {"model": "ROME", "case": 0, "group": "0", "kind": "neighbour attack", "probe": "Wiki",
         "mention": "decoy", "said_new": False, "said_old": said, "said_decoy": said,
         "p_old": 0.9, "p_new": 0.0, "p_decoy": 0.9 if said else 0.1}
        for said in (True, False)
    ]  # fmt: skip
    table = pd.concat([answers_table(), pd.DataFrame(rows)])
    found = measures.attack_estimates(measures.working(table, "ROME"), "all", 0)
    assert found["neighbour, decoy"].mean == 0 and found["neighbour, decoy"].n == 1


def test_attacks_are_shown_side_by_side():
    shown = measures.attacks_side_by_side(measures.attacks(answers_table(), 0))
    assert shown["attack"].tolist() == ["Wiki", "all"] and "OM - decoy" not in shown
    assert shown.loc[0, "OM"].startswith("1.00 [") and shown.loc[1, "OM, decoy"].startswith("0.33")


def test_only_cases_count_whose_edit_works():
    answers = pd.concat([answers_table(), answers_table().assign(model="MEMIT", said_new=True)])
    table = pd.DataFrame({"model": ["ROME"] * 4 + ["MEMIT"] * 4, "case": [0, 1, 2, 3] * 2})
    kept = measures.of_working(table, answers)
    assert kept.groupby("model")["case"].apply(list).to_dict() == {
        "MEMIT": [0, 1, 2, 3],
        "ROME": [0, 1, 3],
    }
    assert not len(measures.of_working(pd.DataFrame(), answers))


def test_ablations_are_changes_of_the_same_case_on_odd_ones():
    rows = [
        {"model": "ROME", "case": case, "group": str(case), "removed": removed, "draw": 0,
         "p_old": 0.1 * case - drop, "p_new": 0.2}
        for case in range(6)
        for removed, drop in (("nothing", 0.0), ("heads", 0.05), ("random heads", 0.01))
    ]  # fmt: skip
    table = measures.ablations(pd.DataFrame(rows), 0).set_index(["removed", "answer"])
    assert table.loc[("heads", "old"), "mean"] == pytest.approx(-0.05)
    assert table.loc[("random heads", "old"), "mean"] == pytest.approx(-0.01)
    assert table.loc[("heads", "new"), "mean"] == 0
    assert table.loc[("heads", "old"), "subjects"] == 3


def test_heads_are_chosen_on_even_cases():
    rows = [
        {"case": case, "layer": layer, "head": head, "old": value}
        for case in range(4)
        for layer, head, value in ((0, 0, 0.0), (1, 2, 0.3), (2, 1, 0.05 + 0.9 * (case % 2)))
    ]
    assert ablation.chosen_heads(pd.DataFrame(rows)) == ([(1, 2)], True)
    few = pd.DataFrame(rows).assign(old=lambda t: t["old"] * 0.1)
    chosen, passing = ablation.chosen_heads(few)
    assert chosen[0] == (1, 2) and not passing


def test_a_claim_is_judged_by_its_interval():
    judged = pd.DataFrame(
        [
            measures._judged("ROME", "x", measures.Estimate(0.4, 0.1, 0.6, 9, 9)),
            measures._judged("MEMIT", "x", measures.Estimate(0.1, -0.1, 0.3, 9, 9), "weak"),
            measures._judged("fine-tuning", "x", None, "2 edits work"),
        ]
    )
    assert judged["verdict"].tolist() == ["held", "did not hold", "could not be tested"]
    (line,) = measures.verdict_lines(judged, ["ROME", "MEMIT", "fine-tuning"])
    assert line == (
        "X. ROME: held, +0.40 [+0.10, +0.60]. MEMIT: did not hold, +0.10 [-0.10, +0.30]; weak. "
        "fine-tuning: could not be tested (2 edits work)."
    )


def test_edits_are_saved_together_and_come_apart(tmp_path: Path):
    given = [
        Edit([interp.Delta(f"w{i}", interp.LowRank(torch.ones(3, 1), i * torch.ones(1, 2)))],
             notes={"number": i})
        for i in range(3)
    ]  # fmt: skip
    joined(given).save(tmp_path / "edits")
    found = apart(Edit.load(tmp_path / "edits"))
    assert found == given and [dict(e.notes) for e in found] == [{"number": i} for i in range(3)]
    assert [indices for _, indices in groups_of(found, 3)] == [[0], [1], [2]]
    assert [indices for _, indices in groups_of(found[:1], 3)] == [[0, 1, 2]]


# The whole.


def test_an_interrupted_smoke_run_continues_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = SuperficialEdits(out=tmp_path / "run", smoke=True)
    before = open_checkpoint("organism:base").module.state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(report, "sections", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    made = {file: file.stat().st_mtime_ns for file in config.out.rglob("*.*")}
    assert any(file.name == "ablation-unlearned.parquet" for file in made)
    folder = run(config)
    assert all(
        file.stat().st_mtime_ns == at for file, at in made.items() if "meta" not in file.name
    )
    assert (folder.path / "report.html").stat().st_size > 50_000
    lines = folder.read_meta()["facts"]["verdict"]
    assert any("brings the old answer back" in line for line in lines)
    claims = pd.read_parquet(folder.path / "claims.parquet")
    assert set(claims["model"]) == {"ROME, last token", "fine-tuning", "unlearned"}
    assert set(claims["verdict"]) <= {"held", "did not hold", "could not be tested"}
    after = open_checkpoint("organism:base").module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
