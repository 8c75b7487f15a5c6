"""What can be opened, that it all reads alike, and what is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp._diff import diff
from interp._errors import InterpError
from interp._weights.checkpoint import open_checkpoint
from tests.architectures import build
from tests.interp.weights.helpers import noisy, pair, saved

# peft 0.21 reads a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
METRICS = ["norm", "relative_norm", "rms", "cosine", "max_abs", "unchanged", "sparsity"]


def same(a, b, **tolerance: float) -> None:
    first = a.table().set_index("tensor").sort_index()[METRICS]
    second = b.table().set_index("tensor").sort_index()[METRICS]
    assert list(first.index) == list(second.index)
    for column in METRICS:
        x = torch.tensor(first[column].to_numpy(dtype=float))
        y = torch.tensor(second[column].to_numpy(dtype=float))
        torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "gpt_oss"])
def test_sharded_unsharded_module_and_legacy_are_the_same(name: str, tmp_path: Path):
    base = build(name, dtype=torch.bfloat16)
    tuned = noisy(base)
    one = diff(saved(base, tmp_path / "base"), saved(tuned, tmp_path / "one"))
    sharded = saved(tuned, tmp_path / "many", max_shard_size="20KB")
    assert len(list(Path(sharded).glob("*.safetensors"))) > 2
    same(one, diff(tmp_path / "base", sharded))
    same(one, diff(base, tuned))
    same(one, diff(tmp_path / "base", tuned))
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    shutil.copy(tmp_path / "one" / "config.json", legacy)
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), legacy / "pytorch_model.bin")
    same(one, diff(tmp_path / "base", legacy))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_is_its_merged_checkpoint(name: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    base = build(name)
    folder = saved(base, tmp_path / "base")
    targets = ["c_attn", "c_proj"] if name == "gpt2" else ["q_proj", "down_proj"]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=targets,
        fan_in_fan_out=name == "gpt2",
        rank_pattern={targets[0]: 2},
        alpha_pattern={targets[0]: 3},
        use_rslora=name == "llama",
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path / "adapter")
    merged = saved(model.merge_and_unload(), tmp_path / "merged")
    found = diff(folder, tmp_path / "adapter")
    same(found, diff(folder, merged), rtol=1e-5, atol=1e-7)
    moved = found.table().query("norm > 0")["module"].unique()
    assert sorted(moved) == (["down", "k", "o", "q", "v"] if name == "gpt2" else ["down", "q"])


def test_a_lone_adapter_and_one_of_another_base_are_refused(tmp_path: Path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InterpError, match="give its base model as the first argument"):
        diff(tmp_path / "adapter", tmp_path / "adapter")
    other = saved(build("llama", hidden_size=48), tmp_path / "other")
    with pytest.raises(InterpError, match="trained on another base"):
        diff(other, tmp_path / "adapter")


def refused(tmp_path: Path, base: str, tuned: str | Path, match: str) -> None:
    with pytest.raises(InterpError, match=match):
        diff(base, tuned)


def test_refusals_by_architecture_shape_and_missing_tensors(tmp_path: Path):
    base, tuned = pair(tmp_path)
    wide = saved(build("llama", dtype=torch.bfloat16, intermediate_size=64), tmp_path / "wide")
    refused(tmp_path, base, wide, r"down\.weight is 32 x 48 in .* and 32 x 64 .* one model")
    neox = saved(build("gpt_neox"), tmp_path / "neox")
    refused(tmp_path, base, neox, "of type 'llama' and .* of type 'gpt_neox'")
    file = Path(tuned) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    refused(tmp_path, base, tuned, r"lacks 1 tensors .* layers\.1\.up\.weight .*select=")
    assert len(diff(base, tuned, select=r"^(?!.*\b(up)\b)").rows) > 10


def test_refusals_by_damage(tmp_path: Path):
    base, _ = pair(tmp_path)
    cut = tmp_path / "cut"
    shutil.copytree(base, cut)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path, base, cut, "truncated or damaged: its header asks for")
    file.write_bytes(b"not a header at all")
    refused(tmp_path, base, cut, "model.safetensors")
    refused(tmp_path, base, tmp_path / "tunde", "no checkpoint folder at .*tunde; nearest .*tuned")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(tmp_path, base, empty, "neither .*safetensors nor")


def test_refusals_by_index(tmp_path: Path):
    base = build("llama", dtype=torch.bfloat16)
    folder = saved(base, tmp_path / "base", max_shard_size="20KB")
    index = Path(folder) / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    name, shard = next(iter(listed["weight_map"].items()))
    fewer = {"weight_map": {k: v for k, v in listed["weight_map"].items() if k != name}}
    index.write_text(json.dumps(fewer))
    refused(tmp_path, folder, folder, f"misses 1 tensors that the shards hold, such as {name}")
    index.write_text(json.dumps({"weight_map": {**listed["weight_map"], "ghost": shard}}))
    refused(
        tmp_path, folder, folder, "lists 1 tensors that their shards do not hold, such as ghost"
    )
    index.write_text(json.dumps(listed))
    (Path(folder) / shard).unlink()
    refused(tmp_path, folder, folder, f"lacks 1 of .* shards, such as {shard}")


def test_nan_and_infinity_are_named_and_counted(tmp_path: Path):
    base, tuned = pair(tmp_path)
    file = Path(tuned) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"][0, :3] = torch.tensor([torch.nan, 1, torch.inf])
    save_file(tensors, file)
    refused(tmp_path, base, tuned, r"layers\.2\.down\.weight in tuned \(2\)")


def test_quantised_weights_are_refused(tmp_path: Path):
    base, tuned = pair(tmp_path)
    config = json.loads((Path(tuned) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (Path(tuned) / "config.json").write_text(json.dumps(config))
    refused(tmp_path, base, tuned, r"quantised weights \(gptq\)")


def test_a_pickle_that_holds_code_is_refused(tmp_path: Path):
    folder = tmp_path / "bad"
    folder.mkdir()
    torch.save({"a": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(InterpError, match="could run code"):
        open_checkpoint(folder)


def test_added_vocabulary_is_reported_apart(tmp_path: Path):
    base = build("llama")
    folder = saved(base, tmp_path / "base")
    base.resize_token_embeddings(100, mean_resizing=False)
    with torch.no_grad():
        base.lm_head.weight[:97] += 0.5
    table = diff(folder, saved(base, tmp_path / "more")).table().set_index("tensor")
    assert table.loc["embed.weight", ["numel", "norm", "rows_added"]].tolist() == [97 * 32, 0.0, 3]
    assert table.loc["head.weight", "max_abs"] == pytest.approx(0.5, abs=1e-6)
    added = table.loc["embed.weight[97:]"]
    assert added["numel"] == 3 * 32 and added["module"] == "embed_added"
    norm = float(base.model.embed_tokens.weight.detach()[97:].norm())
    assert added["norm_tuned"] == pytest.approx(norm, rel=1e-6)


def test_moved_tokens_are_refused(tmp_path: Path):
    base, tuned = pair(tmp_path)
    for folder, vocabulary in ((base, {"a": 0, "b": 1}), (tuned, {"a": 1, "b": 0})):
        text = json.dumps({"model": {"vocab": vocabulary}})
        (Path(folder) / "tokenizer.json").write_text(text)
    refused(tmp_path, base, tuned, "disagree on 2 tokens: 'a' is 0 in")
    assert len(diff(base, tuned, select="layers").rows) > 10


def test_a_tied_head_is_counted_once_even_when_stored(tmp_path: Path):
    model = build("gpt2")
    folder = Path(saved(model, tmp_path / "tied"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "head.weight" not in open_checkpoint(folder).parts


def test_an_untied_head_is_compared_with_the_tied_embedding(tmp_path: Path):
    base = build("llama", tie_word_embeddings=True)
    tuned = build("llama", tie_word_embeddings=False)
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        tuned.lm_head.weight += 0.25
    found = diff(saved(base, tmp_path / "a"), saved(tuned, tmp_path / "b"))
    table = found.table().set_index("tensor")
    assert table.loc["embed.weight", "norm"] == 0
    assert table.loc["head.weight", "max_abs"] == pytest.approx(0.25, abs=1e-6)


def test_a_hub_id_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InterpError, match="neither a folder here nor a checkpoint the hub gives"):
        open_checkpoint("nobody/nothing-at-all@v1")
