"""What patching must give by logic, by algebra, or by hand."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._patch import exact
from interp._patch.plan import PATCHABLE
from tests.architectures import build
from tests.interp.patch.slow import activations, difference, patched
from tests.oracles import plain
from tests.oracles.copying import linear, through_block

STREAMS = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post"]


def other_ids(ids):
    return (ids + 17) % 90 + 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gptj", "opt", "bloom"])
def test_patching_a_run_with_itself_changes_no_bit(name, ids) -> None:
    model = build(name)
    kinds = [kind for kind in PATCHABLE if kind not in ("pattern", "resid_mid")]
    for positions in ("each", "together"):
        eff = interp.patch(model, ids, ids, kinds, difference, positions=positions)
        for score in eff.score.values():
            assert torch.equal(score, eff.corrupted[:, None, None].expand_as(score))
        assert bool(torch.stack([v.isnan().all() for v in eff.normalised.values()]).all())
    assert torch.equal(eff.clean, eff.corrupted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "falcon", "granite"])
def test_patching_a_whole_stream_is_the_clean_run(name, ids) -> None:
    model = build(name)
    eff = interp.patch(
        model, ids, other_ids(ids), ["resid_pre", "resid_post"], "kl", positions="together"
    )
    for score in eff.score.values():
        assert torch.equal(score[:, 0, 0], eff.clean)
    assert torch.equal(eff.clean, torch.zeros(2))  # KL(clean || clean)
    assert bool((eff.corrupted > 0.01).all())


def test_what_stands_before_the_first_difference_has_no_effect_and_the_only_difference_has_all(
    ids,
) -> None:
    model, corrupted = build("llama"), ids.clone()
    corrupted[:, 4] = other_ids(ids)[:, 4]
    eff = interp.patch(model, ids, corrupted, [*STREAMS, "z"], difference)
    for score in eff.score.values():
        assert torch.equal(score[:, :4], eff.corrupted[:, None, None].expand_as(score[:, :4]))
    first = eff.normalised["resid_pre.0"][..., 0]
    assert torch.equal(first, (torch.arange(11) == 4).float().expand(2, -1))
    top = eff["resid_post.2"]  # of the last stream only the last position is read
    assert torch.equal(top[:, :-1], eff.corrupted[:, None].expand(-1, 10))
    torch.testing.assert_close(top[:, -1], eff.clean)


def test_noising_is_denoising_with_the_sides_exchanged(ids) -> None:
    model = build("llama")
    one = interp.patch(model, ids, other_ids(ids), ["z", "mlp_out"], difference)
    two = interp.patch(
        model, other_ids(ids), ids, ["z", "mlp_out"], difference, direction="noising"
    )
    assert torch.equal(one.clean, two.corrupted) and torch.equal(one.corrupted, two.clean)
    for name in one.score:
        assert torch.equal(one.score[name], two.score[name])
        torch.testing.assert_close(
            one.normalised[name], 1 - two.normalised[name], rtol=1e-3, atol=1e-3
        )


def test_on_an_affine_model_effects_are_a_product_of_matrices() -> None:
    model = linear(n_layers=3)
    clean, corrupted = torch.randint(1, 12, (2, 3, 6)).unbind(0)
    target = interp.Target("logit_difference", [1, 5, 7], [2, 3, 8])
    options = {"method": "attribution", "compare": True}
    exact_eff = interp.patch(model, clean, corrupted, STREAMS, target)
    eff = interp.patch(model, clean, corrupted, STREAMS, target, **options)
    heads = interp.patch(model, clean, corrupted, ["z", "v", "mlp_post"], target, **options)
    delta = {
        side: interp.capture(model, ids, "resid_post.*").stack("resid_post")
        for side, ids in (("clean", clean), ("corrupted", corrupted))
    }
    change = delta["clean"] - delta["corrupted"]  # [layer prompt pos d_model]
    unembed = model.lm_head.weight
    for prompt, (answer, versus) in enumerate(zip([1, 5, 7], [2, 3, 8], strict=True)):
        direction = unembed[answer] - unembed[versus]
        for layer in range(3):
            for position in range(6):
                moved = torch.zeros_like(change[0, prompt])
                moved[position] = change[layer, prompt, position]
                for above in range(layer + 1, 3):
                    moved = through_block(model, above, moved)
                expected = exact_eff.corrupted[prompt] + moved[-1] @ direction
                got = exact_eff[f"resid_post.{layer}"][prompt, position]
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for found in (eff, heads):
        for name, score in found.score.items():
            torch.testing.assert_close(score, found.exact[name], rtol=1e-9, atol=1e-9)
        assert float(found.agreement()["max_error"].max()) < 1e-9
        assert float(found.agreement()["pearson"].min()) > 1 - 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "gemma2"])
def test_attribution_is_the_gradient_times_the_difference(name, ids) -> None:
    model, corrupted = build(name), other_ids(ids)
    sites = ["resid_post.0", "z.1", "mlp_post.1", "attn_out.2"]
    eff = interp.patch(model, ids, corrupted, sites, difference, method="attribution")
    clean = interp.capture(model, ids, sites)
    base = interp.capture(model, corrupted, sites, grad=True)
    slopes = torch.autograd.grad(
        difference(base.logits[:, -1]).sum(), [base[site] for site in sites]
    )
    for site, slope in zip(sites, slopes, strict=True):
        product = (clean[site] - base[site].detach()) * slope
        expected = eff.corrupted[:, None] + product.flatten(2).sum(-1)
        got = eff[site] if site != "z.1" else None
        if got is None:
            got = eff[site].sum(-1) - 3 * eff.corrupted[:, None]  # four heads, one run
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_attribution_reports_how_far_it_is_from_exact(ids) -> None:
    model = build("llama")
    few = interp.patch(
        model, ids, other_ids(ids), ["z", "mlp_out"], "prob", method="attribution", compare=20
    )
    everything = interp.patch(model, ids, other_ids(ids), ["z", "mlp_out"], "prob")
    compared = sum(int((~exact.isnan()).sum()) for exact in few.exact.values())
    assert compared == 2 * 20
    for name, exact_scores in few.exact.items():
        there = ~exact_scores.isnan()
        torch.testing.assert_close(
            exact_scores[there], everything.score[name][there], rtol=1e-4, atol=1e-5
        )
    table = few.agreement()
    assert list(table["site"]) == ["z", "mlp_out"] and int(table["n"].sum()) == 40
    row = table.iloc[1]
    errors = torch.cat(
        [(few.score[n] - few.exact[n]).flatten() for n in few.score if n.startswith("mlp")]
    )
    assert row["max_error"] == pytest.approx(float(errors.abs().nan_to_num().max()), rel=1e-5)
    with pytest.raises(interp.InterpError, match="no exact scores to compare with"):
        everything.agreement()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral"])
def test_what_stands_beside_a_pair_does_not_matter(name, ids) -> None:
    model = interp.load(build(name))
    clean = [ids[0].tolist(), ids[1, :6].tolist(), ids[0, 3:].tolist()]
    corrupted = [other_ids(torch.tensor(row)).tolist() for row in clean]
    sites = ["resid_post", "z", "mlp_out"]
    together = interp.patch(model, clean, corrupted, sites, "kl")
    for index in range(3):
        alone = interp.patch(model, [clean[index]], [corrupted[index]], sites, "kl")
        for site, score in alone.score.items():
            n = len(clean[index])
            torch.testing.assert_close(
                together.score[site][index, :n], score[0], rtol=1e-4, atol=1e-5
            )
            assert bool(together.score[site][index, n:].isnan().all())


def test_a_bound_on_memory_changes_no_result(ids, monkeypatch) -> None:
    model = build("llama")
    sites, positions = ["resid_post", "z", "mlp_post"], [2, 6, -1]
    many = interp.patch(model, ids, other_ids(ids), sites, difference, positions=positions)
    monkeypatch.setattr(exact, "_NUMBERS", 1)
    one_by_one = interp.patch(model, ids, other_ids(ids), sites, difference, positions=positions)
    for site in many.score:
        torch.testing.assert_close(many.score[site], one_by_one.score[site], rtol=1e-5, atol=1e-5)


def test_groups_are_units_patched_together(ids) -> None:
    model, corrupted = build("llama"), other_ids(ids)
    groups = {"z": [[0, 1, 2, 3], [1, 3]], "mlp_post.1": [list(range(48)), [5, 6, 40]]}
    eff = interp.patch(
        model, ids, corrupted, ["z.1", "mlp_post.1", "attn_out.1", "mlp_out.1"], difference,
        groups=groups,
    )  # fmt: skip
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(eff["z.1"][..., 0], eff["attn_out.1"], **close)
    torch.testing.assert_close(eff["mlp_post.1"][..., 0], eff["mlp_out.1"], **close)
    for site, units, unit in (("z.1", [1, 3], 1), ("mlp_post.1", [5, 6, 40], 1)):
        donor = activations(model, ids[0].tolist(), site)
        expected = patched(model, corrupted[0].tolist(), [(site, donor, [7], units)], difference)
        torch.testing.assert_close(float(eff[site][0, 7, unit]), expected, **close)


def test_places_are_patched_together_under_a_name(ids) -> None:
    model, corrupted = build("llama"), other_ids(ids)
    named = {
        "both": [interp.Place("z.0", [1, 2], -2), interp.Place("resid_post.1", None, [3, 5])],
        "one": [interp.Place("mlp_out.2", positions="last")],
        "own": [interp.Place("v.1", [0], [[2], [4, 6]])],
    }
    eff = interp.patch(model, ids, corrupted, named, difference)
    for prompt in range(2):
        row, clean = corrupted[prompt].tolist(), ids[prompt].tolist()
        places = {
            "both": [("z.0", [9], [1, 2]), ("resid_post.1", [3, 5], None)],
            "one": [("mlp_out.2", [10], None)],
            "own": [("v.1", [[2], [4, 6]][prompt], [0])],
        }
        for name, where in places.items():
            given = [(site, activations(model, clean, site), *rest) for site, *rest in where]
            expected = patched(model, row, given, difference)
            torch.testing.assert_close(float(eff[name][prompt]), expected, rtol=1e-4, atol=1e-4)
    assert eff.table()["site"].unique().tolist() == ["both", "one", "own"]


def test_metrics_are_what_their_names_say(ids) -> None:
    model, corrupted = build("llama"), other_ids(ids)
    place = ("resid_post.1", 6)
    logits = torch.stack(
        [
            torch.stack(
                [
                    _logits_with(model, ids[prompt], corrupted[prompt], place[0], place[1])
                    for prompt in range(2)
                ]
            )
        ]
    )[0]
    clean, base = plain.logits_of(model, ids)[:, -1], plain.logits_of(model, corrupted)[:, -1]
    top, rival = clean.argmax(-1), base.argmax(-1)
    rows = torch.arange(2)
    logprob = logits.log_softmax(-1)
    expected = {
        "logit_difference": logits[rows, top] - logits[rows, rival],
        "logit": logits[rows, top],
        "prob": logprob.exp()[rows, top],
        "logprob": logprob[rows, top],
        "accuracy": (logits.argmax(-1) == top).float(),
        "kl": (clean.softmax(-1) * (clean.log_softmax(-1) - logprob)).sum(-1),
    }
    for name, value in expected.items():
        eff = interp.patch(model, ids, corrupted, place[0], name, positions=place[1])
        torch.testing.assert_close(eff["resid_post.1"][:, 0], value, rtol=1e-4, atol=1e-5)
    named = interp.patch(
        model, ids, corrupted, place[0], interp.Accuracy(top.tolist()), positions=place[1]
    )
    torch.testing.assert_close(named["resid_post.1"][:, 0], expected["accuracy"])
    assert torch.equal(named.clean, torch.ones(2))


def _logits_with(model, clean, corrupted, site, position):
    donor = activations(model, clean.tolist(), site)

    def put(tensor, _site):
        tensor[:, position] = donor[position]
        return tensor

    with interp.hooked(model, {site: put}):
        return plain.logits_of(model, corrupted[None])[0, -1]


def test_from_another_checkpoint(ids) -> None:
    model, tuned = build("llama"), build("llama", seed=3)
    eff = interp.patch(model, ids, None, ["resid_post", "z"], difference, source=tuned)
    torch.testing.assert_close(eff.clean, difference(plain.logits_of(tuned, ids)[:, -1]))
    torch.testing.assert_close(eff.corrupted, difference(plain.logits_of(model, ids)[:, -1]))
    for site, unit in (("resid_post.0", None), ("z.2", 3)):
        donor = activations(tuned, ids[1].tolist(), site)
        units = None if unit is None else [unit]
        expected = patched(model, ids[1].tolist(), [(site, donor, [10], units)], difference)
        got = eff.score[site][1, 10, unit or 0]
        torch.testing.assert_close(float(got), expected, rtol=1e-4, atol=1e-4)
    back = interp.patch(
        model, ids, None, "resid_post.0", difference, source=tuned, direction="noising"
    )
    donor = activations(model, ids[1].tolist(), "resid_post.0")
    expected = patched(tuned, ids[1].tolist(), [("resid_post.0", donor, [10], None)], difference)
    torch.testing.assert_close(float(back["resid_post.0"][1, 10]), expected, rtol=1e-4, atol=1e-4)
    clone = build("llama")
    same = interp.patch(model, ids, None, ["resid_post", "z"], "kl", source=clone)
    for score in same.score.values():
        assert torch.equal(score, same.corrupted[:, None, None].expand_as(score))


def test_pairs_of_different_length_aligned_at_their_ends(ids) -> None:
    model = build("llama")
    clean = [*ids[0, :3].tolist(), 50, *ids[0, 5:].tolist()]
    corrupted = [*ids[0, :3].tolist(), 60, 61, *ids[0, 5:].tolist()]
    eff = interp.patch(model, [clean], [corrupted], ["resid_post.1"], difference, align="ends")
    scores = eff["resid_post.1"][0]
    assert torch.equal(scores.isnan(), torch.isin(torch.arange(11), torch.tensor([3, 4])))
    donor = activations(model, clean, "resid_post.1")
    shifted = torch.cat([donor[:1], donor])
    for position in (5, 10):
        place = "resid_post.1", shifted, [position], None
        expected = patched(model, corrupted, [place], difference)
        torch.testing.assert_close(float(scores[position]), expected, rtol=1e-4, atol=1e-4)


def test_an_edit_in_force_stays_in_force(ids) -> None:
    model, corrupted = build("llama"), other_ids(ids)
    affines = interp.Affine("z.1", (2,), scale=0.0), interp.Affine("mlp_out.0", scale=2.0)
    edit = interp.Edit(affines)
    with edit.applied(model):
        eff = interp.patch(model, ids, corrupted, ["resid_post.0", "mlp_out.1"], difference)
        for site in eff.score:
            donor = activations(model, ids[0].tolist(), site)
            expected = patched(model, corrupted[0].tolist(), [(site, donor, [6], None)], difference)
            torch.testing.assert_close(float(eff[site][0, 6]), expected, rtol=1e-4, atol=1e-4)
    without = interp.patch(model, ids, corrupted, ["mlp_out.1"], difference)
    assert not torch.equal(without["mlp_out.1"], eff["mlp_out.1"])
