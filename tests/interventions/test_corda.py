"""Context-oriented adapters: the start by its definition, the training by peft's own path."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import interp
import interventions as iv
from interp import InterpError
from interventions._corda import Adapters
from interventions._examples import batches, completion_loss, encode
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

pytest.importorskip("peft.tuners.lora.corda")

BLOCKS = ("attn", "mlp")
PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]
TEXTS = ["a bc dd", "cab", "dd a cb b", "b", "abcd abcd", "d c b a", "bb aa", "cc d ab"]
peft_is_old = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def model_of(name: str) -> interp.Model:
    tokenizer = byte_level()
    return interp.load(build(name, vocab_size=max(97, len(tokenizer))), tokenizer=tokenizer)


def covariance(model: interp.Model, owner: nn.Module) -> Tensor:
    """Mean of X^T X, X a text's inputs divided by their largest, damped; in float64."""
    seen: list[Tensor] = []
    hook = owner.register_forward_hook(lambda _m, x, _y: seen.append(x[0].detach().double()))
    for text in TEXTS:
        ids = model.batch([text]).input_ids
        if ids.shape[1] > 1:
            with torch.no_grad():
                model.module(ids)
    hook.remove()
    scaled = [x.reshape(-1, x.shape[-1]) / x.max() for x in seen]
    c = torch.stack([x.T @ x for x in scaled]).mean(0)
    return c + 0.01 * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])
def test_it_starts_from_the_directions_that_texts_use_least_or_most(name: str, keep: bool) -> None:
    """M = B0 A0 C is a part of W C's decomposition: its smallest or its largest three."""
    model = model_of(name)
    found = Adapters.begin(model, TEXTS, 3, keep, None, BLOCKS)
    assert found.at.keys() == {
        f"{n}.weight"
        for n, module in model.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and n != "lm_head"
    }
    for key, parameter in found.at.items():
        w = parameter.tensor.detach().double()
        w = w.T if isinstance(parameter.owner, Conv1D) else w
        c = covariance(model, parameter.owner)
        a, b = (found.start[f"{key} {side}"].double() for side in "AB")
        part, whole = b @ a @ c, w @ c
        sizes = torch.linalg.svdvals(whole)
        scale = float(sizes[0])
        got = torch.linalg.svdvals(part)[:3] / scale
        want = (sizes[-3:] if keep else sizes[:3]) / scale
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)
        rest, nothing = whole - part, torch.zeros((), dtype=w.dtype)
        for across in (part.T @ rest, part @ rest.T):
            torch.testing.assert_close(across.abs().max() / scale**2, nothing, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "absent"),
    [("deepseek_v3", "kv_b_proj"), ("qwen3_next", "shared_expert_gate"), ("mixtral", "experts")],
)
def test_what_peft_cannot_read_is_left_out_and_the_rest_begins(name: str, absent: str) -> None:
    model = model_of(name)
    found = Adapters.begin(model, TEXTS, 2, True, None, BLOCKS)
    assert any(absent in key for key, _ in model.module.named_parameters())
    assert found.at and not any(absent in key for key in found.at)
    ids = model.batch([prompt for prompt, _ in PAIRS])
    with torch.no_grad():
        plain = model.module(**ids.inputs).logits
        with found.on():
            assert torch.equal(model.module(**ids.inputs).logits, plain)


@peft_is_old
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_base_and_change_are_what_peft_trains_and_merges(name: str) -> None:
    """peft's own CorDA, its base moved, trained by a loop by hand: merged - base is our edit."""
    import peft
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = model_of(name)
    options = {"steps": 4, "rows": 6, "lr": 1e-3}
    edit = iv.tune_with_corda(model, PAIRS, TEXTS, rank=3, warmup=0.0, clip=1.0, **options)

    module = copy.deepcopy(model.module)
    targets = [
        n for n, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D) and n != "lm_head"
    ]
    config = peft.LoraConfig(
        r=3, lora_alpha=3, target_modules=targets, init_lora_weights="corda",
        fan_in_fan_out=name == "gpt2",
        corda_config=CordaConfig(corda_method="kpm"),
    )  # fmt: skip

    def read() -> None:
        for text in TEXTS:
            ids = model.batch([text]).input_ids
            if ids.shape[1] > 1:
                module(ids)

    preprocess_corda(module, config, run_model=read)
    wrapped = peft.get_peft_model(module, config).eval()
    stored = model.module.state_dict()
    assert all(
        not torch.equal(module.get_submodule(n).base_layer.weight, stored[f"{n}.weight"])
        for n in targets
    )  # peft moved the base: its B A alone is no change of ours
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    handle = interp.Model(wrapped, model.tokenizer, "peft", check=False)
    examples = encode(model, PAIRS, end=True)
    for step, some in enumerate(batches(examples, 6, 4, 0)):
        optimizer.zero_grad()
        completion_loss(handle, some).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * (4 - step) / 4
        optimizer.step()
    merged = dict(wrapped.merge_and_unload().named_parameters())

    before = {k: p.detach().clone() for k, p in model.module.named_parameters()}
    tuned = {delta.parameter for delta in edit.deltas}
    assert tuned == {f"{n}.weight" for n in targets}
    with edit.applied(model):
        for key, parameter in model.module.named_parameters():
            went = merged[key].detach() - before[key]
            assert bool(went.any()) == (key in tuned)
            # AdamW divides by a gradient's size, so of tiny ones it shows the rounding.
            apart = (parameter.detach() - merged[key].detach()).norm()
            assert float(apart) <= 0.01 * float(went.norm())
    assert all(delta.change.left.shape[1] == 6 for delta in edit.deltas)
    assert edit.notes["tune_with_corda"]["count"] == sum(p.numel() for p in trained)


def test_the_start_is_no_change_and_learning_lowers_the_loss() -> None:
    model = model_of("llama")
    adapters = Adapters.begin(model, TEXTS, 2, True, None, BLOCKS)
    assert not adapters.edit().atoms
    ids = model.batch([prompt for prompt, _ in PAIRS])
    with torch.no_grad():
        plain = model.module(**ids.inputs).logits
        with adapters.on():
            assert torch.equal(model.module(**ids.inputs).logits, plain)
    edit = iv.tune_with_corda(model, PAIRS, TEXTS, rank=2, steps=6, rows=6, lr=1e-2, dev=PAIRS)
    seen = [row["dev"] for row in edit.notes["tune_with_corda"]["history"] if "dev" in row]
    first = edit.notes["tune_with_corda"]["history"][0]["loss"]
    assert seen[-1] < first
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    with torch.no_grad(), edit.applied(model):
        assert not torch.equal(model.module(**ids.inputs).logits, plain)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_nothing_of_peft_stays_on_the_model_even_after_an_error() -> None:
    model = model_of("llama")
    before = {n: set(vars(m)) for n, m in model.module.named_modules()}
    hooks = {n: list(m._forward_hooks) for n, m in model.module.named_modules()}
    training = {n: m.training for n, m in model.module.named_modules()}
    Adapters.begin(model, TEXTS, 2, True, None, BLOCKS)

    def same() -> bool:
        modules = dict(model.module.named_modules())
        return (
            {n: set(vars(m)) for n, m in modules.items()} == before
            and {n: list(m._forward_hooks) for n, m in modules.items()} == hooks
            and {n: m.training for n, m in modules.items()} == training
        )

    assert same()
    norm = model.module.model.layers[1].input_layernorm
    kept = norm.weight.detach().clone()
    norm.weight.data.fill_(torch.nan)
    with pytest.raises(InterpError, match="peft could not find CorDA's directions"):
        Adapters.begin(model, TEXTS, 2, True, None, BLOCKS)
    norm.weight.data.copy_(kept)
    assert same()


def test_what_it_cannot_start_from_is_said() -> None:
    model = model_of("llama")
    with pytest.raises(InterpError, match=r"rank=40: expected 1 to 16, the rank of .*[kv]_proj"):
        iv.tune_with_corda(model, PAIRS, TEXTS, rank=40, steps=1, rows=2)
    with pytest.raises(InterpError, match="no texts of two tokens"):
        iv.tune_with_corda(model, PAIRS, ["a"], rank=2, steps=1, rows=2)
    with pytest.raises(InterpError, match="texts is one string"):
        iv.tune_with_corda(model, PAIRS, "a b c", rank=2, steps=1, rows=2)
    with pytest.raises(InterpError, match="6 examples and a batch has 9 rows"):
        iv.tune_with_corda(model, PAIRS, TEXTS, rank=2, steps=1, rows=9)


def test_an_interrupted_training_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    options = {"rank": 2, "steps": 8, "rows": 3, "lr": 1e-2, "dev": PAIRS[4:], "dev_every": 2}
    whole = iv.tune_with_corda(model, PAIRS[:4], TEXTS, **options)
    kept = options | {"checkpoint": tmp_path / "state", "checkpoint_every": 2}
    made, count = torch.optim.AdamW.step, iter(range(100))

    def interrupted(self: torch.optim.AdamW, *arguments: object) -> object:
        if next(count) == 5:
            raise KeyboardInterrupt
        return made(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        iv.tune_with_corda(model, PAIRS[:4], TEXTS, **kept)
    with pytest.raises(InterpError, match=r"another training \(another texts\)"):
        iv.tune_with_corda(model, PAIRS[:4], TEXTS[1:], **kept)
    again = iv.tune_with_corda(model, PAIRS[:4], TEXTS, **kept)
    assert again.notes == whole.notes and not (tmp_path / "state").exists()
    for one, other in zip(again.deltas, whole.deltas, strict=True):
        assert one.parameter == other.parameter
        assert torch.equal(one.change.left, other.change.left)
        assert torch.equal(one.change.right, other.change.right)
