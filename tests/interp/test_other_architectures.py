"""Architectures nobody wrote down are found by structure, or refused where structure misleads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp._selfcheck import verdicts
from tests.oracles import plain

_GQA: dict[str, Any] = {"num_key_value_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "apertus": _GQA,
    "arcee": _GQA,
    "biogpt": {},
    "cohere2": _GQA,
    "exaone4": _GQA,
    "gemma": {"num_key_value_heads": 1, "head_dim": 12},
    "glm": {**_GQA, "head_dim": 8},
    "gpt_bigcode": {},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global", "local", "global"], 1]]},
    "granitemoe": {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {**_GQA, "head_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3},
    "nemotron": _GQA,
    "olmo": {},
    "olmo3": _GQA,
    "persimmon": {},
    "seed_oss": _GQA,
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 3, "ffn_dim": 48},
}


def build(name: str, **options: Any) -> Any:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(name, **{**sizes, **options})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")  # optional kernels that are not installed
@pytest.mark.parametrize("name", list(OTHERS))
def test_an_architecture_nobody_wrote_down_passes_the_check(name, ids) -> None:
    model = interp.load(build(name, **OTHERS[name]))
    assert verdicts(model.anatomy) == {}
    sites = ["pattern.1", "v.1", "z.1", "resid_post.1", "mlp_post.1"]
    acts = interp.capture(model, ids, sites, logits=True)
    group = acts["z.1"].shape[2] // acts["v.1"].shape[2]
    values = acts["v.1"].repeat_interleave(group, dim=2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", acts["pattern.1"], values)
    torch.testing.assert_close(acts["z.1"], mixed, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.logits_of(model.module, ids), acts.logits)
    with interp.hooked(model, {"z.1": lambda z, site: z * 0}):
        edited = interp.capture(model, ids, ["head_out.1", "attn_out.1"], logits=True)
    assert float(edited["head_out.1"].abs().max()) == 0
    assert not torch.equal(edited.logits, acts.logits)


def test_an_unknown_order_in_a_common_projection_is_refused(ids) -> None:
    """CodeGen's lies in four parts of query, value, key; guessed as three blocks it is noise."""
    model = build("codegen", rotary_dim=4, n_inner=48)
    for kind in "qkv":
        with pytest.raises(interp.UnsupportedSite, match="pattern @ v misses z"):
            interp.capture(model, ids, f"{kind}.1")
    interp.capture(model, ids, ["z.1", "pattern.1", "head_out.1"])
