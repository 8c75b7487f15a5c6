"""A checkpoint that cannot be read says what is wrong with it and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

import interp
from tests.architectures import build

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    return tmp_path / "model"


def test_a_sound_folder_loads_with_the_same_logits(folder, ids) -> None:
    model = interp.load(folder)
    there = interp.capture(model, ids, "resid_post.1", logits=True).logits
    assert torch.equal(there, interp.capture(build("llama"), ids, "z.0", logits=True).logits)
    assert not model.module.training
    assert model.tokenizer is None


def test_device_map_and_dtype_are_those_of_transformers(folder, ids) -> None:
    pytest.importorskip("accelerate")
    model = interp.load(folder, device_map="cpu", dtype=torch.bfloat16)
    assert model.module.dtype == torch.bfloat16
    acts = interp.capture(model, ids, ["resid_post.*", "z.*"], logits=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(acts.logits, plain(ids).logits)


def test_a_missing_shard_is_named(folder) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(interp.InterpError, match=rf"lacks 1 of \d+ shards, such as {shard.name}"):
        interp.load(folder)


def test_a_truncated_shard_is_named(folder) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-64])
    with pytest.raises(interp.InterpError, match=rf"{shard.name} is truncated or damaged"):
        interp.load(folder)


def test_a_damaged_index_is_named(folder) -> None:
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(interp.InterpError, match=r"index\.json is damaged"):
        interp.load(folder)


def test_a_missing_weight_is_not_made_up(folder) -> None:
    index = folder / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.up_proj.weight"
    shard = folder / known["weight_map"].pop(name)
    rest = {key: value for key, value in load_file(shard).items() if key != name}
    save_file(rest, shard, metadata={"format": "pt"})
    index.write_text(json.dumps(known))
    with pytest.raises(interp.InterpError, match=rf"lacks 1 weights.*{name}.*random"):
        interp.load(folder)


def test_pickles_are_not_opened(tmp_path) -> None:
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(interp.InterpError, match=r"only pickled weights.*convert.*safetensors"):
        interp.load(tmp_path)


def test_a_folder_without_weights_or_config_says_so(tmp_path) -> None:
    with pytest.raises(interp.InterpError, match=r"no config\.json"):
        interp.load(tmp_path)
    build("llama").config.save_pretrained(tmp_path)
    with pytest.raises(interp.InterpError, match=r"config\.json but no \*\.safetensors"):
        interp.load(tmp_path)


def test_an_adapter_folder_says_how_to_use_it(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(interp.InterpError, match=r"LoRA adapter.*load its base"):
        interp.load(tmp_path)


def test_a_path_that_is_not_there_names_its_neighbours(folder) -> None:
    with pytest.raises(interp.InterpError, match="'model'"):
        interp.load(folder.with_name("modle"))


def test_an_encoder_decoder_is_refused_held_or_saved(tmp_path) -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(interp.InterpError, match=r"encoder-decoder.*decoders"):
        interp.load(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(interp.InterpError, match=r"encoder-decoder model \(t5\)"):
        interp.load(tmp_path)


def test_an_encoder_is_refused() -> None:
    config = BertConfig(**SMALL, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(interp.InterpError, match=r"causal decoders|both directions|encoder"):
        interp.load(BertForMaskedLM(config))


def test_a_model_without_a_head_says_how_to_load_it() -> None:
    headless = AutoModel.from_config(build("llama").config)
    with pytest.raises(interp.InterpError, match=r"no language-model head.*AutoModelForCausalLM"):
        interp.load(headless)


@pytest.mark.parametrize(
    "where", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_non_finite_weights_are_named_by_the_block_they_stand_in(where, ids) -> None:
    model = interp.load(build("llama"))
    with torch.no_grad():
        model.module.get_parameter(where).fill_(float("nan"))
    says = "embedding" if "embed" in where else "block 1"
    with pytest.raises(interp.InterpError, match=f"NaN or infinity.*{says}|{says}.*NaN"):
        interp.logit_lens(interp.load(model.module, check=False), ids)


def test_a_head_with_nan_is_named(ids) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(interp.InterpError, match=r"unembed|logits"):
        interp.logit_lens(interp.load(model, check=False), ids)


def test_a_handle_is_given_back(tokenizer) -> None:
    model = interp.load(build("llama"))
    assert interp.load(model) is model
    spoken = interp.load(model, tokenizer=tokenizer)
    assert spoken.module is model.module and spoken.tokenizer is tokenizer
