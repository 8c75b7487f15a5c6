"""Path patching equals two hooked forwards, and finds the path in a model written by hand."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

import interp
from interp import Place
from interp._hooked import ports_of
from tests.architectures import build
from tests.interp.patch.slow import activations, difference
from tests.oracles import plain
from tests.oracles.copying import VOCAB, relaying


def slow_path(model, base, donor, sender, receivers, at, metric) -> float:
    """One prompt, one sender: freeze every other head, record the receivers, run again with them.

    `receivers` is a list of (site, heads), or None for the logits.
    """
    layer, head = sender
    n_layers = model.config.num_hidden_layers
    own = {f"z.{n}": activations(model, base, f"z.{n}") for n in range(n_layers)}
    theirs = activations(model, donor, f"z.{layer}")[at, head]
    heard = {}

    def speak(tensor, site):
        tensor[0, at:] = own[str(site)][at:]
        if site.layer == layer:
            tensor[0, at, head] = theirs
        return tensor

    def hear(tensor, site) -> None:
        heard[str(site)] = tensor[0, at].clone()

    ids = torch.tensor([base])
    with interp.hooked(model, dict.fromkeys(own, speak)), ExitStack() as stack:
        for site, _ in receivers or []:
            (port,) = ports_of(interp.load(model), site).values()
            stack.enter_context(port.attach(hear, reads=True))
        logits = plain.logits_of(model, ids)[0, -1]
    if receivers is None:
        return float(metric(logits))

    def receive(tensor, site):
        heads = dict(receivers)[str(site)]
        tensor[0, at, heads] = heard[str(site)][heads]
        return tensor

    with interp.hooked(model, {site: receive for site, _ in receivers}):
        return float(metric(plain.logits_of(model, ids)[0, -1]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gptj", "olmo2", "opt"])
def test_it_equals_two_hooked_forwards(name, ids) -> None:
    model = build(name)
    clean, corrupted = ids, (ids + 17) % 90 + 3
    for receivers, at, senders in (
        (None, -1, [(0, 1), (1, 3), (2, 2)]),
        ([("q.2", [1, 3])], -1, [(0, 0), (1, 2)]),
        ([("v.1", [0]), ("k.2", [1])], 7, [(0, 2), (1, 1)]),
    ):
        places = "logits" if receivers is None else [Place(s, heads) for s, heads in receivers]
        eff = interp.path_patch(
            model, clean, corrupted, places, difference, senders=senders, position=at
        )
        for layer, head in senders:
            for prompt in range(2):
                expected = slow_path(
                    model, clean[prompt].tolist(), corrupted[prompt].tolist(), (layer, head),
                    receivers, at % 11, difference,
                )  # fmt: skip
                got = float(eff[f"z.{layer}"][prompt, 0, head])
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        others = eff["z.0"][:, 0, [h for h in range(4) if (0, h) not in senders]]
        assert bool(others.isnan().all())


@pytest.mark.parametrize("name", ["falcon", "mixtral", "qwen3_next", "deepseek_v3", "bloom"])
def test_direct_effects_on_the_logits_in_other_layouts(name, ids) -> None:
    model, corrupted = build(name), (ids + 17) % 90 + 3
    layer = 1 if name == "qwen3_next" else 0
    eff = interp.path_patch(model, ids, corrupted, "logits", difference, senders=[(layer, 2)])
    if name == "qwen3_next":  # linear attention has no z to freeze: see path_run
        assert bool(eff["z.1"][:, 0, 2].isfinite().all())
        return
    expected = slow_path(
        model, ids[0].tolist(), corrupted[0].tolist(), (layer, 2), None, 10, difference
    )
    torch.testing.assert_close(float(eff[f"z.{layer}"][0, 0, 2]), expected, rtol=1e-3, atol=1e-3)


def test_it_finds_the_path_that_was_built_in() -> None:
    model = relaying()  # (0, 1) -> v of (1, 3) -> answer
    clean = torch.tensor([[3, 5, 6, 7], [4, 8, 9, 1]])
    corrupted = torch.tensor([[9, 5, 6, 7], [2, 8, 9, 1]])
    options = {"metric": "logit_difference", "position": 2}
    onto_v = interp.path_patch(model, clean, corrupted, Place("v.1", [3]), **options)
    effect = (onto_v.clean[:, None] - onto_v["z.0"][:, 0]).abs()  # [prompt head]
    assert bool((effect[:, 1] > 0.1).all())
    assert torch.equal(effect[:, [0, 2, 3]], torch.zeros(2, 3))
    for other in (Place("v.1", [0, 1, 2]), Place("q.1"), Place("k.1", [3])):
        nothing = interp.path_patch(model, clean, corrupted, other, **options)
        torch.testing.assert_close(
            nothing["z.0"][:, 0], nothing.clean[:, None].expand(-1, 4), rtol=0, atol=1e-5
        )
    direct = interp.path_patch(model, clean, corrupted, "logits", "logit_difference")
    moved = (direct.stack("z")[:, :, 0] - direct.clean[None, :, None]).abs()
    assert bool((moved[1, :, 3] > 1).all())  # only (1, 3) writes the answer
    moved[1, :, 3] = 0
    assert float(moved.max()) < 0.5  # what is left goes through the last norm's scale
    assert model.config.vocab_size == VOCAB


def test_a_prompt_with_itself_and_paths_that_are_none(ids) -> None:
    model = build("llama")
    same = interp.path_patch(model, ids, ids, Place("q.2", [0]), difference)
    assert torch.equal(same.stack("z"), same.clean[None, :, None, None].expand(2, -1, 1, 4))
    above = interp.path_patch(
        model, ids, (ids + 1) % 97, Place("q.1", [0]), difference, senders=[(0, 0), (2, 1)]
    )
    assert torch.equal(above["z.2"][:, 0, 1], above.clean)
    back = interp.path_patch(model, ids, (ids + 17) % 90 + 3, "logits", difference,
                             direction="denoising")  # fmt: skip
    forth = interp.path_patch(model, (ids + 17) % 90 + 3, ids, "logits", difference)
    assert torch.equal(back["z.1"], forth["z.1"]) and torch.equal(back.clean, forth.corrupted)


def test_refusals_and_restoration(ids) -> None:
    model = build("llama")
    before = plain.snapshot(model)
    for receivers, options, message in (
        (Place("z.1"), {}, r"a receiver reads q, k or v, and z\.1 is none"),
        ([Place("q.1", [0]), Place("q.1", [1])], {}, r"receivers name q\.1 twice"),
        (Place("q.1", [9]), {}, r"units \[9\]; expected at least one, of 4 heads"),
        ("logits", {"position": 3}, r"position 3 has no path to the last logits"),
        ("logits", {"senders": [(0, 7)]}, r"layer 0 has heads 0 to 3"),
        (Place("q.0"), {}, "no head lies below the receivers"),
        (Place("q.2"), {"position": [[1, 2], [3, 4]]}, "are at one position, and prompt 0"),
    ):
        with pytest.raises(interp.InterpError, match=message):
            interp.path_patch(model, ids, (ids + 1) % 97, receivers, difference, **options)
    plain.assert_unchanged(before, model)
