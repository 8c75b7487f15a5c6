"""Training of SAEs: losses and gradients by hand, a planted dictionary, bounds, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
import interventions as iv
from interp import InterpError
from interventions import _sae_objective as objective
from interventions._checkpoint import Checkpoint
from interventions._sae_learner import Learner, geometric_median
from interventions._sae_stream import Chunks, Shuffled, chunks_of
from tests.architectures import build

N, D, M, K = 7, 5, 9, 3


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )  # fmt: skip


def weights(kind: str) -> dict[str, Tensor]:
    held = {"enc": drawn(M, D, seed=1), "dec": drawn(M, D, seed=2), "b_enc": 0.1 * drawn(M, seed=3)}
    held["b_dec"] = 0.1 * drawn(D, seed=4)
    if kind == "jumprelu":
        held["log_threshold"] = 0.3 * drawn(M, seed=5) - 1
    if kind == "gated":
        held |= {"b_gate": 0.3 * drawn(M, seed=5), "r_mag": 0.3 * drawn(M, seed=6)}
    return held


DEAD = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 0]).bool()


def found(kind: str, held: dict[str, Tensor], x: Tensor) -> objective.Objective:
    if kind == "jumprelu":
        return objective.jumprelu(held, x, 2.0, 0.3, 0.5)
    if kind == "gated":
        return objective.gated(held, x, 0.2)
    if kind == "standard":
        return objective.standard(held, x, 0.2)
    return objective.topk(held, x, K, whole_batch=kind == "batchtopk", dead=DEAD, aux=0.5, k_aux=2)


def loss_by_hand(
    kind: str, held: dict[str, Tensor], x: Tensor, fixed: dict[str, Tensor] | None = None
) -> float:
    """Token by token, in plain loops; `fixed` are weights at which constants are taken."""
    fixed = held if fixed is None else fixed
    enc, dec, b_dec = held["enc"], held["dec"], held["b_dec"]

    def pre_of(w: dict[str, Tensor]) -> list[list[float]]:
        return [
            [float((row - w["b_dec"]) @ w["enc"][j] + w["b_enc"][j]) for j in range(M)] for row in x
        ]

    def out(z: list[float], dec: Tensor, b: Tensor | float) -> Tensor:
        return sum((z[j] * dec[j] for j in range(M)), torch.zeros(D, dtype=x.dtype)) + b

    pre, total = pre_of(held), 0.0
    if kind in ("topk", "batchtopk"):
        flat = sorted((v for row in pre for v in row), reverse=True)
        z = []
        for row in pre:
            least = flat[K * N - 1] if kind == "batchtopk" else sorted(row, reverse=True)[K - 1]
            z.append([max(v, 0.0) if v >= least else 0.0 for v in row])
        error = [out(z[t], dec, b_dec) - x[t] for t in range(N)]
        total = sum(float(e.square().sum()) for e in error) / (N * D)
        before = fixed if fixed is not held else held
        if before is not held:  # e is held fixed in the AuxK term
            old = pre_of(before)
            flat = sorted((v for row in old for v in row), reverse=True)
            error = []
            for t, row in enumerate(old):
                least = flat[K * N - 1] if kind == "batchtopk" else sorted(row, reverse=True)[K - 1]
                kept = [max(v, 0.0) if v >= least else 0.0 for v in row]
                error.append(out(kept, before["dec"], before["b_dec"]) - x[t])
        above = sum(float(e.square().sum()) for e in error)
        for t, row in enumerate(pre):
            dead = sorted((j for j in range(M) if DEAD[j]), key=lambda j: -row[j])[:2]
            kept = [max(row[j], 0.0) if j in dead else 0.0 for j in range(M)]
            total += 0.5 * float((out(kept, dec, 0.0) + error[t]).square().sum()) / above
        return total
    for t, row in enumerate(pre):
        if kind == "standard":
            z1 = [max(v, 0.0) for v in row]
            total += 0.2 * sum(z1) / N
        elif kind == "jumprelu":
            theta = held["log_threshold"].exp()
            z1 = [v if v > max(float(theta[j]), 0.0) else 0.0 for j, v in enumerate(row)]
        else:
            projected = [float((x[t] - b_dec) @ enc[j]) for j in range(M)]
            gate = [p + float(held["b_gate"][j]) for j, p in enumerate(projected)]
            factor = held["r_mag"].exp()
            size = [
                max(p * float(factor[j]) + float(held["b_enc"][j]), 0.0)
                for j, p in enumerate(projected)
            ]
            z1 = [s if g > 0 else 0.0 for s, g in zip(size, gate, strict=True)]
            open_ = [max(g, 0.0) for g in gate]
            total += 0.2 * sum(open_) / N
            aside = out(open_, fixed["dec"], fixed["b_dec"]) - x[t]
            total += float(aside.square().sum()) / (N * D)
        total += float((out(z1, dec, b_dec) - x[t]).square().sum()) / (N * D)
    if kind == "jumprelu":
        l0 = sum(v > float(theta[j]) for row in pre for j, v in enumerate(row)) / N
        total += 0.3 * (l0 / 2 - 1) ** 2
    return total


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "standard", "gated", "jumprelu"])
def test_losses_and_gradients(kind: str):
    """The loss as loops; every gradient but the thresholds' as a finite difference of them."""
    x, held = drawn(N, D, seed=7), weights(kind)
    got = found(kind, held, x)
    assert float(got.loss) == pytest.approx(loss_by_hand(kind, held, x), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in held.items():
        if name == "log_threshold":
            continue
        for at in torch.randperm(tensor.numel(), generator=generator)[:6].tolist():
            sides = []
            for h in (1e-6, -1e-6):
                moved = {n: t.clone() for n, t in held.items()}
                moved[name].view(-1)[at] += h
                sides.append(loss_by_hand(kind, moved, x, fixed=held))
            wanted = (sides[0] - sides[1]) / 2e-6
            assert float(got.gradient[name].reshape(-1)[at]) == pytest.approx(
                wanted, rel=1e-5, abs=1e-8
            ), (kind, name, at)


def test_thresholds_learn_by_the_papers_estimate():
    """-θ/ε over the band for z, -1/ε for L0, times θ for the logarithm."""
    x, held = drawn(N, D, seed=7), weights("jumprelu")
    theta = held["log_threshold"].exp()
    pre = ((x - held["b_dec"]) @ held["enc"].T + held["b_enc"]).relu()
    z = pre * (pre > theta)
    r = 2 * (z @ held["dec"] + held["b_dec"] - x) / (N * D)
    l0 = float((pre > theta).sum()) / N
    for j in range(M):
        wanted = 0.0
        for t in range(N):
            if abs(float(pre[t, j] - theta[j])) < 0.25:
                wanted += -float(theta[j]) / 0.5 * float(r[t] @ held["dec"][j])
                wanted += -1 / 0.5 * 0.3 * 2 * (l0 / 2 - 1) / 2 / N
        got = float(found("jumprelu", held, x).gradient["log_threshold"][j])
        assert got == pytest.approx(wanted * float(theta[j]), rel=1e-9, abs=1e-12)


def test_the_decoder_stays_on_the_sphere():
    plan = iv.SAEPlan("resid_post.0", d_sae=12, k=2)
    learner = Learner.begin(plan, drawn(64, D, seed=1).float(), 10, 16)
    got = learner.objective(drawn(16, D, seed=2).float())
    objective.unit_decoder(learner.weights, got.gradient)
    along = (got.gradient["dec"] * learner.weights["dec"]).sum(1)
    torch.testing.assert_close(along, torch.zeros(12), atol=1e-6, rtol=0)
    assert all(learner.step(drawn(16, D, seed=s).float(), s) for s in range(10))
    torch.testing.assert_close(learner.weights["dec"].norm(dim=1), torch.ones(12))


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_the_first_reconstruction_has_the_best_scale(kind: str):
    """What the first batch misses is orthogonal to x_hat, so no multiple of it is closer."""
    rows = 7 * drawn(256, D, seed=1).float() + 3
    learner = Learner.begin(iv.SAEPlan("resid_post.0", kind, d_sae=40, k=4), rows, 10, 256)
    weights, x = learner.weights, (rows - learner.origin) * learner.scale
    z = torch.zeros(256, 40)
    for t, row in enumerate(x @ weights["enc"].T):
        for j in row.argsort(descending=True)[:4].tolist():
            z[t, j] = max(float(row[j]), 0.0)
    x_hat = z @ weights["dec"]
    assert abs(float(((x - x_hat) * x_hat).sum())) < 1e-5 * float(x_hat.square().sum())
    torch.testing.assert_close(weights["dec"].norm(dim=1), torch.ones(40))
    ratio = weights["enc"] / weights["dec"]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand(40, D), atol=1e-4, rtol=1e-4)
    assert 0.05 < float(ratio[0, 0]) < 0.95


def test_the_geometric_median_minimises_distances():
    rows = drawn(60, 4, seed=3) ** 3
    median = geometric_median(rows, tolerance=1e-12, most=1000)
    pull = ((rows - median) / (rows - median).norm(dim=1, keepdim=True)).sum(0)
    assert float(pull.norm()) < 1e-4 * len(rows)
    mean = rows.mean(0)
    assert float((rows - median).norm(dim=1).sum()) < float((rows - mean).norm(dim=1).sum())


def planted(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of 3 of 32 unit directions in 16 dimensions, off the origin: (rows, truth, centre)."""
    generator = torch.Generator().manual_seed(99)
    truth = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1)
    centre = 3 * torch.randn(16, generator=generator)
    generator.manual_seed(seed)
    z = torch.zeros(tokens, 32)
    index = torch.rand(tokens, 32, generator=generator).topk(3, dim=1).indices
    z.scatter_(1, index, 5 + 5 * torch.rand(tokens, 3, generator=generator))
    return z @ truth + centre, truth, centre


@pytest.mark.parametrize(
    ("kind", "options", "least"),
    [("topk", {}, 0.95), ("topk", {"lr": None}, 0.95), ("batchtopk", {}, 0.93),
     ("jumprelu", {}, 0.8), ("gated", {}, 0.75), ("standard", {}, 0.85)],
)  # fmt: skip
def test_a_planted_dictionary_is_found(kind: str, options: dict[str, Any], least: float):
    """Mean over true directions of the greatest cosine with a learned one; random ones have .6."""
    rows, truth, _ = planted(20_000, 0)
    plan = iv.SAEPlan("resid_post.0", kind, 48, 3, **{"lr": 3e-3} | options)
    steps = 1500
    learner = Learner.begin(plan, rows, steps, 128)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        at = torch.randint(len(rows), (128,), generator=generator)
        assert learner.step(rows[at], step)
    sae = learner.sae("resid_post.0", "", {})
    mmcs = (truth @ sae.W_dec.T).max(1).values.mean()
    chance = (truth @ iv.sae.random(16, 48, 3).W_dec.T).max(1).values.mean()
    assert float(mmcs) > least > float(chance) + 0.1
    x = planted(2000, 5)[0]
    fvu = (sae.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(fvu) < 0.25
    if kind == "topk":
        assert int((sae.encode(x) > 0).sum(1).max()) <= 3


def test_folding_reads_raw_activations():
    """The SAE of raw rows equals the trained weights on centred and scaled ones."""
    rows = planted(512, 0)[0]
    for kind in ("topk", "jumprelu", "gated", "standard", "batchtopk"):
        learner = Learner.begin(iv.SAEPlan("resid_post.0", kind, 40, 3), rows, 50, 64)
        for step in range(20):
            learner.step(rows[64 * (step % 8) : 64 * (step % 8) + 64], step)
        sae = learner.sae("resid_post.0", "", {})
        got = (sae.reconstruct(rows[:64]) - rows[:64]).square().mean() * learner.scale**2
        inside = learner.objective((rows[:64] - learner.origin) * learner.scale)
        if kind != "batchtopk":  # whose threshold stands in for the batch's own
            assert float(got) == pytest.approx(float(inside.terms["reconstruction"]), rel=1e-3)
        assert float(got) < 1


IDS = [torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
       for length in range(3, 23)]  # fmt: skip
SMALL = {"tokens": 1024, "batch_size": 32, "buffer": 96, "prompts": 4, "progress": False}


def test_the_buffer_is_bounded_and_deals_every_token_once():
    model = interp.load(build("llama"))
    site = interp.Site("resid_post", 1)
    options = {"context": 16, "prompts": 4, "drop_first": True, "max_norm": None}
    chunks = chunks_of(model, IDS, [site], **options)
    read: list[int] = []

    def counted(number: int) -> dict[str, Tensor]:
        rows = chunks.read(number)
        read.append(len(rows["resid_post.1"]))
        return rows

    stream = Shuffled(Chunks(chunks.count, counted), 50, 0)
    total = sum(min(len(one), 16) - 1 for one in IDS)  # without the first token of each
    seen = []
    while len(seen) + 10 <= total:
        seen += stream.draw(10)["resid_post.1"].tolist()
        spare = len(next(iter(stream.spare.values()), ()))
        assert stream.held <= 50 and spare <= max(read)
    everything = torch.cat([chunks.read(i)["resid_post.1"] for i in range(chunks.count)])
    assert len(everything) == total
    distance = torch.cdist(
        torch.tensor(seen), everything, compute_mode="donot_use_mm_for_euclid_dist"
    )
    places = distance.min(1)
    assert float(places.values.max()) < 1e-4
    first = places.indices[: total // 2]
    assert len(set(first.tolist())) == len(first)  # nothing twice before the first epoch ends
    assert places.indices[:20].tolist() != sorted(places.indices[:20].tolist())


def test_massive_and_first_tokens_are_left_out(tmp_path: Path):
    model = interp.load(build("llama"))
    site = interp.Site("embed")
    with torch.no_grad():
        model.module.get_input_embeddings().weight[5] *= 1000
    ids = [[5, 1, 2, 5, 3], [4, 4, 5]]
    options = {"context": None, "prompts": 4}
    rows = chunks_of(model, ids, [site], drop_first=True, max_norm=10.0, **options).read(0)["embed"]
    table = model.module.get_input_embeddings().weight.detach()
    torch.testing.assert_close(rows, table[[1, 2, 3, 4]])
    everything = chunks_of(model, ids, [site], drop_first=False, max_norm=None, **options).read(0)
    torch.testing.assert_close(everything["embed"], table[[5, 1, 2, 5, 3, 4, 4, 5]])
    store = interp.capture_corpus(model, ids, site, tmp_path / "acts", progress=False)
    stored = chunks_of(model, store, [site], drop_first=True, max_norm=10.0, **options).read(0)
    torch.testing.assert_close(stored["embed"], rows)


def test_texts_and_their_stored_activations_give_the_same_sae(tmp_path: Path):
    model = interp.load(build("llama"))
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    store = interp.capture_corpus(
        model, IDS, "mlp_post.1", tmp_path / "acts", batch_size=4, progress=False
    )
    options = SMALL | {"d_sae": 80, "k": 4, "lr": 2e-2}
    a = iv.train_sae(model, IDS, "mlp_post.1", **options)
    b = iv.train_sae(model, store, "mlp_post.1", **options)
    torch.testing.assert_close(a.W_dec, b.W_dec, atol=1e-4, rtol=1e-3)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    losses = [row["reconstruction"] for row in a.meta["history"]]
    assert losses[-1] < 0.9 * losses[0]
    heads = iv.train_sae(model, IDS, "z.1", **options | {"tokens": 64})
    assert heads.d_in == interp.capture(model, IDS[:1], "z.1")["z.1"][0, 0].numel()


def test_several_from_one_forward(monkeypatch: pytest.MonkeyPatch):
    """Each as it comes alone, and the model runs no more often than for one."""
    model = interp.load(build("llama"))
    options = SMALL | {"max_norm": None}
    plans = {
        "a": iv.SAEPlan("resid_post.0", d_sae=64, k=4),
        "b": iv.SAEPlan("resid_post.1", "jumprelu", 48, 4, seed=3),
        "c": iv.SAEPlan("resid_post.0", "batchtopk", 64, 4),
    }
    forwards = []
    capture = interp.capture
    monkeypatch.setattr(interp, "capture", lambda *a, **k: forwards.append(1) or capture(*a, **k))
    together = iv.train_saes(model, IDS, plans, **options)
    count = len(forwards)
    alone = iv.train_saes(model, IDS, {"b": plans["b"]}, **options)
    assert len(forwards) == 2 * count
    torch.testing.assert_close(alone["b"].W_dec, together["b"].W_dec)
    again = iv.train_saes(model, IDS, plans, **options)
    assert all(torch.equal(t, again[n].tensors[k])
               for n, sae in together.items() for k, t in sae.tensors.items())  # fmt: skip


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_an_interrupted_training_continues_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = interp.load(build("llama"))
    options = SMALL | {"d_sae": 64, "k": 4, "kind": kind, "dead_after": 64}
    whole = iv.train_sae(model, IDS, "resid_post.1", **options)
    place = tmp_path / "state"
    step = Learner.step

    def failing(self: Learner, rows: Tensor, number: int) -> bool:
        if number == 13:
            raise KeyboardInterrupt
        return step(self, rows, number)

    monkeypatch.setattr(Learner, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        iv.train_sae(model, IDS, "resid_post.1", checkpoint=place, checkpoint_every=5, **options)
    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(InterpError, match=r"state of another training \(another tokens\)"):
        iv.train_sae(model, IDS, "resid_post.1", checkpoint=place, **options | {"tokens": 2048})
    with pytest.raises(InterpError, match=r"state of another training \(another data\)"):
        iv.train_sae(model, IDS[::-1], "resid_post.1", checkpoint=place, **options)
    resumed = iv.train_sae(
        model, IDS, "resid_post.1", checkpoint=place, checkpoint_every=5, **options
    )
    assert all(torch.equal(t, resumed.tensors[n]) for n, t in whole.tensors.items())
    assert resumed.meta["history"] == whole.meta["history"]
    assert not place.exists()


def test_a_lost_loss_keeps_the_last_good_state():
    model = interp.load(build("llama"))
    options = SMALL | {"d_sae": 64, "k": 4}
    with pytest.warns(UserWarning, match=r"is not finite in step \d+ at lr=.* lower lr"):
        sae = iv.train_sae(model, IDS, "resid_post.1", lr=1e30, **options)
    assert sae.meta["stopped"] and bool(sae.reconstruct(torch.ones(2, sae.d_in)).isfinite().all())
    with torch.no_grad():
        model.module.get_input_embeddings().weight[:] = torch.nan
    for max_norm in (None, 10.0):
        with pytest.raises(InterpError, match=r"activations at resid_post\.1 are not finite"):
            iv.train_sae(model, IDS, "resid_post.1", **options | {"max_norm": max_norm})


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_it_trains_the_same_in_inference_mode_and_under_autocast(kind: str):
    model = interp.load(build("llama"))
    options = SMALL | {"d_sae": 64, "k": 4, "kind": kind}
    plain = iv.train_sae(model, IDS, "resid_post.1", **options)
    with torch.inference_mode():
        inside = iv.train_sae(model, IDS, "resid_post.1", **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = iv.train_sae(model, IDS, "resid_post.1", **options)
    for sae in (inside, cast):
        assert all(torch.equal(t, sae.tensors[n]) for n, t in plain.tensors.items())


def test_the_default_saves_along_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, steps = interp.load(build("llama")), []
    save = Checkpoint.save

    def counted(self: Checkpoint, *arguments: Any, **meta: Any) -> None:
        steps.append(meta["step"])
        save(self, *arguments, **meta)

    monkeypatch.setattr(Checkpoint, "save", counted)
    options = SMALL | {"d_sae": 64, "k": 4}
    iv.train_sae(model, IDS, "resid_post.1", checkpoint=tmp_path / "state", **options)
    every = max(1, options["tokens"] // options["batch_size"] // 10)
    assert len(steps) >= 5 and steps[:2] == [every, 2 * every]


def test_dead_latents_come_back():
    """Latents pushed away from the data are dead without AuxK, and with it they are not."""
    rows = planted(4096, 0)[0]
    dead = []
    for aux in (0.0, 1 / 32):
        plan = iv.SAEPlan("resid_post.0", "topk", 48, 3, lr=3e-3, aux=aux, dead_after=1024)
        learner = Learner.begin(plan, rows, 500, 128)
        learner.weights["b_enc"][:24] -= 3.0 * learner.weights["enc"].norm(dim=1)[:24]
        for step in range(500):
            learner.step(rows[128 * (step % 32) : 128 * (step % 32) + 128], step)
        dead.append(int((learner.quiet >= 1024).sum()))
    assert dead[0] >= 20 and dead[1] <= dead[0] // 2


def test_what_cannot_be_trained_is_said():
    model = interp.load(build("llama"))
    with pytest.raises(InterpError, match="expected a list of texts"):
        iv.train_sae(model, [], "resid_post.1")
    with pytest.raises(InterpError, match="a buffer that holds a batch"):
        iv.train_sae(model, IDS, "resid_post.1", batch_size=64, buffer=32)
    with pytest.raises(InterpError, match="'resid_post'"):
        iv.train_sae(model, IDS, "resid_pots.1")
    with pytest.raises(InterpError, match="layers 0 to"):
        iv.train_sae(model, IDS, "resid_post.40")
    with pytest.raises(InterpError, match="nearest valid names: 'topk'"):
        iv.SAEPlan("resid_post.1", "topkk")
    with pytest.raises(InterpError, match="every text is one token long"):
        iv.train_sae(model, [[1], [2]], "resid_post.1", **SMALL)
    with pytest.raises(InterpError, match="k=32 of d_sae=16: expected 1 to d_sae"):
        iv.train_sae(model, IDS, "resid_post.1", d_sae=16)
    for option in ({"context": 0}, {"prompts": 0}, {"checkpoint_every": 0}):
        (name,) = option
        with pytest.raises(InterpError, match=f"{name}=0.*expected"):
            iv.train_sae(model, IDS, "resid_post.1", **SMALL | option)
    for wrong in ({"sparsity": -1.0}, {"dead_after": -5}, {"k_aux": 0}):
        with pytest.raises(InterpError, match="at least 0, at least 1, at least 1"):
            iv.SAEPlan("resid_post.1", **wrong)
    with pytest.raises(interp.UnsupportedSite, match="no SAE reads pattern"):
        iv.train_sae(model, IDS, "pattern.1")
