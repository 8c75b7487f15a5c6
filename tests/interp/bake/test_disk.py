"""Baking from disk: the same numbers as in memory, and only the bytes that must change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import interp
from interp import Affine, Delta, Edit, LowRank
from interp._bake import bake as bake_module
from tests.architectures import build
from tests.interp.bake.atoms import foldable
from tests.oracles import plain

EDIT = Edit([Affine("z.1", (2,), scale=0.0), Affine("resid_post.0", shift=torch.ones(32))])


def saved(module: Any, folder: Path, shard: str = "20KB", **options: Any) -> Path:
    module.save_pretrained(folder, max_shard_size=shard, **options)
    return folder


def tensors_of(folder: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """name -> (file, tensor), from the files themselves."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update({name: (file.name, tensor) for name, tensor in load_file(file).items()})
    return found


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "qwen2",
        "gemma2",
        "gptj",
        "gpt_neox",
        "mixtral",
        "qwen3_moe",
        "gpt_oss",
        "qwen3_next",
    ],
)
def test_disk_and_memory_write_the_same_bits(name, tmp_path) -> None:
    """Also where experts are stored one by one: the checkpoint keeps its own layout."""
    module = build(name)
    base = saved(module, tmp_path / "base")
    edit = Edit(foldable(name, module).values())
    report = interp.bake(base, edit, out=tmp_path / "out")
    assert report.streamed and report.path == tmp_path / "out"
    assert report.verification.difference <= 1e-5 * max(1, report.verification.largest)
    expected = interp.bake(module, edit).state_dict()
    loaded = interp.load(tmp_path / "out").module
    assert type(loaded).__name__ == report.architecture
    assert loaded.state_dict().keys() == expected.keys()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_only_what_must_change_changes(tmp_path) -> None:
    base = saved(build("llama", dtype=torch.bfloat16), tmp_path / "base")
    interp.bake(base, EDIT, out=tmp_path / "out")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    changed = {n for n in before if not torch.equal(before[n][1], after[n][1])}
    assert changed == {"model.layers.1.self_attn.o_proj.weight"}
    assert all(before[name][0] == after[name][0] for name in before)  # shards kept
    added = set(after) - set(before)
    assert added == {
        f"model.layers.{layer}.mlp.{part}_proj.bias"
        for layer in range(3)
        for part in ("gate", "up", "down")
    }
    assert {tensor.dtype for _, tensor in after.values()} == {torch.bfloat16}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for name, (file, _) in after.items()}
    size = sum(tensor.nbytes for _, tensor in after.values())
    assert index["metadata"]["total_size"] == size
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_one_file_with_integers_and_oddities_stays_one_file(tmp_path) -> None:
    base = saved(build("gpt2"), tmp_path / "base", "1GB")
    state = load_file(base / "model.safetensors")
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-10000.0)  # of old checkpoints
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    save_file(state, base / "model.safetensors", {"format": "pt", "note": "kept"})
    interp.bake(base, EDIT, out=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == state.keys()
    changed = {name for name in state if not torch.equal(state[name], after[name])}
    assert changed == {"transformer.h.1.attn.c_proj.weight", "transformer.h.0.mlp.c_proj.bias"}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": "kept"}
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_an_untied_head_is_stored_apart(shard, tmp_path) -> None:
    module = build("gpt2")
    base = saved(module, tmp_path / "base", shard)
    change = LowRank(0.1 * torch.randn(97, 1), torch.randn(1, 32))
    edit = Edit([Delta("lm_head.weight", change, untie=True)])
    report = interp.bake(base, edit, out=tmp_path / "out")
    assert report.config == {"tie_word_embeddings": False}
    state = interp.load(tmp_path / "out").module.state_dict()
    wte = module.state_dict()["transformer.wte.weight"]
    assert torch.equal(state["transformer.wte.weight"], wte)
    torch.testing.assert_close(state["lm_head.weight"], wte + change.left @ change.right)


def test_a_tied_tensor_stored_twice_changes_twice(tmp_path) -> None:
    module = build("gpt2")
    base = saved(module, tmp_path / "base", "1GB")
    state = load_file(base / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, base / "model.safetensors", {"format": "pt"})
    edit = Edit([Delta("lm_head.weight", torch.ones(97, 32))])
    interp.bake(base, edit, out=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], state["lm_head.weight"] + 1)
    assert torch.equal(after["transformer.wte.weight"], after["lm_head.weight"])


def test_names_that_are_not_understood_go_through_memory(tmp_path, monkeypatch) -> None:
    module = build("llama")
    base = saved(module, tmp_path / "base")
    monkeypatch.setattr(bake_module, "layout_of", lambda checkpoint, plan: None)
    report = interp.bake(base, EDIT, out=tmp_path / "out")
    assert not report.streamed
    expected = interp.bake(module, EDIT).state_dict()
    for key, tensor in interp.load(tmp_path / "out").module.state_dict().items():
        assert torch.equal(tensor, expected[key])


def test_tokenizer_and_other_files_come_along_but_no_code(tmp_path, tokenizer) -> None:
    base = saved(build("llama"), tmp_path / "base")
    tokenizer.save_pretrained(base)
    (base / "LICENSE").write_text("ours")
    (base / "modeling_odd.py").write_text("raise SystemExit")
    (base / "optimizer.pt").write_bytes(b"x")
    (base / "metrics.json").write_text("{}")  # of the base, not of what we make of it
    (base / "README.md").write_text("# the base")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_odd.Odd"}
    (base / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    interp.bake(base, EDIT.select("z.*"), out=out)
    names = {file.name for file in out.iterdir()}
    assert {"LICENSE", "tokenizer.json", "generation_config.json", "README-base.md"} <= names
    assert not names & {"modeling_odd.py", "optimizer.pt", "metrics.json"}
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert (out / "README-base.md").read_text() == "# the base"
    assert interp.load(out).tokenizer.encode("hello") == tokenizer.encode("hello")


def test_the_card_tells_what_was_edited_and_trusts_no_text(tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    notes = {"why": "<script>alert(1)</script> | [x](http://evil) `code`"}
    edit = Edit(EDIT.atoms, notes=notes)
    interp.bake(base, edit, out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "z.1, head 2: scale 0" in card and "model.layers.1.self_attn.o_proj.weight" in card
    assert "mlp_bias" in card and "largest difference of a logit" in card
    assert "<script" not in card and "[x](http" not in card
    assert str(tmp_path) not in card


def test_nothing_is_left_where_baking_fails(tmp_path, monkeypatch) -> None:
    base = saved(build("llama"), tmp_path / "base")

    def broken(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(bake_module, "copy_others", broken)
    with pytest.raises(OSError, match="no space"):
        interp.bake(base, EDIT, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_logits_that_differ_are_found_and_nothing_is_written(tmp_path, monkeypatch) -> None:
    from interp._bake import stream

    base = saved(build("llama"), tmp_path / "base")
    monkeypatch.setattr(stream, "cook", _wrong(stream.cook))
    with pytest.raises(interp.InterpError, match="miss the hooked model's by"):
        interp.bake(base, EDIT, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}
    interp.bake(base, EDIT, out=tmp_path / "out", verify=False)
    assert "were **not** compared" in (tmp_path / "out" / "README.md").read_text()


def _wrong(cook: Any) -> Any:
    def cooked(*arguments: Any) -> Any:
        tensor, realised = cook(*arguments)
        return tensor + 0.01, realised

    return cooked


def test_nothing_is_written_over(tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    for out in (base, tmp_path / "base" / "config.json"):
        with pytest.raises(interp.InterpError, match="there already"):
            interp.bake(base, EDIT, out=out)
    (tmp_path / "empty").mkdir()
    assert interp.bake(base, EDIT, out=tmp_path / "empty").path == tmp_path / "empty"


def test_from_disk_needs_a_place_to_write_to(tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    with pytest.raises(interp.InterpError, match="give out="):
        interp.bake(base, EDIT)


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/passwd", "a\\b.safetensors", "..", 3]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(name, tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(interp.InterpError, match=r"is no file of its folder|is damaged"):
        interp.bake(base, EDIT, out=tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base"}


def test_a_link_that_leads_out_is_not_copied(tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    (tmp_path / "secret").write_text("mine")
    (base / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(interp.InterpError, match="leads out of the checkpoint"):
        interp.bake(base, EDIT, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_the_hubs_cache_may_consist_of_links(tmp_path) -> None:
    cache = tmp_path / "models--a--b"
    snapshot = saved(build("llama"), cache / "snapshots" / "abc")
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = cache / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(Path("..") / ".." / "blobs" / str(number))
    report = interp.bake(snapshot, EDIT, out=tmp_path / "out")
    assert report.streamed
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_an_edit_made_on_another_checkpoint_is_refused_from_its_files(tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    edit = EDIT.on(build("llama", seed=1))
    with pytest.raises(interp.InterpError, match="transfer=True"):
        interp.bake(base, edit, out=tmp_path / "out")
    interp.bake(base, EDIT.on(build("llama")), out=tmp_path / "same")
    interp.bake(base, edit, out=tmp_path / "out", transfer=True)


def test_a_handle_can_be_written_out_too(tmp_path, tokenizer) -> None:
    model = interp.load(build("qwen2"), tokenizer=tokenizer)
    report = interp.bake(model, EDIT, out=tmp_path / "out")
    assert report.architecture == "LlamaForCausalLM"
    ids = torch.tensor([[5, 6, 7, 8]])
    with EDIT.applied(model):
        expected = plain.logits_of(model.module, ids)
    loaded = interp.load(tmp_path / "out")
    torch.testing.assert_close(plain.logits_of(loaded.module, ids), expected, rtol=1e-5, atol=1e-5)
    assert loaded.tokenizer.encode("hello") == tokenizer.encode("hello")
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("kind", ["quantised", "adapter", "no config"])
def test_what_is_no_plain_checkpoint_is_refused(kind, tmp_path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    if kind == "quantised":
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq"}
        (base / "config.json").write_text(json.dumps(config))
    elif kind == "adapter":
        (base / "adapter_config.json").write_text("{}")
    else:
        (base / "config.json").unlink()
    words = {"quantised": "quantised", "adapter": "adapter", "no config": "config.json"}[kind]
    with pytest.raises(interp.InterpError, match=words):
        interp.bake(base, EDIT, out=tmp_path / "out")
