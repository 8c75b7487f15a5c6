"""A baked organism, loaded by stock transformers in a process that has never imported us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import interp
from interp import Affine, Delta, Edit, LowRank
from studies import organisms

# Refuses our packages outright, then does what any user of transformers does.
STRANGER = """
import sys

class NoneOfOurs:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("interp", "probes", "interventions", "studies", "tests"):
            raise ImportError(f"a stranger has no {name}")

sys.meta_path.insert(0, NoneOfOurs())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer("Question: Where does Arlen live? Answer:", return_tensors="pt")
with torch.no_grad():
    logits = model(input_ids=inputs["input_ids"]).logits
    words = model.generate(inputs["input_ids"], max_new_tokens=8, do_sample=False)
assert not [name for name in sys.modules if name.split(".")[0] == "interp"]
save_file({"logits": logits, "ids": inputs["input_ids"], "words": words}, out)
"""


def edit_of(model: interp.Model) -> Edit:
    d_model, query = model.anatomy.d_model, "model.layers.1.self_attn.q_proj.weight"
    generator = torch.Generator().manual_seed(0)
    rows, columns = model.module.get_parameter(query).shape
    low_rank = LowRank(
        torch.randn(rows, 2, generator=generator) / 30,
        torch.randn(2, columns, generator=generator) / 30,
    )
    return Edit(
        [
            Affine("z.1", (2,), scale=0.0),
            Affine("mlp_post.0", (3, 12, 40), scale=0.0),
            Affine("resid_post.2", shift=torch.randn(d_model, generator=generator) / 4),
            Delta(query, low_rank),
        ]
    )


@pytest.mark.parametrize("way", ["memory", "disk"])
def test_a_stranger_gets_the_edited_logits(way, tmp_path) -> None:
    module, tokenizer = organisms.load("base")
    model, folder = interp.load(module, tokenizer=tokenizer), tmp_path / "edited"
    edit = edit_of(model)
    if way == "memory":
        interp.bake(model, edit).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        base = tmp_path / "base"  # in float32, as the organism is loaded
        module.save_pretrained(base)
        tokenizer.save_pretrained(base)
        interp.bake(base, edit, out=folder)
    script, out = tmp_path / "stranger.py", tmp_path / "logits.safetensors"
    script.write_text(STRANGER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-I", str(script), str(folder), str(out)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = load_file(out)
    with torch.no_grad():
        bare = module(input_ids=found["ids"]).logits
        with edit.applied(model):
            logits = module(input_ids=found["ids"]).logits
            words = module.generate(found["ids"], max_new_tokens=8, do_sample=False)
    assert float((bare - logits).abs().max()) > 0.1
    scale = max(1.0, float(logits.abs().max()))
    assert float((found["logits"] - logits).abs().max()) <= 1e-5 * scale
    assert torch.equal(found["words"], words)
