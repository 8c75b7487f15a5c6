"""ROME against its closed form, plain hooks and loops by hand; the covariance and its cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interp
import interventions as iv
from interp import Edit, InterpError
from interventions import _key_covariance, _rome, _value
from interventions._projection import projection
from interventions._rewrite import requests_of, sample_prefixes
from tests.architectures import NAMES, VARIANTS, build
from tests.interventions.knowledge import FACT, handle, state, texts, words

MOE = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "qwen3_next")
PLAIN = iv.ValueSearch(steps=3, decay=0.0, drift_prompt=None, stop_below=-1.0)


def spd(size: int, seed: int = 0) -> Tensor:
    x = torch.randn(size, 3 * size, generator=torch.Generator().manual_seed(seed)).double()
    return x @ x.T / (3 * size)


def association(model: interp.Model, layer: int) -> tuple[_rome.Association, Tensor]:
    """A random key and value of a layer, and its weight as [out in]."""
    weight = model.module.get_parameter(f"model.layers.{layer}.mlp.down_proj.weight").detach()
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(n, generator=generator).double() for n in weight.shape[::-1])
    found = _value.Value(weight @ key, value - weight @ key, (0.0,))
    return _rome.Association(key, weight @ key, value, found), weight


# The closed form.


def test_the_key_maps_to_the_value_and_c_orthogonal_keys_stay():
    model = handle()
    one, weight = association(model, 1)
    moment = spd(48)
    delta = one.delta(projection(model, 1), _key_covariance.Solver(moment, 0, 1))
    others = torch.randn(48, 5, generator=torch.Generator().manual_seed(2)).double()
    direction = torch.linalg.solve(moment, one.key)
    others -= torch.outer(one.key, direction @ others) / (one.key @ direction)
    before = weight.clone()
    with Edit([delta]).applied(model):
        torch.testing.assert_close(weight @ one.key, one.value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(weight @ others, before @ others, rtol=1e-10, atol=1e-10)
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_without_a_covariance_orthogonal_keys_stay():
    model = handle()
    one, weight = association(model, 1)
    identity = _key_covariance.moment_for(model, None, 1, 48)
    delta = one.delta(projection(model, 1), _key_covariance.Solver(identity, 0, 1))
    other = torch.linalg.svd(one.key[None]).Vh[7]
    before = weight @ other
    with Edit([delta]).applied(model):
        torch.testing.assert_close(weight @ other, before, rtol=1e-10, atol=1e-10)


def test_it_is_the_least_change_by_the_conditions_of_karush_kuhn_and_tucker():
    model = handle()
    one, weight = association(model, 2)
    moment = spd(48, seed=5)
    delta = one.delta(projection(model, 2), _key_covariance.Solver(moment, 0, 2))
    key = one.key.numpy()
    system = np.block([[2 * moment.numpy(), key[:, None]], [key[None], np.zeros((1, 1))]])
    lacking = (one.value - weight @ one.key).numpy()
    right = np.vstack([np.zeros((48, len(lacking))), lacking[None]])
    want = np.linalg.solve(system, right)[:48].T
    got = (delta.change.left @ delta.change.right).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


# The whole method.


def by_hand(model: interp.Model, edit: Edit, prompt: str, answer: list[int], at: int) -> float:
    """-mean log P(answer) with the edit's value added at one token by a plain hook."""
    delta = edit.deltas[0]
    module = model.module.get_submodule(delta.parameter.removesuffix(".weight"))
    transposed = type(module).__name__ == "Conv1D"
    left = delta.change.right[0] if transposed else delta.change.left[:, 0]
    ids = [*model.batch(prompt).input_ids[0].tolist(), *answer[:-1]]

    def add(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        new = out.clone()
        new.view(-1, new.shape[-1])[at] += left.to(out)
        return new

    hook = module.register_forward_hook(add)
    with torch.no_grad():
        logits = model.module(torch.tensor([ids]), use_cache=False).logits[0]
    hook.remove()
    logprob = logits.double().log_softmax(-1)
    start = len(ids) - len(answer)
    return -sum(float(logprob[start + i, token]) for i, token in enumerate(answer)) / len(answer)


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_every_architecture_with_a_plain_down_projection(name: str):
    """Key by plain hooks, value by the loss it has when added by hand, model as it was."""
    model = handle(name, torch.float32)
    layer = {"deepseek_v3": 0}.get(name, 1)
    if name in ("mixtral", "olmoe", "gpt_oss", "qwen3_next"):
        with pytest.raises(InterpError, match=r"layer 1 .* mixture of experts: .* choose a dense"):
            iv.rome(model, FACT, layer, contexts=[], search=PLAIN)
        return
    before = state(model)
    edit = iv.rome(model, FACT, layer, contexts=[], search=PLAIN)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    (delta,) = edit
    at = model.batch(FACT.text).input_ids[0].tolist().index(4)  # " Lee"
    seen: list[Tensor] = []
    module = model.module.get_submodule(delta.parameter.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model.module(model.batch(FACT.text).input_ids, use_cache=False)
    hook.remove()
    key = seen[0].reshape(-1, seen[0].shape[-1])[at].double()
    inner = delta.change.left[:, 0] if name == "gpt2" else delta.change.right[0]
    torch.testing.assert_close(inner @ key, torch.ones((), dtype=torch.float64), rtol=1e-4, atol=0)
    loss = edit.notes["rome"]["loss"]
    assert loss[-1] < loss[0]
    answer = [10, 11]  # " New York"
    assert by_hand(model, edit, FACT.text, answer, at) == pytest.approx(loss[-1], rel=2e-3)
    with edit.applied(model):
        changed = {n for n, p in model.module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {delta.parameter}
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


def test_keys_and_values_are_means_over_the_contexts():
    model = handle()
    contexts = [" w30 w31", " w40 Ann Lee w41"]
    edit = iv.rome(model, FACT, 1, contexts=contexts, search=PLAIN)
    keys, losses = [], []
    for context in ("", *contexts):
        text = context + FACT.text
        at = max(i for i, w in enumerate(model.batch(text).input_ids[0].tolist()) if w == 4)
        acts = interp.capture(model, text, "mlp_post.1", positions=at)
        keys.append(acts["mlp_post.1"][0, 0])
        losses.append(by_hand(model, edit, text, [10, 11], at))
    key = torch.stack(keys).mean(0)
    right = edit.deltas[0].change.right[0]
    torch.testing.assert_close(right, key / (key @ key), rtol=1e-6, atol=1e-9)  # C is the identity
    assert np.mean(losses) == pytest.approx(edit.notes["rome"]["loss"][-1], rel=1e-5)


def test_the_loss_holds_the_kl_of_the_code_and_the_length():
    model = handle()
    search = iv.ValueSearch(
        steps=4, lr=2.0, drift_prompt=" {} is", drift=50.0, stop_below=-1.0, clamp=20.0
    )
    edit = iv.rome(model, FACT, 1, contexts=[], search=search)
    delta, at = edit.deltas[0].change.left[:, 0], 4
    acts = interp.capture(model, FACT.text, "mlp_out.1", positions=at)
    start = acts["mlp_out.1"][0, 0]
    ids = model.batch(" Ann Lee is").input_ids

    def next_token(added: Tensor) -> Tensor:
        def add(out: Tensor, _site: interp.Site) -> Tensor:
            out[:, 1] += added
            return out

        with interp.hooked(model, {"mlp_out.1": add}), torch.no_grad():
            return model.module(ids, use_cache=False).logits[0, 1].double().log_softmax(-1)

    now, before = next_token(delta), next_token(0 * delta)
    kl = float((now.exp() * (now - before)).sum())
    want = by_hand(model, edit, FACT.text, [10, 11], at) + 50.0 * kl
    want += 0.5 * float(delta.norm() / start.norm() ** 2)
    assert 50 * kl > 1e-3
    assert edit.notes["rome"]["loss"][-1] == pytest.approx(want, rel=1e-5)


def test_values_never_leave_the_clamp():
    model = handle()
    search = iv.ValueSearch(steps=4, lr=50.0, clamp=0.3, stop_below=-1.0, drift_prompt=None)
    edit = iv.rome(model, FACT, 1, contexts=[], search=search)
    assert edit.notes["rome"]["value_norm"] == pytest.approx(0.3, rel=1e-6)


def test_facts_searched_together_are_searched_apart():
    """Also where one is done long before the other."""
    model = handle()
    other = iv.Rewrite(" Bo lives in", "Bo", " Oslo")
    free = iv.ValueSearch(steps=8, drift_prompt=" {} is", stop_below=-1.0)
    curves = [
        iv.rome(model, fact, 1, contexts=[], search=free).notes["rome"]["loss"]
        for fact in (FACT, other)
    ]
    between = sum(curve[3] for curve in curves) / 2  # one fact is below it at step 3, one above
    search = iv.ValueSearch(steps=8, drift_prompt=" {} is", stop_below=between)
    together = iv.knowledge.rome_each(model, [FACT, other], 1, contexts=[], search=search)
    lengths = [len(edit.notes["rome"]["loss"]) for edit in together]
    assert min(lengths) < max(lengths)
    for fact, edit in zip([FACT, other], together, strict=True):
        alone = iv.rome(model, fact, 1, contexts=[], search=search)
        for name in ("left", "right"):
            one, two = (getattr(e.deltas[0].change, name) for e in (alone, edit))
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_an_edit_saves_loads_and_bakes(tmp_path: Path):
    for name in ("llama", "gpt2"):
        model = handle(name, torch.float32)
        edit = iv.rome(model, FACT, 1, contexts=[], search=PLAIN)
        edit.save(tmp_path / name)
        again = Edit.load(tmp_path / name)
        assert again == edit and again.notes == edit.notes
        ids = model.batch(FACT.text).input_ids
        with torch.no_grad(), again.applied(model):
            want = model.module(ids).logits
        got = interp.bake(model, edit)(ids).logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        with pytest.raises(InterpError, match="weights differ"), edit.applied(handle(name, seed=3)):
            pass


def test_the_last_token_can_be_the_key():
    model = handle()
    edit = iv.rome(model, FACT, 2, contexts=[], search=PLAIN, position="last")
    acts = interp.capture(model, FACT.text, "mlp_post.2", positions="last")
    product = edit.deltas[0].change.right[0] @ acts["mlp_post.2"][0, 0]
    assert float(product) == pytest.approx(1.0)
    with pytest.raises(InterpError, match=r"layer 2 is the last: .* position='last'"):
        iv.rome(model, FACT, 2, contexts=[], search=PLAIN)


def test_drawn_contexts_are_the_same_for_the_same_seed_and_stand_before_the_prompt():
    model = handle()
    sizes = ((2, 3), (1, 5))
    one, two = (sample_prefixes(model, sizes, seed) for seed in (0, 0))
    assert one == two != sample_prefixes(model, sizes, 1)
    assert [len(ids) for ids in one] == [3, 3, 5]
    assert not {0, 1, 2} & {token for ids in one for token in ids}
    (request,) = requests_of(model, [FACT], "subject_last", None, sizes, 0)
    bare = request.rows[0]
    assert [row.ids[-len(bare.ids) :] for row in request.rows] == [bare.ids] * 4
    assert [row.ids[row.at] for row in request.rows] == [4] * 4
    # A tokenizer that begins each text with BOS: contexts come after it, once.
    from studies import organisms

    module, tokenizer = organisms.load("base")
    real = interp.load(module, tokenizer=tokenizer)
    fact = iv.Rewrite("Question: Where does {} live? Answer:", "Mia Stone", " Port Alder")
    (request,) = requests_of(real, [fact], "subject_last", None, ((1, 4),), 0)
    begin = tokenizer.bos_token_id
    assert all(row.ids[0] == begin and begin not in row.ids[1:] for row in request.rows)
    assert tokenizer.decode(request.rows[1].ids[request.rows[1].at]) == " Stone"
    assert len(request.answer) == 2


# What goes wrong.


def test_prompts_and_subjects_that_do_not_fit():
    model = handle()
    for prompt, subject, message in (
        (" Bo lives in", "Ann", r"neither the placeholder \{\} nor the subject 'Ann'; put \{\}"),
        (" {} and {} live in", "Ann", "has 2 placeholders; expected one"),
        (" {} lives in", " ", "names no subject"),
    ):
        with pytest.raises(InterpError, match=message):
            iv.rome(model, iv.Rewrite(prompt, subject, " Rome"), 1)
    with pytest.raises(InterpError, match="two rewrites have the prompt ' the home of Ann Lee"):
        iv.knowledge.rome_each(model, [FACT, FACT], 1)
    with pytest.raises(InterpError, match="no facts to rewrite"):
        iv.knowledge.rome_each(model, [], 1)
    with pytest.raises(InterpError, match="position='first': expected"):
        iv.rome(model, FACT, 1, position="first")
    with pytest.raises(InterpError, match="no tokenizer; pass one"):
        iv.rome(interp.load(build("llama")), FACT, 1)
    with pytest.raises(InterpError, match="layer 7: this model has layers 0 to 2"):
        iv.rome(model, FACT, 7)


def test_an_answer_that_the_model_gives_already():
    model = handle()
    with torch.no_grad():
        best = int(model.module(model.batch(FACT.text).input_ids).logits[0, -1].argmax())
    fact = iv.Rewrite(FACT.prompt, FACT.subject, best)
    with pytest.raises(InterpError, match=r"gives this answer already: .* nothing to rewrite"):
        iv.rome(model, fact, 1)


def test_settings_that_mean_nothing():
    for wrong, message in (
        ({"steps": 0}, "steps=0: expected more than 0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"drift_prompt": "is a"}, "expected one {} where the subject stands"),
    ):
        with pytest.raises(InterpError, match=message):
            iv.ValueSearch(**wrong)


def test_nan_names_the_fact_and_the_step():
    model = handle()
    with torch.no_grad():
        model.module.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    quiet = interp.load(model.module, tokenizer=words(), check=False)
    with pytest.raises(InterpError, match=r"loss of ' the home .*' New York' is nan at step 0"):
        iv.rome(quiet, FACT, 1, contexts=[], search=PLAIN)


# The covariance.


def moment_by_hand(model: interp.Model, layer: int, some: list[str]) -> Tensor:
    seen: list[Tensor] = []
    module = model.module.model.layers[layer].mlp.down_proj
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    with torch.no_grad():
        for text in some:
            model.module(model.batch(text).input_ids)
    hook.remove()
    keys = torch.cat(seen).double()
    return sum(torch.outer(k, k) for k in keys) / len(keys)


def test_the_covariance_is_the_mean_outer_product_whatever_the_batch():
    model = handle(dtype=torch.float32)
    some = texts(9)
    one = iv.key_covariance(model, some, [0, 2], batch_size=4)
    alone = iv.key_covariance(model, some, 2, batch_size=1)
    assert one.tokens[2] == sum(len(t.split()) for t in some)
    for layer in (0, 2):
        want = moment_by_hand(model, layer, some)
        torch.testing.assert_close(one.moment[layer], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.moment[2], alone.moment[2], rtol=1e-5, atol=1e-6)


def test_the_cache_spares_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, some = handle(), texts(10)
    want = iv.key_covariance(model, some, [0, 1], batch_size=3)
    capture, calls = interp.capture, []

    def counted(*args, **kwargs):
        calls.append((args[1], args[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return capture(*args, **kwargs)

    monkeypatch.setattr(interp, "capture", counted)
    with pytest.raises(KeyboardInterrupt):
        iv.key_covariance(model, some, 0, batch_size=3, cache=tmp_path, save_every=1)
    # With another batch size, and another layer that has to catch up.
    got = iv.key_covariance(model, some, [0, 1], batch_size=4, cache=tmp_path, save_every=1)
    read = [text for chunk, sites in calls[3:] if "mlp_post.0" in sites for text in chunk]
    assert read == some[6:]
    for layer in (0, 1):
        torch.testing.assert_close(got.moment[layer], want.moment[layer], rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(interp, "capture", lambda *_a, **_k: pytest.fail("measured again"))
    again = iv.key_covariance(model, some, [0, 1], cache=tmp_path)
    assert torch.equal(again.moment[1], got.moment[1]) and again.tokens == got.tokens
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        iv.key_covariance(model, some[:-1], 1, cache=tmp_path)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        iv.key_covariance(handle(seed=2), some, 1, cache=tmp_path)


def test_a_covariance_saves_and_loads(tmp_path: Path):
    one = iv.key_covariance(handle(), texts(), [1])
    two = iv.KeyCovariance.load(one.save(tmp_path / "c"))
    assert torch.equal(one.moment[1], two.moment[1])
    assert one.tokens == two.tokens and one.identity.weights == two.identity.weights
    with pytest.raises(InterpError, match="holds a 'edit', not a 'key_covariance'"):
        Edit([]).save(tmp_path / "e")
        iv.KeyCovariance.load(tmp_path / "e")


def test_covariances_that_do_not_fit():
    model = handle()
    covariance = iv.key_covariance(model, texts(), [1])
    with pytest.raises(InterpError, match=r"of layers 1 and not of 0; measure it with"):
        iv.rome(model, FACT, 0, covariance, contexts=[], search=PLAIN)
    with pytest.raises(InterpError, match="whose weights are not this model's; measure it anew"):
        iv.rome(handle(seed=4), FACT, 1, covariance, contexts=[], search=PLAIN)
    wide = handle(intermediate_size=40)
    with pytest.raises(InterpError, match=r"of shape \[48, 48\], and the keys .* have 40 neurons"):
        iv.rome(wide, FACT, 1, covariance, contexts=[], search=PLAIN)
    other = handle(seed=4)
    iv.rome(other, FACT, 1, covariance.moment[1], contexts=[], search=PLAIN)
    # The model with an edit on it is still the model that was measured.
    with iv.scale_heads({(0, 0): 0.5}).applied(model):
        iv.rome(model, FACT, 1, covariance, contexts=[], search=PLAIN)
    few = iv.key_covariance(model, texts(1), [1])
    with pytest.raises(InterpError, match=r"has rank \d+ over 48 neurons, .* damping=0.01"):
        iv.rome(model, FACT, 1, few, contexts=[], search=PLAIN)
    iv.rome(model, FACT, 1, few, contexts=[], search=PLAIN, damping=0.01)
    with pytest.raises(InterpError, match="texts is empty or one text"):
        iv.key_covariance(model, [], 1)
    with pytest.raises(InterpError, match="mixture of experts"):
        iv.key_covariance(handle("mixtral", torch.float32), texts(), 1)


def test_settings_reach_the_edit_on_a_model_in_inference_mode():
    model = handle()
    with torch.inference_mode():
        edit = iv.rome(model, FACT, 1, contexts=[], search=PLAIN)
    assert edit == iv.rome(model, FACT, 1, contexts=[], search=PLAIN)
    assert all(p.requires_grad for p in model.module.parameters())
