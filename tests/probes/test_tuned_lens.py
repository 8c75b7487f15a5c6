import pytest
import torch

import interp
import probes
from tests.architectures import build
from tests.oracles import tokenizers


def texts(n: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (12,), generator=generator).tolist() for _ in range(n)]


def fit(name: str = "llama", **options: object) -> probes.TunedLens:
    model = interp.Model(build(name))
    return probes.tuned_lens(
        model, texts(40), batch_size=8, tokens_per_step=64, progress=False, **options
    )


def test_fitted_lens_reads_held_out_text_better_than_the_raw_lens_at_every_layer() -> None:
    got = fit(steps=30)
    assert bool((got.tuned_kl < got.raw_kl).all())
    assert got.table()["layer"].tolist() == [0, 1, 2]


def test_training_improves_on_the_closed_form() -> None:
    assert float(fit(steps=80).tuned_kl.mean()) < float(fit(steps=0).tuned_kl.mean())


def test_ridge_start_is_exact_where_the_last_stream_is_linear_in_an_earlier_one() -> None:
    # With all projections back into the stream at zero, every layer's stream is the last one.
    module = build("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    got = probes.tuned_lens(interp.Model(module), texts(40), steps=0, batch_size=8, progress=False)
    eye = torch.eye(32).expand(3, 32, 32)
    torch.testing.assert_close(got.lens.weight, eye, atol=2e-2, rtol=0)
    torch.testing.assert_close(got.raw_kl, torch.zeros(3), atol=1e-5, rtol=0)


def test_the_model_is_bit_identical_afterwards_and_the_seed_decides() -> None:
    module = build("gpt2")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first, second = (
        probes.tuned_lens(interp.Model(module), texts(20), steps=3, seed=s, progress=False)
        for s in (1, 1)
    )
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(first.lens.weight, second.lens.weight)


def test_saved_lens_loads(tmp_path: object) -> None:
    got = fit(steps=0)
    folder = got.save(f"{tmp_path}/lens")
    loaded = interp.LinearLens.load(folder)
    assert torch.equal(loaded.weight, got.lens.weight)
    assert loaded.kind == "tuned"


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(interp.InterpError, match="at least ten"):
        probes.tuned_lens(interp.Model(build("llama")), texts(3))


def test_one_text_is_not_read_letter_by_letter() -> None:
    model = interp.Model(build("llama", vocab_size=128), tokenizers.byte_level())
    with pytest.raises(interp.InterpError, match="texts is one text; give a list of texts"):
        probes.tuned_lens(model, "The capital of France is Paris")
