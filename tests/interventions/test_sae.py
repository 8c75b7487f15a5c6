"""SAEs on a model: feature edits, the report card against sums by hand, tuning around one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import interp
import interventions as iv
from interp import InterpError
from interventions._factors import Factors
from interventions._sae_card import interval
from interventions._sae_splice import splice
from interventions._sae_tune import divergence, teacher_logits
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

TEXTS = ["The capital is Paris", "ab cd", "cab d d ab", "New York", "aa c The ab is", "bd a c"]
SITE = "resid_post.1"


def model_of(name: str = "llama", **overrides: object) -> interp.Model:
    tokenizer = byte_level()
    module = build(name, vocab_size=max(97, len(tokenizer)), **overrides)
    return interp.load(module, tokenizer=tokenizer)


def width(model: interp.Model, site: str = SITE) -> int:
    return interp.capture(model, TEXTS[:1], site)[site][0, 0].numel()


def sae_of(model: interp.Model, site: str = SITE, **options: object) -> iv.SAE:
    d_in = width(model, site)
    sae = iv.sae.random(d_in, 3 * d_in, 6, site=site, seed=1)
    return replace(sae, **options)  # type: ignore[arg-type]


def logits(model: interp.Model, batch: interp.Batch) -> Tensor:
    with torch.no_grad():
        return model.module(**batch.inputs).logits


@pytest.mark.parametrize("site", [SITE, "z.1", "mlp_post.0"])
def test_feature_edits(site: str):
    """Against x plus the change written out; what is not edited stays to the last bit."""
    model = model_of()
    sae = sae_of(model, site)
    batch = model.batch(TEXTS[:3])
    x = interp.capture(model, batch, site)[site].flatten(2)
    z = sae.encode(x)
    j, i = (int(f) for f in z[batch.attention_mask.bool()].sum(0).topk(2).indices)
    wanted = {
        "scale": x + (2.5 - 1) * z[..., [j]] * sae.W_dec[j] - 1 * z[..., [i]] * sae.W_dec[i],
        "ablate": x - z[..., [j]] * sae.W_dec[j] - z[..., [i]] * sae.W_dec[i],
        "clamp": x + (4.0 - z[..., [j]]) * sae.W_dec[j],
        "without error": sae.decode(z) - z[..., [j]] * sae.W_dec[j],
    }
    edits = {
        "scale": iv.scale_features(sae, {j: 2.5, i: 0}),
        "ablate": iv.ablate_features(sae, [j, i]),
        "clamp": iv.clamp_features(sae, {j: 4}),
        "without error": iv.ablate_features(sae, [j], keep_error=False),
    }
    before = logits(model, batch)
    mask = batch.attention_mask.bool()
    for name, edit in edits.items():
        with interp.hooked(model, {site: edit}):
            got = interp.capture(model, batch, site)[site].flatten(2)
            moved = logits(model, batch)
        torch.testing.assert_close(got[mask], wanted[name][mask], atol=1e-5, rtol=1e-4)
        assert not torch.equal(moved, before)
    silent = (z[mask].sum(0) == 0).nonzero()
    same = iv.scale_features(sae, {j: 1.0} | {int(s): 3.0 for s in silent[:1, 0]})
    with interp.hooked(model, {site: same}):
        assert torch.equal(logits(model, batch)[mask], before[mask])
    assert torch.equal(logits(model, batch), before)


def test_feature_edits_are_no_edits(tmp_path: Path):
    model = model_of()
    sae = sae_of(model)
    edit = iv.ablate_features(sae, [3])
    said = "a function of the activation that no Edit can hold, so it can be neither saved nor"
    with pytest.raises(InterpError, match=said):
        edit.save(tmp_path / "edit")
    with pytest.raises(InterpError, match=said), edit.applied(model):
        pass
    with pytest.raises(InterpError, match=said):
        interp.Edit() + edit
    for name in ("atoms", "affines", "deltas", "made_on"):  # what baking one reads first
        with pytest.raises(InterpError, match=said):
            getattr(edit, name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InterpError, match=f"feature {sae.d_sae} is not there: .* has 0 to"):
        iv.scale_features(sae, {sae.d_sae: 1.0})
    with pytest.raises(InterpError, match="no features to edit"):
        iv.ablate_features(sae, [])
    elsewhere = interp.hooked(model, {"resid_post.0": edit})
    said = r"this SAE reads resid_post\.1, and its edit is hooked at resid_post\.0; .*sae\.site"
    with pytest.raises(InterpError, match=said), elsewhere:
        logits(model, model.batch(TEXTS[:1]))
    meant = iv.ablate_features(replace(sae, site="resid_post.0"), [3])
    for free in (meant, iv.ablate_features(replace(sae, site=None), [3])):
        with interp.hooked(model, {"resid_post.0": free}):
            logits(model, model.batch(TEXTS[:1]))
    wrong = interp.hooked(model, {"mlp_post.0": edit})
    with pytest.raises(InterpError, match=r"and mlp_post\.0 has"), wrong:
        logits(model, model.batch(TEXTS[:1]))


def test_the_identity_changes_nothing():
    model = model_of()
    batch = model.batch(TEXTS)
    before = logits(model, batch)
    for grad in ("full", "ste", "none"):
        fn = splice(iv.sae.identity(width(model), SITE), batch, grad)
        with interp.hooked(model, {SITE: fn}):
            assert torch.equal(logits(model, batch), before)


def test_splicing_passes_tokens_by_that_it_was_not_trained_on():
    """First tokens and massive ones stay, with either padding."""
    model = model_of()
    sae = sae_of(model, meta={"drop_first": True, "max_norm": 1.0})  # above the median passes by
    for side in ("right", "left"):
        batch = model.batch(TEXTS[:3], padding=side)
        x = interp.capture(model, batch, SITE)[SITE]
        with interp.hooked(model, {SITE: splice(sae, batch)}):
            got = interp.capture(model, batch, SITE)
        mask = got.mask.clone()
        changed = (got[SITE] != x).any(-1)
        assert not bool(changed[:, 0].any())
        mask[:, 0] = False
        norm = x.norm(dim=-1)
        expected = mask & (norm <= norm[mask].median())
        assert torch.equal(changed, expected)


@torch.no_grad()
def by_hand(model: interp.Model, sae: iv.SAE) -> dict[str, float]:
    """Text by text, without padding or batches."""
    module, rows, zs, kl, nll, spliced, tokens = model.module, [], [], 0.0, 0.0, 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        x = interp.capture(model, ids, SITE)[SITE][0]
        rows.append(x)
        zs.append(sae.encode(x))
        p = module(ids).logits[0].log_softmax(-1)

        def put(module: nn.Module, args: object, output: Tensor) -> Tensor:
            return sae.reconstruct(output)

        handle = module.model.layers[1].register_forward_hook(put)
        q = module(ids).logits[0].log_softmax(-1)
        handle.remove()
        kl += float((p.exp() * (p - q)).sum())
        at = torch.arange(len(x) - 1)
        nll -= float(p[at, ids[0, 1:]].sum())
        spliced -= float(q[at, ids[0, 1:]].sum())
        tokens += len(x)
    x, z = torch.cat(rows), torch.cat(zs)
    error = sae.decode(z) - x
    return {
        "fvu": float(error.square().sum() / (x - x.mean(0)).square().sum()),
        "explained variance": float(1 - error.var(0).sum() / x.var(0).sum()),
        "l0": float((z > 0).sum() / len(z)),
        "dead share": float((~(z > 0).any(0)).float().mean()),
        "loss": nll / (tokens - len(TEXTS)),
        "loss with sae": spliced / (tokens - len(TEXTS)),
        "kl": kl / tokens,
    }


@torch.no_grad()
def test_the_card_is_what_it_says():
    model = model_of()
    sae = replace(sae_of(model), model="m")
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    card = iv.sae_card(model, sae, TEXTS, prompts=2, top=3)
    assert repr(card).startswith(f"SAECard({sae.d_sae} features of {SITE}: fvu ")
    assert f"l0 {card.value('l0'):.3g}," in repr(card) and len(repr(card)) < 200
    wanted = by_hand(model, sae)
    for name, value in wanted.items():
        assert card.value(name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    table = card.table().set_index("quantity")
    bounded = table.dropna(subset=["low"])
    assert set(bounded.index) >= {"fvu", "l0", "loss", "loss with sae", "kl"}
    assert bool((bounded["low"] <= bounded["high"]).all())
    rows = [interp.capture(model, [t], SITE)[SITE][0] for t in TEXTS]
    zs = [sae.encode(x) for x in rows]
    z = torch.cat(zs)
    torch.testing.assert_close(card.density, (z > 0).float().mean(0))
    torch.testing.assert_close(card.maximum, z.max(0).values)
    features = card.features()
    j = int(card.density.argmax())
    shown = features[features["feature"] == j]
    best = sorted((float(one[:, j].max()) for one in zs), reverse=True)[:3]
    assert shown["value"].tolist() == pytest.approx([v for v in best if v > 0], rel=1e-4)
    for row in shown.itertuples():
        at = int(zs[int(row.text)][:, j].argmax())
        ids = model.tokenizer(TEXTS[int(row.text)])["input_ids"]
        assert row.token == model.tokenizer.decode(ids[at : at + 1])
        assert row.before == model.tokenizer.decode(ids[max(0, at - 12) : at])
    assert set(features["feature"]) == set(range(sae.d_sae))
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    again = iv.sae_card(model, sae, TEXTS, prompts=6, top=3)
    pd.testing.assert_frame_equal(again.table(), card.table(), rtol=1e-4, atol=1e-5)


def test_the_ends_of_the_scale():
    """The identity recovers all; the mean in every place recovers nothing over the mean."""
    model = model_of()
    d_in = width(model)
    card = iv.sae_card(model, iv.sae.identity(d_in, SITE), TEXTS)
    for name, value in {"fvu": 0, "kl": 0, "loss recovered over mean": 1, "explained variance": 1,
                        "loss recovered over zero": 1}.items():  # fmt: skip
        assert card.value(name) == pytest.approx(value, abs=1e-6)
    assert card.value("fvu", "random") > 0.1
    acts = interp.capture(model, TEXTS, SITE)
    mean = acts[SITE][acts.mask].mean(0)
    dead = replace(iv.sae.identity(d_in, SITE), b_enc=torch.full((2 * d_in,), -1e9), b_dec=mean)
    card = iv.sae_card(model, dead, TEXTS)
    for name, value in {"fvu": 1, "loss recovered over mean": 0, "dead share": 1, "l0": 0}.items():
        assert card.value(name) == pytest.approx(value, abs=1e-4)
    assert card.features()["text"].isna().all()


def test_intervals_resample_texts():
    """Of a mean of many equal counts: close to the normal interval; one text has none."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    ratio, low, high = interval(values, [2.0] * 400, 0)
    tensor = torch.tensor(values) / 2
    half = 1.96 * float(tensor.std()) / 20
    assert ratio == pytest.approx(float(tensor.mean()), abs=1e-6)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert all(v != v for v in interval([1.0], [2.0], 0)[1:])


def test_a_card_is_saved_beside_the_sae_and_escapes_what_models_say(tmp_path: Path):
    model = model_of()
    hostile = replace(sae_of(model), model="m")
    card = iv.sae_card(model, hostile, TEXTS, top=2)
    evil = "<script>alert(1)</script>"
    top = tuple(one | {"before": evil, "token": evil, "after": f"&{evil}"} for one in card.top)
    card = replace(card, top=top, meta=card.meta | {"model": evil})
    folder = hostile.save(tmp_path / "sae", card=card)
    page = (folder / "card.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&amp;&lt;" in page
    assert {p.name for p in folder.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "card.json", "features.parquet", "card.png",
        "card.html",
    }  # fmt: skip
    held = json.loads((folder / "card.json").read_text())
    assert held["table"][0]["quantity"] == "fvu"
    assert pd.read_parquet(folder / "features.parquet")["feature"].nunique() == hostile.d_sae
    assert torch.equal(iv.load_sae(folder).W_dec, hostile.W_dec)
    hostile.save(folder)  # saving again replaces the card too
    assert not (folder / "card.html").exists()


def tuned(
    model: interp.Model, sae: iv.SAE, data: list[str] = TEXTS, **options: object
) -> interp.Edit:
    settings = {"rank": 2, "alpha": 4, "rows": 3, "steps": 4, "lr": 1e-2, "progress": False}
    return iv.tune_with_sae(model, sae, data, **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_learns_to_be_itself_around_the_sae(name: str):
    model = model_of(name)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    plain = logits(model, model.batch(TEXTS))
    sae = replace(sae_of(model), W_dec=0.3 * sae_of(model).W_dec)
    edit = tuned(model, sae, steps=60, rows=6)
    losses = [row["loss"] for row in edit.notes["tune_with_sae"]["history"]]
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert torch.equal(logits(model, model.batch(TEXTS)), plain)
    assert all(delta.change.left.shape[1] == 2 for delta in edit.deltas)  # type: ignore[union-attr]
    batch = model.batch(TEXTS)
    teacher = teacher_logits(model, batch)
    with torch.no_grad(), edit.applied(model):
        reached = divergence(model, sae, batch, teacher, "none").sum() / batch.attention_mask.sum()
    assert float(reached) == pytest.approx(losses[-1], rel=0.3)


def test_the_first_loss_is_the_cost_of_the_sae():
    """KL at step 0 by hand, a token and a text; with the identity there is nothing to learn."""
    model = model_of()
    sae = sae_of(model)
    kl = by_hand(model, sae)["kl"]
    tokens = sum(len(model.tokenizer(t)["input_ids"]) for t in TEXTS)
    mean = tuned(model, sae, rows=6, steps=1).notes["tune_with_sae"]["history"][0]["loss"]
    summed = tuned(model, sae, rows=6, steps=1, loss="sum").notes["tune_with_sae"]["history"][0]
    assert mean == pytest.approx(kl, rel=1e-4)
    assert summed["loss"] == pytest.approx(kl * tokens / len(TEXTS), rel=1e-4)
    same = tuned(model, iv.sae.identity(width(model), SITE), lr=1e-4)
    losses = [row["loss"] for row in same.notes["tune_with_sae"]["history"]]
    assert abs(losses[0]) < 1e-7
    assert max(losses) < 1e-3 * kl  # Adam makes steps of rounding too


@pytest.mark.parametrize("grad", ["full", "ste", "none"])
def test_where_gradients_flow(grad: str):
    """`none`, the released code's: nothing up to the SAE's layer; the others: everywhere."""
    model = model_of(num_hidden_layers=4)
    sae = sae_of(model)
    factors = Factors.begin(model, None, ("attn", "mlp"), 2, 1.0, 0)
    with torch.no_grad():
        for side in factors.sides:
            side.add_(0.05)
    batch = model.batch(TEXTS[:3])
    teacher = teacher_logits(model, batch)
    with torch.enable_grad(), factors.on():
        loss = divergence(model, sae, batch, teacher, grad).sum()
        gradient = torch.autograd.grad(loss, factors.sides, materialize_grads=True)
    layers: dict[int, bool] = {}
    names = [name for name in factors.learned for _ in range(2)]
    for name, one in zip(names, gradient, strict=True):
        layer = int(name.split(".")[2])
        layers[layer] = layers.get(layer, False) or bool(one.any())
    assert layers == {0: grad != "none", 1: grad != "none", 2: True, 3: True}
    edit = tuned(model, sae, sae_grad=grad)
    reached = {int(delta.parameter.split(".")[2]) for delta in edit.deltas}
    assert reached == ({2, 3} if grad == "none" else {0, 1, 2, 3})


def test_gradients_are_finite_differences():
    model = interp.load(build("gpt2", dtype=torch.float64), check=False)
    d_in = model.anatomy.d_model
    sae = iv.sae.random(d_in, 3 * d_in, 3 * d_in, site="resid_post.0").to(torch.float64)
    factors = Factors.begin(model, None, ("mlp", "o"), 1, 1.0, 0)
    factors.learned = {
        n: tuple(s.detach().double().add(0.01).requires_grad_() for s in pair)  # type: ignore[misc]
        for n, pair in factors.learned.items()
    }
    batch = model.batch([[1, 2, 3, 4]])
    teacher = model.module(**batch.inputs).logits.detach()

    def loss() -> Tensor:
        with factors.on():
            return divergence(model, sae, batch, teacher, "full").sum()

    gradient = torch.autograd.grad(loss(), factors.sides)
    for side, one in list(zip(factors.sides, gradient, strict=True))[::3]:
        at = int(one.abs().argmax())
        values = []
        for h in (1e-3, -1e-3):
            with torch.no_grad():
                side.view(-1)[at] += h
                values.append(float(loss()))
                side.view(-1)[at] -= h
        wanted = (values[0] - values[1]) / 2e-3
        assert float(one.reshape(-1)[at]) == pytest.approx(wanted, rel=0.02, abs=1e-4)


def test_dev_chooses_and_never_test():
    model = model_of()
    sae = sae_of(model)
    edit = tuned(model, sae, steps=30, dev=TEXTS[3:], dev_every=10)
    note = edit.notes["tune_with_sae"]
    seen = {row["step"]: row["dev"] for row in note["history"] if "dev" in row}
    assert set(seen) == {10, 20, 30}
    assert note["best step"] == 0 or seen[note["best step"]] == min(seen.values())
    scores = iter([0.5, 0.7, 0.9, 0.2])
    looked = []

    def score(m: interp.Model) -> float:
        looked.append(logits(m, m.batch(TEXTS[:1])))
        return next(scores)

    note = tuned(model, sae, steps=30, score=score, dev_every=10).notes["tune_with_sae"]
    assert note["best step"] == 20
    assert not torch.equal(looked[0], looked[2])  # with the changes on, without the SAE
    assert torch.equal(looked[0], logits(model, model.batch(TEXTS[:1])))
    scores = iter([0.5, 0.1, 0.1, 0.1])
    assert len(tuned(model, sae, steps=30, score=score, dev_every=10)) == 0  # the start was best


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_of_a_fused_matrix_the_part_named_is_tuned(name: str):
    """Where q, k and v are one matrix, `modules="q"` moves the entries of q and no others."""
    model = model_of(name)
    inside = iv.masks.module_mask(model, modules="q")
    edit = tuned(model, sae_of(model), modules="q", steps=3)
    assert {delta.parameter for delta in edit.deltas} <= set(inside.index)
    for delta in edit.deltas:
        sides = delta.change.tensors()
        moved = sides["left"] @ sides["right"] != 0
        assert bool(moved.any()) and not bool((moved & ~inside.dense(delta.parameter)).any())


def test_experts_are_skipped_and_named():
    model = model_of("mixtral")
    edit = tuned(model, sae_of(model))
    skipped = edit.notes["tune_with_sae"]["skipped"]
    assert any("expert" in name for name in skipped) and any("gate.weight" in n for n in skipped)
    assert not {delta.parameter for delta in edit.deltas} & set(skipped)


def test_the_first_texts_may_be_silent():
    """An SAE that never saw first tokens has nothing to do in a text of one; the next has more."""
    model = model_of()
    sae = replace(sae_of(model), meta={"drop_first": True})
    edit = tuned(model, sae, data=["a", *TEXTS], rows=1, steps=2)
    assert edit.notes["tune_with_sae"]["history"]


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "gated", "standard"])
def test_some_latents_are_those_of_all(kind: str):
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(*shape, generator=draw)
        for name, shape in {"W_enc": (6, 20), "W_dec": (20, 6), "b_enc": (20,), "b_dec": (6,),
                            "threshold": (20,), "b_gate": (20,), "r_mag": (20,)}.items()
    }  # fmt: skip
    wanted = {"gated": {"b_gate", "r_mag"}, "batchtopk": {"threshold"}, "jumprelu": {"threshold"}}
    for name in {"threshold", "b_gate", "r_mag"} - wanted.get(kind, set()):
        del weights[name]
    sae = iv.SAE(kind, k=4, **weights)
    x, chosen = torch.randn(3, 5, 6, generator=draw), torch.tensor([17, 2, 9])
    torch.testing.assert_close(sae.encode(x, chosen), sae.encode(x)[..., chosen])
    assert bool((sae.encode(x, chosen) > 0).any())


def test_mistakes_with_features_and_cards_are_said():
    model = model_of()
    sae = sae_of(model)
    with pytest.raises(InterpError, match="cannot be set to NaN or infinity"):
        iv.clamp_features(sae, {1: float("nan")})
    with pytest.raises(InterpError, match=r"text 1 has 1 tokens .*\(1 of 2\)"):
        iv.sae_card(model, sae, [TEXTS[0], "a"])
    with pytest.raises(InterpError, match="context=1, prompts=8: expected"):
        iv.sae_card(model, sae, TEXTS, context=1)
    card = iv.sae_card(model, sae, TEXTS, top=1)
    with pytest.raises(InterpError, match=r"no 'FVU' of 'trained'; .*'fvu'"):
        card.value("FVU")
    with torch.no_grad():
        model.module.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(InterpError, match="are not finite; look for NaN"):
        iv.sae_card(model, sae, TEXTS)


def test_source_and_target_may_differ_and_the_edit_travels(tmp_path: Path):
    source, target = model_of(), model_of(seed=3)
    ids = [target.tokenizer(t)["input_ids"] for t in TEXTS]
    sae = iv.train_sae(
        source, ids, SITE, d_sae=96, k=8, tokens=512, batch_size=32, buffer=64, progress=False
    )
    edit = tuned(target, sae, steps=6)
    edit.save(tmp_path / "edit")
    again = interp.Edit.load(tmp_path / "edit")
    batch = target.batch(TEXTS)
    with edit.applied(target):
        wanted = logits(target, batch)
    with again.applied(target):
        assert torch.equal(logits(target, batch), wanted)
    baked = interp.bake(target, again)
    torch.testing.assert_close(logits(interp.load(baked), batch), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits(target, batch), wanted)
    with pytest.raises(InterpError), edit.applied(source):
        pass


def test_what_cannot_be_tuned_is_said():
    model = model_of()
    sae = sae_of(model)
    with pytest.raises(InterpError, match="6 examples and a batch has 7 rows; lower rows"):
        tuned(model, sae, rows=7)
    with pytest.raises(InterpError, match="expected a list of texts"):
        iv.tune_with_sae(model, sae, [])
    with pytest.raises(InterpError, match=r"reads 5 numbers a token, and resid_post\.1 has"):
        tuned(model, iv.sae.random(5, 20, 3, site=SITE))
    with pytest.raises(InterpError, match="layers 0 to"):
        tuned(model, replace(sae, site="resid_post.9"))
    with pytest.raises(InterpError, match="does not say where it reads"):
        tuned(model, replace(sae, site=None))
    dead = replace(sae, kind="standard", b_enc=torch.full((sae.d_sae,), -1e9))
    with pytest.raises(InterpError, match=r"latents fires at .*: it is dead"):
        tuned(model, dead)
    with pytest.raises(InterpError, match="valid names: 'token', 'sum'"):
        tuned(model, sae, loss="mean")
    with pytest.raises(InterpError, match="nearest valid names: 'ste', 'none'"):
        tuned(model, sae, sae_grad="some")
    for option in ({"alpha": 0}, {"context": 0}, {"context": -5}, {"rank": 0}):
        with pytest.raises(InterpError, match="expected at least 1, more than 0, and"):
            tuned(model, sae, **option)
    with pytest.raises(InterpError, match="not by both"):
        tuned(model, sae, dev=TEXTS, score=lambda _: 0.0)
    with pytest.warns(UserWarning, match="before the last step is returned; lower lr"):
        edit = tuned(model, sae, steps=9, lr=1e30, clip=None)
    with edit.applied(model):
        assert bool(logits(model, model.batch(TEXTS)).isfinite().all())
    with torch.no_grad():
        model.module.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(InterpError, match=r"it is dead|not finite in step 1"):
        tuned(model, sae)
