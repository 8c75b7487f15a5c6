"""Heads, neurons, steering and ablation as edits, against the same thing written by hand."""

from __future__ import annotations

import pytest
import torch

import interp
import interventions as iv
from tests.architectures import build
from tests.oracles import plain


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 97, (4, 7), generator=torch.Generator().manual_seed(1))


def changed(model, edit, ids) -> torch.Tensor:
    with edit.applied(model, prompt_len=ids.shape[1]):
        return plain.logits_of(model, ids)


def by_hand(model, functions, ids) -> torch.Tensor:
    with interp.hooked(model, functions):
        return plain.logits_of(model, ids)


def test_scaled_heads_are_scaled_columns_of_the_output_projection(ids) -> None:
    model, twin = build("llama"), build("llama")
    weight = twin.model.layers[1].self_attn.o_proj.weight
    vector = torch.rand(8)
    with torch.no_grad():
        weight[:, 16:24] *= 0.5
        weight[:, :8] *= vector
    edit = iv.scale_heads({(1, 2): 0.5, (1, 0): vector})
    assert len(edit) == 1  # one atom a layer
    torch.testing.assert_close(
        changed(model, edit, ids), plain.logits_of(twin, ids), rtol=1e-4, atol=1e-5
    )


def test_what_is_added_to_heads_goes_through_the_output_projection(ids) -> None:
    """z + v through W_O is W_O z + W_O v: a constant at attn_out."""
    model = build("llama")
    a, b = torch.randn(2, 8)
    weight = model.model.layers[1].self_attn.o_proj.weight.detach()
    constant = weight[:, 8:16] @ a + weight[:, 24:32] @ b
    edit = iv.add_to_heads({(1, 1): a, (1, 3): b})
    expected = by_hand(model, {"attn_out.1": lambda x, _s: x + constant}, ids)
    torch.testing.assert_close(changed(model, edit, ids), expected, rtol=1e-4, atol=1e-4)


def test_pruned_neurons_are_deleted_columns_of_the_down_projection(ids) -> None:
    model, twin = build("llama"), build("llama")
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight[:, [3, 40]] = 0
        twin.model.layers[2].mlp.down_proj.weight[:, 7] = 0
    edit = iv.prune_neurons({0: [3, 40], 1: [], 2: [7]})
    assert len(edit) == 2
    assert torch.equal(changed(model, edit, ids), plain.logits_of(twin, ids))


def test_steering_adds_a_vector_where_it_is_told(ids) -> None:
    model, vector = build("llama"), torch.randn(32)
    edit = iv.steer(["resid_post.0", "mlp_out.1"], vector, strength=-2.0, positions=(1, -1))

    def add(x, _site):
        y = x.clone()
        y[:, [1, 6]] += -2.0 * vector
        return y

    expected = by_hand(model, {"resid_post.0": add, "mlp_out.1": add}, ids)
    assert torch.equal(changed(model, edit, ids), expected)


def test_mean_ablation_puts_the_mean_over_real_tokens(ids) -> None:
    model = build("llama")
    prompts = [ids[0].tolist(), ids[1, :3].tolist()]
    acts = interp.capture(model, prompts, ["z.1", "mlp_out.2"])
    tokens = torch.cat([acts["z.1"][0], acts["z.1"][1, :3]])  # what padding added is no token
    mean = tokens.mean(dim=0)
    edit = iv.ablate("z.1", [2], method="mean", reference=acts)

    def put(z, _site):
        z = z.clone()
        z[:, :, 2] = mean[2]
        return z

    torch.testing.assert_close(changed(model, edit, ids), by_hand(model, {"z.1": put}, ids))
    whole = iv.ablate("mlp_out.2", method="mean", reference=acts)
    with whole.applied(model):
        seen = interp.capture(model, ids, "mlp_out.2")["mlp_out.2"]
    torch.testing.assert_close(seen.std(dim=(0, 1)), torch.zeros(32))


def test_resampling_gives_every_prompt_the_values_of_another(ids) -> None:
    model = build("llama")
    acts = interp.capture(model, ids, "z.1")
    edit = iv.ablate("z.1", [0, 3], method="resample", reference=acts, seed=3)
    with edit.applied(model):
        seen = interp.capture(model, ids, "z.1")["z.1"]
    assert torch.equal(seen[:, :, 1:3], acts["z.1"][:, :, 1:3])
    partners = [
        next(j for j in range(4) if torch.equal(seen[i, :, 0], acts["z.1"][j, :, 0]))
        for i in range(4)
    ]
    assert sorted(partners) == [0, 1, 2, 3]
    assert all(partner != i for i, partner in enumerate(partners))
    for i, partner in enumerate(partners):
        assert torch.equal(seen[i, :, 3], acts["z.1"][partner, :, 3])


def test_zero_ablation_of_a_stream_removes_it(ids) -> None:
    model = build("llama")
    expected = by_hand(model, {"attn_out.1": lambda x, _s: torch.zeros_like(x)}, ids)
    assert torch.equal(changed(model, iv.ablate("attn_out.1"), ids), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: iv.scale_heads({}), "expected a mapping"),
        (
            lambda: iv.scale_heads({(1, 0): torch.ones(8), (1, 1): torch.ones(7)}),
            r"layer 1.*widths \[7, 8\]",
        ),
        (lambda: iv.add_to_heads({(1, 0): torch.ones(2, 8)}), r"shape \[2, 8\]; expected a vector"),
        (lambda: iv.steer("resid_post.1", torch.ones(2, 3)), r"one vector, got shape \[2, 3\]"),
        (lambda: iv.ablate("z.1", method="mean"), "mean ablation needs values"),
        (lambda: iv.ablate("y.1"), "unknown site"),
    ],
)
def test_bad_requests_say_what_is_wrong(make, words) -> None:
    with pytest.raises(interp.InterpError, match=words):
        make()


def test_resampling_refuses_what_it_cannot_align(ids) -> None:
    model = build("llama")
    acts = interp.capture(model, [[1, 2, 3], [4, 5]], "z.1")
    with pytest.raises(interp.InterpError, match="2 to 3 tokens"):
        iv.ablate("z.1", method="resample", reference=acts)
    acts = interp.capture(model, [[1, 2, 3]], "z.1")
    with pytest.raises(interp.InterpError, match="at least two prompts"):
        iv.ablate("z.1", method="resample", reference=acts)
    moe = build("olmoe")
    acts = interp.capture(moe, ids, "mlp_post.1")
    with pytest.raises(interp.InterpError, match="mixture of experts"):
        iv.ablate("mlp_post.1", method="mean", reference=acts)
