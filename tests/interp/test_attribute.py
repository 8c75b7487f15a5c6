"""Attribution against closed forms, finite differences, captum and its own sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import interp
from interp import _attribute_plan
from studies import organisms
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.attribution import integrated_gradients, last_values, target_at
from tests.oracles.layout import part_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def smooth(name: str, dtype: torch.dtype = torch.float64):
    """A model whose target bends gently enough along a path for 16 nodes."""
    model = build(name, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm"):  # transformers' own computes in float32
            norm.forward = lambda x, norm=norm: nn.functional.rms_norm(
                x, x.shape[-1:], norm.weight, norm.variance_epsilon
            )
    return model


@pytest.mark.parametrize("target", ["prob", "logprob", "logit", "logit_difference"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_parts_sum_to_the_change_of_the_target(name, target, ids) -> None:
    """Zero and mean baselines, all layers, 16 nodes; in float64, llama's norms too."""
    sites = ["mlp_post", "z", "resid_pre", "resid_post", "attn_out", "mlp_out"]
    got = interp.attribute(smooth(name), ids, target, sites)
    assert got[got.sites[0]].dtype == torch.float64
    assert float(got.completeness.max()) <= 1e-6
    total = torch.stack([got[site].flatten(1).sum(1) for site in got.sites], dim=1)
    torch.testing.assert_close(
        total, got.output[:, None] - got.baseline_output, rtol=1e-6, atol=1e-9
    )


def test_parts_sum_on_a_trained_model_in_its_own_precision() -> None:
    module, tokenizer = organisms.load("base")
    texts = ["Question: Where does Anna live? Answer:", "Question: Who is it? Answer:", "Once"]
    got = interp.attribute(interp.load(module, tokenizer=tokenizer), texts, site=["mlp_post", "z"])
    assert float(got.completeness.max()) <= 1e-4


def linear_toy() -> nn.Module:
    """A gpt2 without final norm: behind its last neurons the logits are a matrix product."""
    model = smooth("gpt2")
    model.transformer.ln_f = nn.Identity()
    model.tie_weights()
    return model


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_activation", "ablation"])
def test_a_linear_path_has_the_closed_form(method, ids) -> None:
    model = linear_toy()
    handle = interp.Model(model, check=False)
    target = interp.Target("logit_difference", 5, 9)
    got = interp.attribute(handle, ids, target, "mlp_post.-1", method=method, nodes=1)
    neurons = interp.capture(handle, ids, "mlp_post.-1", positions="last")["mlp_post.2"][:, 0]
    direction = model.lm_head.weight[5] - model.lm_head.weight[9]
    weights = model.transformer.h[-1].mlp.c_proj.weight @ direction
    torch.testing.assert_close(got["mlp_post.2"], neurons * weights.detach())
    assert float(got.completeness.max()) < 1e-12


def test_gradient_x_activation_is_the_finite_difference(ids) -> None:
    model, step = build("gpt2", dtype=torch.float64), 1e-5
    got = interp.attribute(model, ids[:1], "logprob", "z.1", method="gradient_x_activation")
    value = last_values(model, ids[0].tolist(), ["z.1"])["z.1"]
    token = int(plain.logits_of(model, ids[:1])[0, -1].argmax())

    def at(moved: Tensor) -> float:
        with torch.no_grad():
            return float(
                target_at(model, ids[0].tolist(), "z.1", moved, lambda x: x.log_softmax(-1)[token])
            )

    for head, dim in [(0, 0), (1, 5), (3, 7)]:
        move = torch.zeros_like(value)
        move[head, dim] = step
        slope = (at(value + move) - at(value - move)) / (2 * step)
        expected = pytest.approx(slope * float(value[head, dim]), rel=1e-6, abs=1e-10)
        assert float(got["z.1"][0, head, dim]) == expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_equals_captum_along_the_same_path(name, ids) -> None:
    from captum.attr import IntegratedGradients

    model = build(name)
    down = part_of(name, model, 1, "down")
    answer = 17
    neurons = last_values(model, ids[0].tolist(), ["mlp_post.1"])["mlp_post.1"]
    project = down.forward

    def probability(values: Tensor) -> Tensor:
        """The patched forward: a batch of the prompt, each with its own last neurons."""
        down.forward = lambda x: project(torch.cat([x[:, :-1], values[:, None]], dim=1))
        try:
            logits = model(ids[:1].expand(len(values), -1), use_cache=False).logits[:, -1]
        finally:
            del down.forward
        return logits.softmax(-1)[:, answer]

    theirs = IntegratedGradients(probability).attribute(
        neurons[None], torch.zeros_like(neurons)[None], n_steps=16, method="gausslegendre"
    )
    ours = interp.attribute(model, ids[:1], interp.Target("prob", answer), "mlp_post.1")
    torch.testing.assert_close(ours["mlp_post.1"], theirs.float(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("site", ["mlp_post.1", "z.0", "resid_mid.1"])
def test_ablation_is_a_forward_with_the_unit_at_its_baseline(site, ids) -> None:
    model = build("llama")
    prompt = ids[0].tolist()
    reference = interp.capture(model, ids, site, positions="last")[site][:, 0].mean(0)
    value = last_values(model, prompt, [site])[site]
    token = int(plain.logits_of(model, ids[:1])[0, -1].argmax())
    got = interp.attribute(model, ids, "logprob", site, method="ablation", baseline="mean")
    flat, wanted = value.flatten(), []

    def logprob(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[token]

    with torch.no_grad():
        whole = target_at(model, prompt, site, value, logprob)
        for unit in range(len(flat)):
            changed = flat.clone()
            changed[unit] = reference.flatten()[unit]
            wanted.append(whole - target_at(model, prompt, site, changed.view_as(value), logprob))
    expected = torch.stack(wanted).view_as(value)
    torch.testing.assert_close(got[site][0], expected, rtol=1e-4, atol=5e-6)


def test_whole_heads_are_ablated_and_parts_are_summed(ids) -> None:
    model = build("gpt2")
    ablated = interp.attribute(model, ids, "logit", "z", method="ablation", by="head")
    parts = interp.attribute(model, ids, "logit", "z", check=False)
    summed = interp.attribute(model, ids, "logit", "z", by="head", check=False)
    for site in ablated.sites:
        assert ablated[site].shape == (2, 4)
        torch.testing.assert_close(summed[site], parts[site].sum(-1))
        value = last_values(model, ids[1].tolist(), [str(site)])[str(site)]
        value[2] = 0
        token = int(plain.logits_of(model, ids[1:])[0, -1].argmax())
        with torch.no_grad():
            without = target_at(model, ids[1].tolist(), str(site), value, lambda x, t=token: x[t])
        expected = ablated.output[1] - without
        torch.testing.assert_close(ablated[site][1, 2], expected, rtol=1e-4, atol=1e-5)


def test_expert_neurons_are_what_their_weights_write(ids) -> None:
    """Behind the last layer nothing else depends on them, so cutting a weight is the same."""
    model = build("mixtral")
    got = interp.attribute(model, ids, "logit", "mlp_post.-1", method="ablation")
    tokens = plain.logits_of(model, ids)[:, -1].argmax(-1)
    experts = model.model.layers[-1].mlp.experts
    for row, slot, neuron in [(0, 0, 3), (0, 1, 20), (1, 0, 11)]:
        expert = int(got.expert_ids[interp.Site("mlp_post", 2)][row, slot])
        column = experts.down_proj.data[expert, :, neuron].clone()
        experts.down_proj.data[expert, :, neuron] = 0
        without = plain.logits_of(model, ids)[row, -1, tokens[row]]
        experts.down_proj.data[expert, :, neuron] = column
        torch.testing.assert_close(
            got["mlp_post.2"][row, slot, neuron], got.output[row] - without, rtol=1e-4, atol=1e-5
        )


FUNCTIONS = {
    "prob": lambda logits: logits.softmax(-1)[:, 13],
    "logprob": lambda logits: logits.log_softmax(-1)[:, 13],
    "logit": lambda logits: logits[:, 13],
    "logit_difference": lambda logits: logits[:, 13] - logits[:, 21],
}


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "opt-projected", "phi"])
def test_targets_are_the_functions_they_are_named_after(name, ids) -> None:
    """Softcaps, logit scales, a projected or biased head: also where few logits are computed."""
    model = build(name)
    options = {"site": "mlp_post.1", "nodes": 2, "check": False}
    for kind, function in FUNCTIONS.items():
        target = interp.Target(kind, 13, 21 if kind == "logit_difference" else None)
        named = interp.attribute(model, ids, target, **options)
        by_hand = interp.attribute(model, ids, function, **options)
        torch.testing.assert_close(named.output, by_hand.output, **TOLERANCE)
        torch.testing.assert_close(named["mlp_post.1"], by_hand["mlp_post.1"], rtol=1e-4, atol=1e-5)


def test_by_default_the_prediction_is_attributed(ids) -> None:
    model = build("llama")
    logits = plain.logits_of(model, ids)[:, -1]
    first, second = logits.topk(2).indices.T
    assert interp.attribute(model, ids, site="z.1", check=False).answers == [
        str([int(token)]) for token in first
    ]
    for kind, versus in (("prob", None), ("logit_difference", second.tolist())):
        named = interp.Target(kind, first.tolist(), versus)
        own = interp.attribute(model, ids, kind, "z.1", check=False)
        assert torch.equal(
            own["z.1"], interp.attribute(model, ids, named, "z.1", check=False)["z.1"]
        )


PROMPTS = [[5, 6, 7, 8, 9, 10], [9], [11, 12, 13], [30], [8, 7]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "qwen3_moe"])
def test_neither_padding_nor_company_changes_a_prompt(name) -> None:
    """Prompts of one token, which have no prefix, among others; either side; one at a time."""
    model = interp.load(build(name))
    baseline = {"baseline": "mean", "reference": [[3, 4, 5], [6, 7]]}
    if name == "qwen3_moe":  # two prompts do not reach all experts
        baseline = {}
    options = {"site": ["z.1", "mlp_post.2"], "nodes": 4, "check": False, **baseline}
    left, right = (
        interp.attribute(model, model.batch(PROMPTS, padding=side), **options)
        for side in ("left", "right")
    )
    assert left.answers == right.answers
    for row, prompt in enumerate(PROMPTS):
        alone = interp.attribute(model, [prompt], **options)
        assert alone.answers == [right.answers[row]]
        torch.testing.assert_close(alone.output[0], right.output[row], rtol=1e-3, atol=1e-5)
        for site in right.sites:
            torch.testing.assert_close(left[site], right[site], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(alone[site][0], right[site][row], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "ablation"])
def test_little_memory_takes_smaller_steps_to_the_same_result(method, monkeypatch) -> None:
    model = build("llama")
    options = {"site": ["mlp_post", "z"], "method": method, "check": False}
    at_once = interp.attribute(model, PROMPTS, **options)
    monkeypatch.setattr(_attribute_plan, "_NUMBERS", 1)
    in_steps = interp.attribute(model, PROMPTS, **options)
    for site in at_once.sites:
        torch.testing.assert_close(in_steps[site], at_once[site], rtol=1e-3, atol=1e-6)


def test_the_mean_is_taken_over_last_positions_of_the_reference(ids) -> None:
    model = build("llama")
    others = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    mean = interp.capture(model, others, "resid_mid.1", positions="last")["resid_mid.1"][:, 0].mean(
        0
    )
    options = {"site": "resid_mid.1", "check": False}
    given = interp.attribute(model, ids, baseline=mean, **options)
    by_name = interp.attribute(model, ids, reference=others, **options)
    assert by_name.meta["baseline"] == {"resid_mid.1": "mean"}
    torch.testing.assert_close(by_name["resid_mid.1"], given["resid_mid.1"], **TOLERANCE)
    by_pattern = interp.attribute(model, ids, baseline={"resid_mid": mean}, **options)
    assert torch.equal(by_pattern["resid_mid.1"], given["resid_mid.1"])


def test_experts_have_their_own_means(ids) -> None:
    model, site = build("mixtral"), interp.Site("mlp_post", 1)
    acts = interp.capture(model, ids, site, positions="last")
    neurons, chosen = acts[site][:, 0].flatten(0, 1), acts.expert_ids[site].flatten()
    means = torch.zeros(4, neurons.shape[-1])
    for expert in chosen.unique().tolist():
        means[expert] = neurons[chosen == expert].mean(0)
    by_name = interp.attribute(model, ids, site=site, baseline="mean", check=False)
    given = interp.attribute(model, ids, site=site, baseline=means, check=False)
    torch.testing.assert_close(by_name[site], given[site], **TOLERANCE)


def test_edits_that_are_applied_count(ids) -> None:
    model, prompt = build("llama"), ids[0].tolist()
    unedited = interp.attribute(model, ids, "logprob", "mlp_post.1", check=False)
    with interp.hooked(model, {"resid_post.1": lambda x, site: x + 0.5}):
        got = interp.attribute(model, ids, "logprob", "mlp_post.1", check=False, nodes=3)
        value = last_values(model, prompt, ["mlp_post.1"])["mlp_post.1"]
        token, ends = int(got.answers[0].strip("[]")), (torch.zeros_like(value), value)
        expected = integrated_gradients(
            model, prompt, "mlp_post.1", ends, lambda x: x.log_softmax(-1)[token], nodes=3
        )
    torch.testing.assert_close(got["mlp_post.1"][0], expected, rtol=1e-3, atol=1e-5)
    assert not torch.equal(got.output, unedited.output)


def test_an_edit_of_a_counted_position_is_refused(ids) -> None:
    model = build("llama")

    def shift_last(tensor: Tensor, _site: interp.Site) -> Tensor:
        return torch.cat([tensor[:, :-1], tensor[:, -1:] + 0.5], dim=1)

    with (
        interp.hooked(model, {"resid_post.0": shift_last}),
        pytest.raises(interp.InterpError, match="edits at counted positions"),
    ):
        interp.attribute(model, ids)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_attributed_as_part_of_the_model(ids) -> None:
    """Of the whole wrapper; a head that is adapted too gives all logits."""
    peft = pytest.importorskip("peft")

    def wrapped():
        parts = ["o_proj", "down_proj", "lm_head"]
        torch.manual_seed(4)
        config = peft.LoraConfig(r=3, target_modules=parts, init_lora_weights=False)
        return peft.get_peft_model(build("llama"), config).eval()

    model, options = wrapped(), {"site": ["mlp_post.1", "z.0"], "check": False}
    before = plain.snapshot(model)
    got = interp.attribute(model, ids, "logit_difference", **options)
    merged = interp.attribute(wrapped().merge_and_unload(), ids, "logit_difference", **options)
    for site in got.sites:
        torch.testing.assert_close(got[site], merged[site], rtol=1e-3, atol=1e-4)
    plain.assert_unchanged(before, model)
