import pytest
import torch

import interp
from interp import InterpError, LogitAttribution
from tests.architectures import NAMES, VARIANTS, build

PROMPTS = [[5, 6, 7, 8], [9, 3]]
ANSWERS = [[4, 5], [6, [7, 8]]]


@pytest.mark.parametrize("by", ["layer", "head"])
@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_parts_sum_to_the_models_own_logit(name: str, by: str) -> None:
    module = build(name)
    got = interp.logit_attribution(interp.Model(module), PROMPTS, ANSWERS, by=by)  # type: ignore[arg-type]
    torch.testing.assert_close(got.parts.sum(-1), got.logit, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        for row, (ids, tokens) in enumerate(zip(PROMPTS, [[4, 5], [6, 7]], strict=True)):
            logits = module(torch.tensor([ids])).logits[0, -1]
            cap = getattr(module.config, "final_logit_softcapping", None)
            if cap is not None:
                logits = cap * torch.atanh(logits / cap)
            torch.testing.assert_close(got.logit[row], logits[tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere", "granite"])
def test_heads_are_their_output_through_the_frozen_norm(name: str) -> None:
    module = build(name)
    model = interp.Model(module)
    got = interp.logit_attribution(model, PROMPTS[:1], [4], by="head")
    acts = interp.capture(model, PROMPTS[:1], ["head_out.1", "resid_post.-1"], positions="last")
    stream = acts["resid_post.2"][0, 0].double()
    gain = model.anatomy.final_norm.weight.detach().double()
    centred = name in ("gpt2", "cohere")
    middle = stream - stream.mean() if centred else stream
    sigma = (middle.square().mean() + 1e-5).sqrt()
    scale = {"cohere": 0.25, "granite": 1 / 2.0}.get(name, 1.0)
    residual = 0.4 if name == "granite" else 1.0
    direction = model.anatomy.head.weight.detach()[4].double()
    for head in range(4):
        out = residual * acts["head_out.1"][0, 0, head].double()
        out = out - out.mean() if centred else out
        expected = scale * float(direction @ (gain * out / sigma))
        part = float(got.parts[0, 0, got.components.index(f"head_out.1.{head}")])
        assert part == pytest.approx(expected, abs=2e-4, rel=1e-3)


def test_heads_and_their_bias_add_up_to_the_layer() -> None:
    model = interp.Model(build("gemma2"))  # a norm stands between the heads and the stream
    layer = interp.logit_attribution(model, PROMPTS, ANSWERS, by="layer").table()
    head = interp.logit_attribution(model, PROMPTS, ANSWERS, by="head").table()
    whole = layer[layer["kind"] == "attn_out"].groupby(["prompt", "answer", "layer"])["logit"].sum()
    parts = head[head["kind"].isin(["head_out", "attn_bias"])]
    summed = parts.groupby(["prompt", "answer", "layer"])["logit"].sum()
    torch.testing.assert_close(
        torch.tensor(summed.to_numpy()), torch.tensor(whole.to_numpy()), atol=1e-5, rtol=1e-4
    )


def test_left_and_right_padding_give_the_same_parts() -> None:
    model = interp.Model(build("gpt2"))
    left, right = (
        interp.logit_attribution(model, model.batch(PROMPTS, padding=side), ANSWERS).parts
        for side in ("left", "right")
    )
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_record_round_trip(tmp_path: object) -> None:
    got = interp.logit_attribution(interp.Model(build("llama")), PROMPTS, ANSWERS, by="head")
    loaded = LogitAttribution.load(got.save(f"{tmp_path}/made"))
    assert torch.equal(loaded.parts, got.parts)
    assert loaded.table().equals(got.table())


def test_an_unknown_norm_is_refused() -> None:
    module = build("llama")
    module.model.norm.forward = lambda x: torch.tanh(x)
    with pytest.raises(InterpError, match="neither LayerNorm nor RMSNorm"):
        interp.logit_attribution(interp.Model(module, check=False), PROMPTS, ANSWERS)
