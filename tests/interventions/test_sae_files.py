"""SAE folders: what SAELens itself wrote and computed, and other libraries' layouts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import interventions as iv
from interp import InterpError

D, M, K = 6, 10, 3


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(pre: Tensor, k: int) -> Tensor:
    """Token by token."""
    z = torch.zeros_like(pre)
    for t, row in enumerate(pre):
        for j in row.argsort(descending=True)[:k].tolist():
            z[t, j] = max(float(row[j]), 0.0)
    return z


@pytest.mark.parametrize("name", ["standard", "topk", "topk_rescaled", "jumprelu", "gated"])
def test_it_computes_what_saelens_computes(name: str, assets: Path, tmp_path: Path):
    folder = assets / "saelens-6.54.12" / name
    if not folder.is_dir():
        pytest.skip("needs the optional assets in ../shared/assets/saelens-6.54.12")
    expected = load_file(folder / "expected.safetensors")
    sae = iv.load_sae(folder)
    assert (sae.site, sae.model) == ("resid_post.2", "stories260K")
    again = iv.load_sae(sae.save(tmp_path / "again"))
    for one in (sae, again, iv.load_sae(folder / "sae_weights.safetensors")):
        latents = one.encode(expected["x"])
        torch.testing.assert_close(latents, expected["latents"], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(
            one.decode(latents), expected["reconstruction"], atol=2e-5, rtol=1e-4
        )
    assert all(torch.equal(t, again.tensors[n]) for n, t in sae.tensors.items())
    assert (again.kind, again.k, again.site) == (sae.kind, sae.k, sae.site)


def test_what_is_written_is_saelens_own_layout(assets: Path, tmp_path: Path):
    """The keys and tensors that SAELens wrote for a topk SAE are all there, with its types."""
    folder = assets / "saelens-6.54.12" / "topk"
    if not folder.is_dir():
        pytest.skip("needs the optional assets in ../shared/assets/saelens-6.54.12")
    theirs = json.loads((folder / "cfg.json").read_text())
    iv.load_sae(folder).save(tmp_path / "ours")
    ours = json.loads((tmp_path / "ours" / "cfg.json").read_text())
    for key, value in theirs.items():
        if key != "metadata":
            assert ours[key] == value
    for key in ("model_name", "hook_name"):
        assert ours["metadata"][key] == theirs["metadata"][key]
    assert tuple(int(n) for n in ours["metadata"]["sae_lens_version"].split(".")) >= (6, 0, 0)
    files = [load_file(f / "sae_weights.safetensors") for f in (folder, tmp_path / "ours")]
    assert {n: t.shape for n, t in files[0].items()} == {n: t.shape for n, t in files[1].items()}


@pytest.mark.parametrize(
    ("name", "site"),
    [("layers.3", "resid_post.3"), ("layers.3.mlp", "mlp_out.3"), ("embed_tokens", "embed"),
     ("h.2.attn", "attn_out.2"), ("layers.3.mlp.gate", None)],
)  # fmt: skip
def test_sparsify(name: str, site: str | None, tmp_path: Path):
    """encoder.weight [M, D] is transposed, W_dec is not, and the folder's name tells the site."""
    folder = tmp_path / name
    folder.mkdir()
    enc, dec = drawn(M, D, seed=1), drawn(M, D, seed=2)
    bias, b_dec = drawn(M, seed=3), drawn(D, seed=4)
    save_file(
        {"encoder.weight": enc, "encoder.bias": bias, "W_dec": dec, "b_dec": b_dec},
        folder / "sae.safetensors",
    )
    config = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "k": K}
    config |= {"num_latents": 0, "multi_topk": False, "skip_connection": False, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": D}))
    sae = iv.load_sae(folder)
    x = drawn(5, D, seed=5)
    z = by_hand((x - b_dec) @ enc.T + bias, K)
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae.reconstruct(x), z @ dec + b_dec)
    assert (sae.site, sae.k) == (site, K)
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": D, "transcode": True}))
    with pytest.raises(InterpError, match="sparsify coder with transcode"):
        iv.load_sae(folder)


def dictionary(kind: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """A state dict of dictionary_learning 0.1 and its config; no decoder row has norm 1."""
    enc, dec, bias, b = (drawn(*s, seed=i) for i, s in enumerate([(M, D), (D, M), (M,), (D,)]))
    config: dict[str, object] = {"layer": 2, "lm_name": "m", "submodule_name": "resid_post_layer_2"}
    linear = {"encoder.weight": enc, "decoder.weight": dec}
    plain = {"W_enc": enc.T, "b_enc": bias, "W_dec": dec.T, "b_dec": b}
    sparse = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.4)}
    held = {
        "JumpReluAutoEncoder": plain | {"threshold": drawn(M, seed=9).abs()},
        "MatryoshkaBatchTopKSAE": plain | sparse | {"group_sizes": torch.tensor([4, M - 4])},
        "GatedAutoEncoder": linear | {
            "decoder_bias": b, "r_mag": 0.3 * drawn(M, seed=9), "gate_bias": drawn(M, seed=10),
            "mag_bias": bias,
        },
        "AutoEncoder": linear | {"encoder.bias": bias, "bias": b},
        "AutoEncoderNew": linear | {"encoder.bias": bias, "decoder.bias": b},
        "AutoEncoderTopK": linear | {"encoder.bias": bias, "b_dec": b} | sparse,
        "BatchTopKSAE": linear | {"encoder.bias": bias, "b_dec": b} | sparse,
    }[kind]  # fmt: skip
    return {n: t.contiguous() for n, t in held.items()}, {"trainer": config | {"dict_class": kind}}


def dictionary_by_hand(kind: str, held: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction by the formulas of that library's classes."""
    b, threshold = held.get("b_dec", torch.zeros(D)), held.get("threshold", torch.zeros(M))
    if "W_enc" in held:
        matryoshka = kind == "MatryoshkaBatchTopKSAE"
        pre = ((x - b if matryoshka else x) @ held["W_enc"] + held["b_enc"]).relu()
        z = pre * (pre > threshold)
        return z, z @ held["W_dec"] + b
    enc, dec = held["encoder.weight"], held["decoder.weight"]
    if kind == "GatedAutoEncoder":
        projected = (x - held["decoder_bias"]) @ enc.T
        z = (held["r_mag"].exp() * projected + held["mag_bias"]).relu()
        z = z * (projected + held["gate_bias"] > 0)
        return z, z @ dec.T + held["decoder_bias"]
    if kind == "AutoEncoder":  # from_pretrained scales the decoder's columns to norm 1
        norm = dec.norm(dim=0)
        z = ((x - held["bias"]) @ (enc * norm[:, None]).T + held["encoder.bias"] * norm).relu()
        return z, z @ (dec / norm).T + held["bias"]
    if kind == "AutoEncoderNew":
        z = (x @ enc.T + held["encoder.bias"]).relu()
        return z, z @ dec.T + held["decoder.bias"]
    pre = ((x - b) @ enc.T + held["encoder.bias"]).relu()
    z = by_hand(pre, K) if kind == "AutoEncoderTopK" else pre * (pre > threshold)
    return z, z @ dec.T + b


@pytest.mark.parametrize(
    "kind",
    ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
     "GatedAutoEncoder", "AutoEncoder", "AutoEncoderNew"],
)  # fmt: skip
def test_dictionary_learning(kind: str, tmp_path: Path):
    held, config = dictionary(kind)
    torch.save(held, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = iv.load_sae(tmp_path)
    x = drawn(7, D, seed=20)
    z, reconstruction = dictionary_by_hand(kind, held, x)
    torch.testing.assert_close(sae.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x), reconstruction, atol=1e-5, rtol=1e-5)
    assert (sae.site, sae.model) == ("resid_post.2", "m")
    again = iv.load_sae(sae.save(tmp_path / "ours"))
    torch.testing.assert_close(again.encode(x), z, atol=1e-5, rtol=1e-5)
    assert again.kind == sae.kind


def test_a_dictionary_without_a_threshold_yet(tmp_path: Path):
    """-1 until step 1000 of a BatchTopK's training: every latent above 0."""
    held, config = dictionary("BatchTopKSAE")
    held["threshold"] = torch.tensor(-1.0)
    torch.save(held, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    x = drawn(7, D, seed=20)
    wanted, _ = dictionary_by_hand("BatchTopKSAE", held, x)
    torch.testing.assert_close(iv.load_sae(tmp_path).encode(x), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_no_dictionary_is_said(tmp_path: Path):
    held, config = dictionary("BatchTopKSAE")
    (tmp_path / "config.json").write_text(json.dumps(config))

    def fails(match: str, content: object) -> None:
        torch.save(content, tmp_path / "ae.pt")
        with pytest.raises(InterpError, match=match):
            iv.load_sae(tmp_path)

    fails("stopped at step 7, in the unit", {"step": 7, "ae": held, "norm_factor": 3.0})
    fails("no plain state dict; expected tensors by name", drawn(D, seed=1))
    fails("no plain state dict; expected tensors by name", {"W_enc": 1.0})
    fails("a batchtopk SAE has no threshold", {n: t for n, t in held.items() if n != "threshold"})
    partly = {"encoder.weight": drawn(M, D, seed=1), "encoder.bias": drawn(M, seed=2)}
    fails("a standard SAE has no W_dec", partly | {"bias": drawn(D, seed=3)})


def test_before_saelens_6(tmp_path: Path):
    """No metadata, and topk as an activation function of a standard SAE."""
    sae = iv.sae.random(D, M, K)
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    save_file({n: sae.tensors[n] for n in names}, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": M, "model_name": "gpt2"}
    config |= {"hook_name": "blocks.4.hook_mlp_out", "activation_fn_str": "topk"}
    config |= {"activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    read = iv.load_sae(tmp_path)
    assert (read.kind, read.k, read.site, read.model) == ("topk", K, "mlp_out.4", "gpt2")


def test_what_cannot_be_read_is_said(tmp_path: Path):
    sae = iv.sae.random(D, M, K, site="resid_post.1")
    folder = sae.save(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    weights = (folder / "sae_weights.safetensors").read_bytes()
    with pytest.raises(InterpError, match=r"nowhere is no SAE: expected cfg\.json with"):
        iv.load_sae(tmp_path / "nowhere")

    def fails(match: str, **changes: object) -> None:
        (folder / "cfg.json").write_text(json.dumps(config | changes))
        with pytest.raises(InterpError, match=match):
            iv.load_sae(folder)

    fails("holds 'transcoder', which is not an SAE of one site", architecture="transcoder")
    fails("nearest valid names: 'jumprelu'", architecture="jumpreluu")
    fails("wants its input normalised", normalize_activations="layer_norm")
    fails("says d_in 64, and its weights have 6", d_in=64)
    fails("half written: a jumprelu SAE has no threshold", architecture="jumprelu")
    fails("takes 1 to that", k=M + 1)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InterpError, match=r"cfg\.json is damaged"):
        iv.load_sae(folder)
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "sae_weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InterpError, match="half written or damaged"):
        iv.load_sae(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(InterpError, match=r"half written: it has cfg\.json and no sae_weights"):
        iv.load_sae(folder)
    save_file(sae.tensors, folder / "sae_weights.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"k": "3", "metadata": ["odd"]}))
    with pytest.raises(InterpError, match="k='3' is no whole number"):
        iv.load_sae(folder)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(sae.tensors | {"W_dec": torch.ones(D, M)}, folder / "sae_weights.safetensors")
    with pytest.raises(InterpError, match=r"W_dec has shape \[6, 10\].* must be \[10, 6\]"):
        iv.load_sae(folder)
    save_file(sae.tensors | {"W_skip": torch.ones(D, D)}, folder / "sae_weights.safetensors")
    with pytest.raises(InterpError, match="holds W_skip, which a topk SAE does not have"):
        iv.load_sae(folder)
    broken = tmp_path / "theirs"
    broken.mkdir()
    (broken / "ae.pt").write_bytes(b"not a pickle")
    with pytest.raises(InterpError, match="damaged or no plain state dict"):
        iv.load_sae(broken)


def test_saving_never_deletes_what_is_not_an_sae(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InterpError, match="holds other files"):
        iv.sae.random(D, M, K).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    folder = iv.sae.random(D, M, K).save(tmp_path / "sae")
    iv.sae.random(D, M, K, seed=1).save(folder)  # an earlier one is replaced
    assert torch.equal(iv.load_sae(folder).W_dec, iv.sae.random(D, M, K, seed=1).W_dec)


def test_another_width_is_said():
    sae = iv.sae.random(D, M, K, site="resid_post.1")
    with pytest.raises(InterpError, match=r"reads 6 numbers a token, and the given .* have 4"):
        sae.encode(torch.zeros(2, 4))
    with pytest.raises(InterpError, match="nearest valid names: 'topk'"):
        iv.SAE("top_k", sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)
    with pytest.raises(InterpError, match="needs threshold"):
        iv.SAE("jumprelu", sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)
    with pytest.raises(InterpError, match="W_dec of this SAE holds NaN"):
        iv.SAE("topk", sae.W_enc, sae.W_dec * torch.nan, sae.b_enc, sae.b_dec, k=1)


def test_the_identity_is_exact():
    x = 1e3 * drawn(50, D, seed=6)
    assert torch.equal(iv.sae.identity(D).reconstruct(x), x)
