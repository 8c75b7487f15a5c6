"""Steered generation by hooks and baked, beside the peers; baking a checkpoint on disk."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._models import ARCHITECTURES, PARTS, build, describe, random_ids
from benchmarks._peers import Peers
from benchmarks._report import Report, Section, row_of
from interp import Affine, Delta, Dense, Edit, LowRank
from interp._weights.checkpoint import open_checkpoint

BARE = "generate, no edit"
COPY = "copying the files"
PROMPT, NEW = 32, 32
HEADS, FACTOR = (2, 5), 0.5
NOTES = f"""\
Generation: {NEW} greedy tokens after a prompt of {PROMPT}, with the cache of keys and values. The
edit adds a vector to the residual stream after the middle block and halves two heads of the block
before; it is put on and taken off inside every measured call. Everyone gives the same tokens (last
column: the largest difference of a token id to ours). transformer-lens generates with its own
attention. Promised: hooks at most 1.05 times the unedited generation, the baked model 1.00 times.
The baked llama has the biases of the form that could take the vector, which are additions of their
own; GPT-2 has them already.
On disk: random bfloat16 weights of Qwen2.5-1.5B's shapes (3 GB), baked without the check of the
logits, which loads the model, beside copying its files within the page cache. 'peak growth' is
what one bake adds to the peak of a process of its own; the largest single tensor, the embedding,
has 445 MiB and is in no case edited; the largest that is has 26 MiB."""


def edit_of(model: PreTrainedModel) -> Edit:
    """A vector in the middle of the stream, and two heads halved in the block before."""
    middle, d_model = model.config.num_hidden_layers // 2, model.config.hidden_size
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
    return Edit(
        [Affine(f"z.{middle - 1}", HEADS, FACTOR), Affine(f"resid_post.{middle}", shift=vector)]
    )


def contestants(model: PreTrainedModel, ids: Tensor, peers: Peers) -> list[Contestant]:
    """Everyone, the reference first; what they return are token ids."""
    edit, handle = edit_of(model), interp.Model(model)
    greedy = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    baked = interp.bake(handle, edit)

    def tokens(module: Any) -> Tensor:
        attention_mask = torch.ones_like(ids)
        return module.generate(ids, attention_mask=attention_mask, generation_config=greedy)

    def hooked() -> Held:
        with edit.applied(handle):
            return steered(tokens(model))

    def bare() -> Held:
        tokens(model)
        return Held()

    traced = _Traced(model)
    return [
        Contestant(BARE, bare),
        Contestant("the same again (control)", bare),
        Contestant("interp: edit.applied", hooked, target=(1.05, 1.10)),
        Contestant("interp: baked", lambda: steered(tokens(baked)), target=(1.00, 1.05)),
        Contestant("torch hooks", lambda: steered(_by_hand(model, edit, partial(tokens, model)))),
        Contestant("transformer-lens hooks", lambda: steered(_bridged(peers, edit, ids))),
        Contestant("nnsight generate", lambda: steered(traced.generate(edit, ids))),
    ]


def steered(tokens: Tensor) -> Held:
    """Token ids, where they can be compared."""
    return Held({"tokens": tokens.detach().float()})


def _by_hand(model: PreTrainedModel, edit: Edit, generate: Callable[[], Tensor]) -> Tensor:
    heads, stream = edit.affines
    assert stream.shift is not None and heads.site.layer is not None
    parts, factor = PARTS[model.config.model_type], _factor(model)
    blocks: Any = model.get_submodule(parts.blocks)
    handles = [
        blocks[heads.site.layer]
        .get_submodule(parts.o_proj)
        .register_forward_pre_hook(lambda _module, args: (args[0] * factor,)),
        blocks[stream.site.layer].register_forward_hook(
            lambda _module, _args, output: output + stream.shift
        ),
    ]
    try:
        return generate()
    finally:
        for handle in handles:
            handle.remove()


def _factor(model: PreTrainedModel) -> Tensor:
    """What the output projection's input is multiplied by."""
    width = model.config.hidden_size // model.config.num_attention_heads
    factor = torch.ones(model.config.num_attention_heads, width)
    factor[list(HEADS)] = FACTOR
    return factor.flatten()


def _bridged(peers: Peers, edit: Edit, ids: Tensor) -> Tensor:
    heads, stream = edit.affines

    def halve(z: Tensor, **_hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, list(HEADS)] *= FACTOR
        return z

    hooks = [
        (heads.site.hook_name, halve),
        (stream.site.hook_name, lambda resid, **_hook: resid + stream.shift),
    ]
    with peers.bridge.hooks(fwd_hooks=hooks):
        return peers.bridge.generate(
            ids,
            max_new_tokens=NEW,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
        )


class _Traced:
    """nnsight over a copy, with its own generation."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._module, self._factor = model, _factor(model)

    @cached_property
    def _model(self) -> Any:
        import nnsight
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(  # asked for, and never used on ids
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a"
        )
        own = copy.deepcopy(self._module)
        own.generation_config.pad_token_id, own.generation_config.eos_token_id = 0, None
        return nnsight.TransformersModel(own, tokenizer=tokenizer, task="text-generation")

    def generate(self, edit: Edit, ids: Tensor) -> Tensor:
        """The steered tokens."""
        import nnsight

        heads, stream = edit.affines
        parts = PARTS[self._module.config.model_type]
        with self._model.generate(ids, max_new_tokens=NEW, do_sample=False) as tracer:
            blocks = self._model.get(parts.blocks)
            before = blocks[heads.site.layer].get(parts.o_proj)
            block = blocks[stream.site.layer]
            for _step in tracer.iter[:NEW]:
                before.input = before.input * self._factor
                block.output = block.output + stream.shift
            result = nnsight.save(tracer.result)
        return result


def disk_edits(base: Path, tuned: Path) -> dict[str, Edit]:
    """Edits of a checkpoint of `benchmarks.diff.generate`, by what they do."""
    stored = [open_checkpoint(path).tensors for path in (base, tuned)]
    config = json.loads((base / "config.json").read_text())
    layers, d_model = config["num_hidden_layers"], config["hidden_size"]
    matrices = [n for n, s in stored[0].items() if ".layers." in n and len(s.shape) == 2]
    few = [Affine(f"mlp_post.{i}", tuple(range(i, i + 100)), 0.0) for i in range(layers)]
    few += [Affine(f"z.{i}", (1, 2), 0.0) for i in range(layers)]
    generator = torch.Generator().manual_seed(0)
    low = []
    for name in matrices:
        rows, columns = stored[0][name].shape
        left = torch.randn(rows, 16, generator=generator) / 64
        low.append(Delta(name, LowRank(left, torch.randn(16, columns, generator=generator) / 64)))
    return {
        "100 neurons and 2 heads a layer": Edit(few),
        "a vector in the stream, so as a Llama with biases": Edit(
            [Affine("resid_post.10", shift=torch.ones(d_model))]
        ),
        "rank 16 on every matrix": Edit(low),
        "half a task vector on every matrix": Edit(
            [Delta(n, Dense(stored[1][n], stored[0][n], 0.5)) for n in matrices]
        ),
    }


def on_disk(folder: Path, name: str) -> list[Contestant]:
    """Copying the files, and baking; what is written is removed inside the call, by everyone."""
    from benchmarks.diff.generate import generate

    base, tuned = generate(folder, name)
    out = folder / "out"

    def copied() -> Held:
        shutil.copytree(base, out)
        shutil.rmtree(out)
        return Held()

    def bake(edit: Edit) -> Held:
        interp.bake(base, edit, out=out, verify=False)
        shutil.rmtree(out)
        return Held()

    found = [Contestant(COPY, copied), Contestant(f"{COPY} again (control)", copied)]
    edits = disk_edits(base, tuned)
    return found + [Contestant(f"interp.bake: {w}", partial(bake, e)) for w, e in edits.items()]


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; a third of the time for each section."""
    report = Report("bake", NOTES)
    for architecture in ARCHITECTURES:
        model = build(architecture, tiny=quick)
        everyone = contestants(model, random_ids(model, 1, PROMPT), Peers(model))
        gaps = disagreement(everyone)
        timing = alternate(everyone, seconds=seconds / 3, rounds=(3, 3) if quick else (16, 200))
        section = Section(f"{describe(model)}; {PROMPT} + {NEW} tokens", BARE, timing)
        for one in everyone:
            section.rows.append(row_of(one, timing, BARE) | {"max_difference": gaps.get(one.name)})
        report.sections.append(section)
    if quick:
        return report
    with tempfile.TemporaryDirectory(prefix="interp-bake-") as scratch:
        writers = on_disk(Path(scratch), "1.5b")
        timing = alternate(writers, seconds=seconds / 3, rounds=(3, 30))
        section = Section("1.5 B parameters in bfloat16, on disk", COPY, timing)
        for one in writers:
            row = row_of(one, timing, COPY)
            if one.name.startswith("interp"):
                row["peak_growth_bytes"] = _peak_of(Path(scratch), one.name)
            section.rows.append(row)
        report.sections.append(section)
    return report


def _peak_of(scratch: Path, contestant: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bake", str(scratch), contestant],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    from benchmarks._memory import peak_growth

    everyone = {one.name: one for one in on_disk(Path(sys.argv[1]), "1.5b")}
    nothing = Contestant("nothing", Held)
    print(peak_growth(everyone[sys.argv[2]], nothing))
