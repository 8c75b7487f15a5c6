"""What nnsight reads equals what we read, here and by the path that goes to a server."""

from __future__ import annotations

import pickletools
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import interp
from interp._ports import ModulePort, open_port
from interp._resolve import anatomy_of
from interp._site import KINDS
from interp.adapters import nnsight as through
from interp.adapters._traced import open_traced
from tests.architectures import build
from tests.oracles.layout import EVERY
from tests.oracles.tokenizers import byte_level

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
TEXTS = ["The capital is", "ab New York"]
MEASURED = ("logprob", "kl", "entropy", "top_logprob", "answer_logprob")


def readable(model) -> list[interp.Site]:
    """Every site that is a module's input or output."""
    found = []
    for kind in KINDS:
        for layer in [None] if kind == "embed" else range(model.config.num_hidden_layers):
            site = interp.Site(kind, layer)
            try:
                port = open_port(anatomy_of(model), site)
            except interp.UnsupportedSite:
                continue
            found += [site] if isinstance(port, ModulePort) else []
    return found


def assert_same_trace(given, expected) -> None:
    for name in MEASURED:
        torch.testing.assert_close(
            getattr(given, name), getattr(expected, name), rtol=1e-4, atol=1e-5, equal_nan=True
        )
    for name in ("rank", "top_token", "answer_token", "prompt", "position", "token"):
        assert torch.equal(getattr(given, name), getattr(expected, name)), name
    assert (given.answers, given.tokens) == (expected.answers, expected.tokens)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint with its tokenizer on disk: post-norms, scaled embedding, softcaps."""
    path = tmp_path_factory.mktemp("gemma2")
    tokenizer = byte_level()
    build("gemma2", vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def without_weights(checkpoint):
    import nnsight

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = nnsight.TransformersModel(str(checkpoint), task="text-generation", tokenizer=tokenizer)
    assert all(parameter.is_meta for parameter in model._module.parameters())
    return model


@pytest.mark.parametrize("name", EVERY)
def test_capture_equals_ours_bit_for_bit(name) -> None:
    model = build(name)
    sites = readable(model)
    ours = interp.capture(model, PROMPTS, sites)
    theirs = through.capture(model, PROMPTS, sites)
    assert set(theirs) == set(sites)
    for site in sites:
        assert torch.equal(theirs[site], ours[site]), site
    assert torch.equal(theirs.tokens, ours.tokens) and torch.equal(theirs.mask, ours.mask)


@pytest.mark.parametrize(
    ("name", "positions"), [("gpt2", "last"), ("opt", 2), ("falcon-new", [0, -2])]
)
def test_positions_count_real_tokens(name, positions) -> None:
    model = build(name)
    sites = ["resid_mid.1"] if name != "falcon-new" else []
    sites += ["q.2", "mlp_post.0", "mlp_out.1", "resid_post.*"]
    ours = interp.capture(model, PROMPTS, sites, positions=positions)
    theirs = through.capture(model, PROMPTS, sites, positions=positions, dtype=torch.float64)
    for site in ours:
        assert torch.equal(theirs[site], ours[site].double()), site
    assert torch.equal(theirs.tokens, ours.tokens)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("gpt2", None),
        ("cohere", [[3, 4], [5, 6]]),
        ("gemma2", [[[3, 7], [4, 8]]] * 2),
        ("granite", [[[3, 7], 4]] * 2),
        ("opt-projected", [[3, 4], [5, 6]]),
    ],
)
def test_lens_equals_ours(name, answers) -> None:
    model = build(name)
    given = through.logit_lens(model, PROMPTS, answers, top_k=3)
    assert_same_trace(given, interp.logit_lens(model, PROMPTS, answers, top_k=3))


def test_lens_at_every_position() -> None:
    model = build("qwen3")
    given = through.logit_lens(model, PROMPTS, [[[3, 7]]] * 2, positions="all")
    assert_same_trace(given, interp.logit_lens(model, PROMPTS, [[[3, 7]]] * 2, positions="all"))
    assert bool(given.answer_logprob.isnan().all())


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_the_model_is_neither_wrapped_nor_copied(name, ids) -> None:
    model = build(name)
    with torch.no_grad():
        logits = model(ids).logits
    keys = list(model.state_dict())
    attributes = [(path, set(vars(m))) for path, m in model.named_modules()]
    held = {id(parameter) for parameter in model.parameters()}
    through.capture(model, ids, "resid_post.*")
    with pytest.raises(interp.UnsupportedSite):
        through.capture(model, ids, "pattern.0")
    assert [(path, set(vars(m))) for path, m in model.named_modules()] == attributes
    assert list(model.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    shell = open_traced(model, False).envoy._module
    assert shell is not model
    assert {id(parameter) for parameter in shell.parameters()} == held


def test_an_nnsight_model_that_the_user_made(ids) -> None:
    import nnsight

    model = build("llama")
    ours = interp.capture(model, ids, ["z.*", "resid_post.*"])
    wrapped = nnsight.NNsight(model)
    theirs = through.capture(wrapped, ids, ["resid_post.*", "z.*"])
    assert all(torch.equal(theirs[site], ours[site]) for site in ours)
    with pytest.raises(interp.InterpError, match="names no checkpoint"):
        through.capture(wrapped, ids, "z.0", remote=True)


@pytest.mark.parametrize("remote", [False, "local"])
def test_a_model_without_weights_here(checkpoint, remote) -> None:
    """`"local"` sends the block's source through nnsight's serializer with our package hidden."""
    model = interp.load(checkpoint)
    sites = ["embed", "resid_post.*", "resid_mid.1", "attn_out.1", "z.1", "mlp_post.0", "q.2"]
    ours = interp.capture(model, TEXTS, sites)
    theirs = through.capture(without_weights(checkpoint), TEXTS, sites, remote=remote)
    for site in ours:
        torch.testing.assert_close(theirs[site], ours[site], rtol=0, atol=1e-6)
    assert torch.equal(theirs.tokens, ours.tokens)
    given = through.logit_lens(
        without_weights(checkpoint), TEXTS, [[" Paris Rome", " Rome"]] * 2, remote=remote
    )
    assert_same_trace(given, interp.logit_lens(model, TEXTS, [[" Paris Rome", " Rome"]] * 2))


@pytest.mark.parametrize("remote", [True, "local", "https://ndif.example"])
def test_remote_is_passed_on_unchanged(checkpoint, remote, monkeypatch) -> None:
    import nnsight
    from nnsight.intervention.backends.local import LocalSimulationBackend

    seen = []

    def backend(self, where, *_args):
        seen.append(where)
        return LocalSimulationBackend(self)

    monkeypatch.setattr(nnsight.TransformersModel, "_remote_backend", backend)
    for model in (checkpoint, without_weights(checkpoint), interp.load(checkpoint)):
        acts = through.capture(model, TEXTS, "resid_post.1", remote=remote)
        assert acts.meta["remote"] == remote
    assert seen == [remote] * 3


def test_nothing_of_ours_is_in_what_is_sent(checkpoint, monkeypatch) -> None:
    """The server has no `interp`; naming it in the payload would fail there."""
    from nnsight.schema.request import RequestModel

    sent = []
    original = RequestModel.serialize

    def serialize(tracer, *args, **options):
        sent.append(original(tracer, compress=False))
        return original(tracer, *args, **options)

    monkeypatch.setattr(RequestModel, "serialize", staticmethod(serialize))
    through.capture(without_weights(checkpoint), TEXTS, "resid_post.1", remote="local")
    through.logit_lens(without_weights(checkpoint), TEXTS, remote="local")
    assert len(sent) == 2
    words = [word for blob in sent for _, word, _ in pickletools.genops(blob)]
    assert not [w for w in words if isinstance(w, str) and w.split(".")[0] == "interp"]


REFUSED = [
    ("llama", "pattern.0", "no module's input or output"),
    ("llama", "head_out.0", "times the output projection's weight"),
    ("mixtral", "mlp_post.1", "neurons of experts"),
    ("gpt_neox", "resid_mid.1", "in parallel"),
    ("deepseek_v3", "q.1", "MLA"),
    ("qwen3_next", "z.0", "linear attention"),
]


@pytest.mark.parametrize(("name", "site", "reason"), REFUSED)
def test_sites_that_cannot_be_read_say_why(name, site, reason) -> None:
    with pytest.raises(interp.UnsupportedSite, match=reason):
        through.capture(build(name), PROMPTS, site)


def test_what_cannot_be_traced_is_refused(ids) -> None:
    model = build("llama")
    with pytest.raises(interp.SiteNotFound, match="resid_post"):
        through.capture(model, ids, "resid_pots.1")
    with pytest.raises(interp.InterpError, match="Linear has no Hugging Face config"):
        through.capture(torch.nn.Linear(2, 2), ids, "z.1")
    with pytest.raises(interp.InterpError, match="needs a tokenizer"):
        through.capture(model, ids, "z.1", remote="local")
    with (
        interp.hooked(model, {"z.1": lambda z, _site: z * 0}),
        pytest.raises(interp.InterpError, match="before their hooks run"),
    ):
        through.capture(model, ids, "z.1")
    with pytest.raises(interp.InterpError, match="top_k=98"):
        through.logit_lens(model, ids, top_k=98)
    with pytest.raises(interp.InterpError, match="remote=True"):
        through.capture(build("llama").to("meta"), ids, "z.1")
