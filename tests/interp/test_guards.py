"""Situations in which a reading would silently be wrong: each is seen through or refused."""

from pathlib import Path

import pytest
import torch

import interp
from interp import InterpError, SiteNotFound, UnsupportedSite
from tests.architectures import build

IDS = [[5, 6, 7, 8, 9]]


def test_compiled_modules_skip_hooks_and_are_refused() -> None:
    module = build("llama")
    module.compile(backend="eager")
    with pytest.raises(InterpError, match="compiled"):
        interp.capture(interp.Model(module, check=False), IDS, "z.0")
    block_wise = build("llama")
    block_wise.model.layers[1].compile(backend="eager")
    with pytest.raises(InterpError, match="compiled"), interp.hooked(block_wise, {"z.0": print}):
        pass


def test_one_block_used_at_two_layers_is_refused() -> None:
    module = build("llama")
    module.model.layers[1] = module.model.layers[0]
    with pytest.raises(InterpError, match="one block at several layers"):
        interp.capture(interp.Model(module), IDS, "resid_post.*")


# peft asks transformers for a name that transformers has since replaced.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@PEFT_WARNS
def test_an_adapter_put_on_after_the_first_reading_is_seen() -> None:
    from peft import LoraConfig, get_peft_model

    module = build("llama")
    handle = interp.Model(module)
    interp.capture(handle, IDS, "q.0")
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(module, config)
    seen = {}
    layer = module.model.layers[0].self_attn.q_proj
    hook = layer.register_forward_hook(lambda _m, _a, out: seen.update(q=out))
    with torch.no_grad():
        wrapped(torch.tensor(IDS))
    hook.remove()
    torch.testing.assert_close(interp.capture(handle, IDS, "q.0")["q.0"].flatten(2), seen["q"])


def test_resized_embeddings_are_seen() -> None:
    module = build("llama")
    handle = interp.Model(module)
    interp.logit_lens(handle, IDS)
    module.resize_token_embeddings(110, mean_resizing=False)
    assert handle.anatomy.d_vocab == 110
    top = interp.logit_lens(handle, IDS).top_token[0, -1, 0]
    with torch.no_grad():
        assert int(top) == int(module(torch.tensor(IDS)).logits[0, -1].argmax())


@PEFT_WARNS
def test_lora_on_the_output_projection_still_gives_heads_that_sum() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    model = interp.Model(get_peft_model(build("llama"), config))
    acts = interp.capture(model, IDS, ["head_out.1", "attn_out.1"])
    torch.testing.assert_close(acts["head_out.1"].sum(2), acts["attn_out.1"], atol=1e-5, rtol=1e-5)


def test_readings_do_not_depend_on_training_mode_and_leave_it() -> None:
    module = build("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)
    model = interp.Model(module)
    calm = interp.logit_lens(model, IDS).logprob, interp.answer_logprob(model, IDS, 7)
    pattern = interp.capture(model, IDS, "pattern.1")["pattern.1"]
    module.train()
    module.transformer.h[1].eval()
    assert torch.equal(interp.logit_lens(model, IDS).logprob, calm[0])
    assert torch.equal(interp.answer_logprob(model, IDS, 7), calm[1])
    assert torch.equal(interp.capture(model, IDS, "pattern.1")["pattern.1"], pattern)
    again = interp.replay(model, IDS)
    assert module.training and module.transformer.h[0].training
    assert not module.transformer.h[1].training
    module.eval()
    assert torch.equal(again.run(1, again.streams[1]), again.streams[-1])


def test_logits_scaled_in_a_way_we_do_not_know_are_refused_everywhere() -> None:
    module = build("llama")
    plain = module.lm_head.forward
    calls = {"n": 0}

    class Head(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls["n"] += 1  # another factor in each call, as no unembedding has
            return calls["n"] * plain(x)

    head = Head(32, 97, bias=False)
    head.weight = module.lm_head.weight
    module.lm_head = head
    model = interp.Model(module)
    for ask in (interp.logit_lens, interp.answer_logprob, interp.logit_attribution):
        with pytest.raises(UnsupportedSite, match="no logits can be read"):
            ask(model, IDS, 5)


def test_a_first_reading_under_autocast_does_not_spoil_the_self_check() -> None:
    model = interp.Model(build("llama"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        interp.capture(model, IDS, "head_out.0")
    interp.capture(model, IDS, "head_out.0")


def test_a_function_that_reads_the_model_itself_disturbs_no_outer_reading() -> None:
    model = interp.Model(build("llama"))
    other = [[20, 21, 22, 23, 24]]
    expected = interp.capture(model, IDS, ["z.0", "resid_post.2"])
    inner = []

    def nosy(_z: torch.Tensor, _site: interp.Site) -> None:
        if not inner:
            inner.append(None)  # the inner reading must not call itself
            inner[0] = interp.capture(model, other, "resid_post.0")["resid_post.0"]

    with interp.hooked(model, {"z.0": nosy}):
        got = interp.capture(model, IDS, ["z.0", "resid_post.2"], logits=True)
    for site in expected:
        assert torch.equal(got[site], expected[site])
    assert torch.equal(inner[0], interp.capture(model, other, "resid_post.0")["resid_post.0"])


def test_captures_are_each_their_own_memory() -> None:
    model = interp.Model(build("llama"))
    acts = interp.capture(model, IDS, ["resid_post.0", "resid_pre.1"])
    before = acts["resid_pre.1"].clone()
    acts["resid_post.0"].zero_()
    assert torch.equal(acts["resid_pre.1"], before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
@pytest.mark.parametrize("kind", ["q", "z", "attn_out", "resid_mid", "resid_post", "mlp_post"])
def test_what_a_function_does_in_place_without_returning_it_has_no_effect(
    name: str, kind: str
) -> None:
    module = build(name)

    def scribble(tensor: torch.Tensor, _site: interp.Site) -> None:
        tensor.zero_()

    with torch.no_grad():
        plain = module(torch.tensor(IDS)).logits
        with interp.hooked(interp.Model(module), {f"{kind}.1": scribble}):
            assert torch.equal(module(torch.tensor(IDS)).logits, plain)


def test_expert_ids_stay_whole_numbers_in_any_dtype() -> None:
    model = interp.Model(build("mixtral"))
    acts = interp.capture(model, IDS, "mlp_post.0", dtype=torch.bfloat16)
    assert not next(iter(acts.expert_ids.values())).is_floating_point()


def test_saving_never_deletes_somebody_elses_files(tmp_path: Path) -> None:
    acts = interp.capture(interp.Model(build("llama")), IDS, "z.0")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InterpError, match="holds other files"):
        acts.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    acts.save(tmp_path / "acts")
    acts.save(tmp_path / "acts")  # an earlier record is replaced


def test_a_store_is_not_continued_on_another_corpus_or_model(tmp_path: Path) -> None:
    corpus = [[5, 6], [7, 8], [9, 10]]
    options = {"batch_size": 2, "progress": False}
    interp.capture_corpus(interp.Model(build("llama")), corpus, "z.0", tmp_path / "s", **options)
    with pytest.raises(InterpError, match="holds other prompts"):
        interp.capture_corpus(
            interp.Model(build("llama")), corpus[::-1], "z.0", tmp_path / "s", **options
        )
    with pytest.raises(InterpError, match="another weights"):
        interp.capture_corpus(
            interp.Model(build("llama", seed=1)), corpus, "z.0", tmp_path / "s", **options
        )
    with pytest.raises(InterpError, match="one text"):
        interp.capture_corpus(interp.Model(build("llama")), "abc", "z.0", tmp_path / "t", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_beams", 3), ("use_cache", False), ("return_dict_in_generate", True)],
)
def test_generations_that_cannot_be_followed_are_refused(option: str, value: object) -> None:
    model = interp.Model(build("llama"))
    with pytest.raises(InterpError, match=option):
        interp.capture_generation(model, IDS, "z.0", max_new_tokens=3, **{option: value})
    setattr(model.module.generation_config, option, value)  # the checkpoint's wish is overruled
    got = interp.capture_generation(model, [*IDS, [4, 5]], "resid_post.2", max_new_tokens=4)
    assert got.tokens.shape[0] == 2


def test_several_sequences_a_prompt_are_told_apart() -> None:
    model = interp.Model(build("llama"))
    torch.manual_seed(0)
    got = interp.capture_generation(
        model, [[4, 5, 6], [7, 8]], "resid_post.2", max_new_tokens=5,
        do_sample=True, num_return_sequences=2, eos_token_id=96,
    )  # fmt: skip
    assert got.meta["prompt_lengths"] == [3, 3, 2, 2]
    for row in range(4):
        ids = got.tokens[row][got.mask[row]].tolist()
        alone = interp.capture(model, [ids], "resid_post.2")["resid_post.2"][0]
        torch.testing.assert_close(
            got["resid_post.2"][row][got.mask[row]], alone, atol=1e-5, rtol=1e-5
        )


def test_stop_at_layer_reads_the_stream_into_it_and_refuses_what_lies_beyond() -> None:
    model = interp.Model(build("llama"))
    acts = interp.capture(model, IDS, ["resid_pre.*", "z.*"], stop_at_layer=1)
    assert {str(site) for site in acts} == {"resid_pre.0", "resid_pre.1", "z.0"}
    with pytest.raises(SiteNotFound, match="beyond stop_at_layer=1"):
        interp.capture(model, IDS, ["z.0", "z.2"], stop_at_layer=1)
    with pytest.raises(InterpError, match="expected 0 to 3"):
        interp.capture(model, IDS, "z.*", stop_at_layer=9)


def test_records_behave_as_mappings() -> None:
    acts = interp.capture(interp.Model(build("llama")), IDS, "resid_post.*")
    assert acts.get("z.0") is None
    assert "nonsense" not in acts
    assert acts["resid_post.-1"] is acts["resid_post.2"]
    assert acts == acts
    assert isinstance(hash(acts), int)


def test_weights_offloaded_to_disk_are_read_like_any_others(tmp_path: Path) -> None:
    plain = interp.Model(build("llama"))
    plain.module.save_pretrained(tmp_path / "m")
    devices = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    model = interp.load(tmp_path / "m", device_map=devices, offload_folder=str(tmp_path / "o"))
    sites = ["resid_post.*", "head_out.1", "mlp_post.2"]
    expected, got = (interp.capture(m, IDS, sites) for m in (plain, model))
    for site in expected:
        torch.testing.assert_close(got[site], expected[site], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        interp.logit_lens(model, IDS).top_logprob, interp.logit_lens(plain, IDS).top_logprob
    )
    with pytest.raises(InterpError, match="offloaded"):
        interp.logit_attribution(model, IDS, 5)
