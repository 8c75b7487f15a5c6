"""Task vectors: the difference of two checkpoints as an edit, and what is no such pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import interp
import interventions as iv
from interp import InterpError
from interp._weights.parameters import Assembled
from interp._weights.stored import Stored
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved
from tests.oracles.tokenizers import byte_level

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))
# Separate, Conv1D, fused q k v, interleaved, grouped and renamed, experts stored one by one, tied.
LAYOUTS = ["llama", "gpt2", "phi3", "gpt_neox", "falcon-new", "mixtral", "gpt_oss", "gemma2"]


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def two(name: str, tmp_path: Path, dtype=torch.float32) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A base and its tuned copy, also in the folders base and tuned."""
    base = build(name, dtype=dtype)
    tuned = noisy(base)
    saved(base, tmp_path / "base")
    saved(tuned, tmp_path / "tuned")
    return base, tuned


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_disk_it_is_the_difference_of_the_state_dicts(name: str, tmp_path: Path):
    base, tuned = two(name, tmp_path, torch.bfloat16)
    tau = iv.task_vector(tmp_path / "tuned", tmp_path / "base")
    a, b = state(base), state(tuned)
    assert {delta.parameter for delta in tau} == set(a)
    for delta in tau:
        difference = b[delta.parameter].double() - a[delta.parameter].double()
        assert torch.equal(delta.change.dense(torch.float64), difference)
        torch.testing.assert_close(
            delta.change.dense(), difference.float(), rtol=2**-23, atol=0
        )  # one rounding
        # Nothing is in memory yet: both sides lie on disk.
        for side in (delta.change.values, delta.change.minus):
            assert isinstance(side, Stored | Assembled)
    held = iv.task_vector(tuned, base)
    for one, other in zip(
        sorted(tau, key=lambda d: d.parameter), sorted(held, key=lambda d: d.parameter), strict=True
    ):
        assert one.parameter == other.parameter
        assert torch.equal(one.change.dense(), other.change.dense())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
def test_on_its_base_it_gives_the_tuned_model_and_half_of_it_the_middle(name: str, tmp_path: Path):
    base, tuned = two(name, tmp_path)
    want, before = logits(tuned), logits(base)
    middle = build(name)
    with torch.no_grad():
        for key, p in middle.named_parameters():
            p.copy_((state(base)[key].double() + state(tuned)[key].double()) / 2)
    tau = iv.task_vector(str(tmp_path / "tuned"), tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with tau.applied(model):  # its own base, so no transfer=True
        torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=2e-5)
    with (0.5 * tau).applied(model):
        torch.testing.assert_close(logits(model), logits(middle), rtol=1e-5, atol=2e-5)
    with (tau - tau).applied(model):
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=2e-5)
    with (tau + -1 * tau + 0.25 * tau - 0.25 * tau).applied(model):
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=2e-5)
    for key, p in model.named_parameters():
        assert torch.equal(p, state(base)[key])


def test_a_double_precision_pair_is_subtracted_in_double_precision(tmp_path: Path):
    base, tuned = two("llama", tmp_path, torch.float64)
    tau = iv.task_vector(tmp_path / "tuned", tmp_path / "base")
    with tau.applied(base):
        for key, p in base.named_parameters():
            torch.testing.assert_close(p.detach(), state(tuned)[key], rtol=1e-15, atol=1e-16)


def test_another_target_needs_transfer(tmp_path: Path):
    base, _ = two("llama", tmp_path)
    target = noisy(base, seed=7)
    tau = iv.task_vector(tmp_path / "tuned", tmp_path / "base")
    with pytest.raises(InterpError, match="pass transfer=True"), tau.applied(target):
        pass
    before = state(target)
    with (2 * tau).applied(target, transfer=True):
        for delta in tau:
            expected = before[delta.parameter] + 2 * delta.change.dense()
            assert torch.equal(target.get_parameter(delta.parameter), expected)
    with pytest.raises(InterpError, match="has shape"):
        wider = build("llama", intermediate_size=64)
        with tau.applied(wider, transfer=True):
            pass


def test_it_is_saved_and_loaded_with_its_origin(tmp_path: Path):
    base, tuned = two("phi3", tmp_path)
    tau = 0.5 * iv.task_vector(tmp_path / "tuned", tmp_path / "base", modules=["k", "down"])
    tau.save(tmp_path / "edit")
    back = iv.Edit.load(tmp_path / "edit")
    with tau.applied(base):
        want = state(base)
    with back.applied(base):
        assert all(torch.equal(p, want[key]) for key, p in base.named_parameters())
    assert back.notes["task_vector"]["base"] == str(tmp_path / "base")
    assert back.notes["lineage"]["cosine"] > 0.99
    with pytest.raises(InterpError, match="transfer"), back.applied(tuned):
        pass


def test_a_module_that_changes_later_does_not_change_the_vector(tmp_path: Path):
    base, tuned = two("llama", tmp_path)
    tau = iv.task_vector(tuned, base)
    before = [delta.change.dense() for delta in tau]
    with tau.applied(base):
        after = [delta.change.dense() for delta in tau]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def rows_changed(a: Tensor, b: Tensor) -> list[int]:
    return (a != b).any(dim=1).nonzero()[:, 0].tolist()


def test_a_module_of_a_fused_tensor_moves_only_its_rows(tmp_path: Path):
    base, tuned = two("phi3", tmp_path)  # q: 32 rows, k: 16, v: 16 of one tensor
    a = state(base)["model.layers.1.self_attn.qkv_proj.weight"]
    with iv.task_vector(tuned, base, layers=[1], modules="k").applied(base):
        moved = state(base)
    changed = {key for key, p in moved.items() if not torch.equal(p, state(base)[key])}
    assert changed == {"model.layers.1.self_attn.qkv_proj.weight"}
    b = moved["model.layers.1.self_attn.qkv_proj.weight"]
    assert rows_changed(a, b) == list(range(32, 48))
    gpt2, other = build("gpt2"), noisy(build("gpt2"))  # stored [in, out]: columns
    with iv.task_vector(other, gpt2, layers=2, modules=["q", "v"]).applied(gpt2):
        moved = state(gpt2)
    key, q_and_v = "transformer.h.2.attn.c_attn", [*range(32), *range(64, 96)]
    assert rows_changed(state(gpt2)[f"{key}.weight"].T, moved[f"{key}.weight"].T) == q_and_v
    assert (
        rows_changed(state(gpt2)[f"{key}.bias"][:, None], moved[f"{key}.bias"][:, None]) == q_and_v
    )


def test_layers_modules_and_groups_choose_by_canonical_name(tmp_path: Path):
    base, tuned = two("mixtral", tmp_path)

    def names(**choice) -> set[str]:
        tau = iv.task_vector(tmp_path / "tuned", tmp_path / "base", **choice)
        return {delta.parameter.removeprefix("model.") for delta in tau}

    assert names(layers=-1, modules="attn") == {
        f"layers.2.self_attn.{m}_proj.weight" for m in "qkvo"
    }
    assert names(modules=["embed", "head"]) == {"embed_tokens.weight", "lm_head.weight"}
    assert names(layers=range(1), modules=["up", "router"]) == {
        "layers.0.mlp.experts.gate_up_proj",
        "layers.0.mlp.gate.weight",
    }
    everything = names()
    by_part = names(layers=range(3)) | names(modules=["embed", "head"]) | {"norm.weight"}
    assert everything == by_part
    up = iv.task_vector(tuned, base, layers=[0], modules="up")
    key = "model.layers.0.mlp.experts.gate_up_proj"
    with up.applied(base):
        moved = state(base)[key]
    changed = moved != state(base)[key]
    assert not changed[:, :48].any() and changed[:, 48:].float().mean() > 0.99


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"layers": 3}, "no layer 3; this model has layers 0 to 2"),
        ({"modules": "mpl"}, "no modules 'mpl'; nearest valid names: 'mlp'"),
        (
            {"layers": [0], "modules": "embed"},
            "positions and the final norm are in no layer",
        ),
        ({"layers": []}, "layers names nothing"),
        ({"modules": []}, "modules names nothing"),
    ],
)
def test_a_choice_of_nothing_is_refused(choice: dict, text: str):
    base = build("llama")
    with pytest.raises(InterpError, match=text):
        iv.task_vector(noisy(base), base, **choice)


def test_what_is_no_pair_is_refused_in_one_sentence(tmp_path: Path):
    base, _ = two("llama", tmp_path)

    def refused(tuned: PreTrainedModel, text: str, **options: object) -> None:
        with pytest.raises(InterpError, match=text) as error:
            iv.task_vector(tuned, base, **options)
        assert "\n" not in str(error.value)

    refused(build("gpt2"), "of type 'gpt2' and .* of type 'llama'")
    refused(build("llama", intermediate_size=64), "is 64 x 32 in .* and 48 x 32 in")
    refused(build("llama", num_hidden_layers=4), "lacks model.layers.3.*, which .* has")
    refused(build("llama", vocab_size=99), "has 99 rows in .* and 97 in")
    refused(build("llama", tie_word_embeddings=True), "ties its head to its embedding and")
    refused(build("llama", rope_theta=5e5), "the configs differ in rope_", allow_distant=False)
    refused(build("llama", seed=5), r"no common start \(cosine -?0\.0\d+, relative distance 1")
    with pytest.warns(UserWarning, match="is far from"):
        far = iv.task_vector(build("llama", seed=5), base, allow_distant=True)
    assert abs(far.notes["lineage"]["cosine"]) < 0.1
    with pytest.warns(UserWarning, match=r"relative distance 0\.2\d+; post-training"):
        iv.task_vector(noisy(base, 0.1), base)
    # Without what differs the rest still corresponds.
    grown = build("llama", vocab_size=99)
    with torch.no_grad():
        for key, p in grown.named_parameters():
            p[: len(state(base)[key])] = state(base)[key]
    assert len(iv.task_vector(grown, base, modules=("attn", "mlp"))) == 3 * 7


def test_tokens_that_moved_are_refused_and_new_ones_pointed_out(tmp_path: Path):
    base = build("llama", vocab_size=len(byte_level()))

    def with_tokens(name: str, change) -> Path:
        folder = tmp_path / name
        noisy(base).save_pretrained(folder)
        byte_level().save_pretrained(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    def swap(content: dict) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["ab"], vocabulary["Th"] = vocabulary["Th"], vocabulary["ab"]

    def add(content: dict) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], "id": 96, "content": "<t>"})

    plain, swapped = with_tokens("plain", lambda _: None), with_tokens("swapped", swap)
    with pytest.raises(InterpError, match=r"disagree on 2 tokens: '(ab|Th)' is \d+ in .* and \d+"):
        iv.task_vector(swapped, plain)
    iv.task_vector(swapped, plain, allow_distant=True)
    with pytest.warns(UserWarning, match="knows 1 tokens that .* does not, such as '<t>'"):
        iv.task_vector(with_tokens("added", add), plain)
    # A handle's tokenizer counts as well as a file.
    with pytest.raises(InterpError, match="disagree on 2 tokens"):
        iv.task_vector(swapped, interp.load(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lineage_is_that_of_all_entries(dtype: torch.dtype):
    base = build("llama", dtype=dtype, hidden_size=64, intermediate_size=96)
    tuned = noisy(base, 0.05)
    a, b = (
        torch.cat([p.flatten().double() for p in state(m).values() if p.ndim > 1])
        for m in (tuned, base)
    )
    found = iv.weights.lineage(tuned, base)
    assert found.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-3)
    assert found.relative_norm == pytest.approx(float((a - b).norm() / b.norm()), rel=0.03)
    assert iv.weights.lineage(base, base).relative_norm == 0.0
