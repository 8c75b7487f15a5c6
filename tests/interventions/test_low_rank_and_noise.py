"""Low-rank changes and adapters as edits; noise of the same norm as a change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import interventions as iv
from interp import Affine, Delta, Edit, InterpError, Sparse
from studies import organisms
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def adapter(name: str, folder: Path, **options) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A base, and what peft itself makes of it with a random adapter, saved in `folder`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 2, "init_lora_weights": False, **options},
        fan_in_fan_out=name == "gpt2",
    )
    torch.manual_seed(4)
    wrapped = peft.get_peft_model(build(name), config).eval()
    for key, p in wrapped.named_parameters():
        if "modules_to_save" in key:
            p.data += 0.1 * torch.randn_like(p)
    wrapped.save_pretrained(folder)
    return build(name), wrapped.merge_and_unload()


ADAPTERS = {
    "llama": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj"], "use_rslora": True, "lora_alpha": 1},
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj"], "alpha_pattern": {"qkv_proj": 3}},
}
ours = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@ours
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_an_adapter_is_what_peft_merges(name: str, tmp_path: Path):
    base, merged = adapter(name, tmp_path / "adapter", **ADAPTERS[name])
    want, before = state(merged), state(base)
    lora = iv.lora(tmp_path / "adapter", base)
    tau = iv.task_vector(tmp_path / "adapter", saved(base, tmp_path / "base"))
    for edit in (lora, tau):
        with edit.applied(base):
            for key, p in state(base).items():
                torch.testing.assert_close(p, want[key], rtol=1e-5, atol=1e-6)
                changed = not torch.equal(want[key], before[key])
                assert changed == (key in {delta.parameter for delta in edit})
        ranks = [d.change.left.shape[1] for d in edit if hasattr(d.change, "left")]
        assert ranks and set(ranks) == {3}
        with (0.5 * edit).applied(base):
            for key, p in state(base).items():
                half = (want[key] + before[key]) / 2
                torch.testing.assert_close(p, half, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_another_base_is_told():
    """Same architecture and shapes, other weights: nothing but the adapter's own word says so."""
    unlearn = organisms.path("unlearn")
    with pytest.warns(
        UserWarning, match=r"trained on '.*base', and this base is '.*rl-.*'; if those"
    ):
        edit = iv.lora(unlearn, organisms.path("rl"))
    assert edit.notes["lora"]["trained on"].endswith("base")
    iv.lora(unlearn, organisms.path("base"))  # warnings are errors here
    iv.lora(unlearn, organisms.load("base")[0])


@ours
def test_part_of_an_adapter_stays_low_rank(tmp_path: Path):
    base, merged = adapter("phi3", tmp_path / "adapter", **ADAPTERS["phi3"])
    before, want = state(base), state(merged)
    tau = iv.task_vector(tmp_path / "adapter", base, layers=[1], modules="v")
    (delta,) = tau
    assert delta.change.left.shape == (64, 3)
    with tau.applied(base):
        after = state(base)
    key = "model.layers.1.self_attn.qkv_proj.weight"
    assert {k for k in after if not torch.equal(after[k], before[k])} == {key}
    assert torch.equal(after[key][:48], before[key][:48])
    torch.testing.assert_close(after[key][48:], want[key][48:], rtol=1e-5, atol=1e-6)


def test_the_shipped_adapter_gives_the_shipped_organism():
    base, tokenizer = organisms.load("base")
    unlearned, _ = organisms.load("unlearn")
    ids = tokenizer(["Question: Where does", "Problem:"], return_tensors="pt", padding=True)
    with torch.no_grad(), iv.lora(organisms.path("unlearn"), organisms.path("base")).applied(base):
        torch.testing.assert_close(
            base(**ids).logits, unlearned(**ids).logits, rtol=1e-5, atol=1e-5
        )


@ours
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_moved_its_base_is_refused(start: str, tmp_path: Path):
    """peft took out of the base what it put in, so base + B A is another model than the trained."""
    base, merged = adapter("llama", tmp_path / "adapter", init_lora_weights=start)
    del merged
    with pytest.raises(InterpError, match=f"began as {start}, which moves the base's weights"):
        iv.lora(tmp_path / "adapter", base)


@ours
def test_what_is_no_adapter_or_no_checkpoint_is_said(tmp_path: Path):
    base, _ = adapter("llama", tmp_path / "adapter", target_modules=["q_proj"])
    folder = saved(base, tmp_path / "base")
    with pytest.raises(InterpError, match=r"whole checkpoint and no adapter; .* iv.task_vector"):
        iv.lora(folder, base)
    with pytest.raises(InterpError, match=r"a change and no weights to put in place; use iv.lora"):
        iv.transplant(tmp_path / "adapter")
    with pytest.raises(InterpError, match="trained on another base"):
        iv.lora(tmp_path / "adapter", build("gpt2"))
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InterpError, match=r"wrapped by peft, .* merge it"):
        iv.task_vector(wrapped, base)


def test_low_rank_adds_an_outer_product():
    model = build("llama")
    key = "model.layers.2.mlp.down_proj.weight"
    left, right = torch.randn(32, 2), torch.randn(2, 48)
    before = state(model)
    with (3 * iv.low_rank(key, left, right)).applied(model):
        after = state(model)
    expected = before[key].double() + 3 * left.double() @ right.double()
    torch.testing.assert_close(after[key].double(), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(after[k], before[k]) for k in before if k != key)


def size(change: object, shape: tuple[int, ...]) -> float:
    """||change|| as it acts on a tensor of zeros in float64."""
    return float(change.applied_to(torch.zeros(shape, dtype=torch.float64)).norm())


@ours
def test_noise_has_the_norm_and_the_place_of_each_change(tmp_path: Path):
    base = build("phi3")
    tuned = noisy(base, 0.05)
    _, _ = adapter("phi3", tmp_path / "adapter", **ADAPTERS["phi3"])
    index = torch.tensor([3, 40, 77])
    sparse = Delta("model.norm.weight", Sparse(index % 32, torch.randn(3), (32,)))
    key = "model.layers.1.self_attn.qkv_proj.weight"
    edit = iv.task_vector(saved(tuned, tmp_path / "tuned"), saved(base, tmp_path / "base"))
    edit += -0.3 * iv.task_vector(tuned, base, layers=1, modules="k")
    edit += iv.lora(tmp_path / "adapter", base) + Edit([sparse])
    noise = iv.norm_matched_random(edit, seed=1)
    assert [d.parameter for d in noise] == [d.parameter for d in edit]
    for one, other in zip(edit, noise, strict=True):
        assert type(one.change) is type(other.change)
        shape = one.change.shape
        assert size(other.change, shape) == pytest.approx(size(one.change, shape), rel=1e-6)
        a, b = (d.change.applied_to(torch.zeros(shape)) for d in (one, other))
        assert torch.equal(a != 0, b != 0)  # the same entries
        if a.numel() > 1000:
            assert abs(float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))) < 0.2
    masked = [d for d in noise if d.parameter == key][1]
    moved = masked.change.applied_to(torch.zeros(64, 32))
    assert not moved[:32].any() and not moved[48:].any() and moved[32:48].all()
    # Drawn when needed, the same each time; another seed, another draw; kept when it is saved.
    again, other = iv.norm_matched_random(edit, seed=1), iv.norm_matched_random(edit, seed=2)
    assert noise == again and noise != other
    noise.save(tmp_path / "noise")
    assert Edit.load(tmp_path / "noise") == noise
    twice = (2 * noise).atoms[0].change
    assert size(twice, twice.shape) == pytest.approx(
        2 * size(noise.atoms[0].change, twice.shape), rel=1e-6
    )


def test_noise_of_a_vector_is_gaussian():
    base = build("llama")
    (delta,) = iv.norm_matched_random(
        iv.task_vector(noisy(base, 0.05), base, layers=[1], modules="up"), seed=0
    )
    z = delta.change.dense().flatten()
    z = z / z.square().mean().sqrt()
    assert abs(float(z.mean())) < 0.1 and abs(float(z.pow(4).mean()) - 3) < 0.5


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Edit([Affine("z.1", (0,), scale=0.0)]), "acts on activations"),
        ("reset", r"depends on the weights it meets, .* iv.task_vector\(source, base\)"),
    ],
)
def test_what_has_no_norm_gets_no_noise(edit: object, text: str):
    edit = iv.reset(build("llama")) if edit == "reset" else edit
    with pytest.raises(InterpError, match=text):
        iv.norm_matched_random(edit)
