"""Patching every layer x position of one prompt, beside transformer-lens, nnsight and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._models import ARCHITECTURES, Parts, build, describe, random_ids
from benchmarks._peers import Peers
from benchmarks._plain import parts_of
from benchmarks._report import Report, Section, row_of

ANSWER, VERSUS = 5, 7
TOKENS = 64
THEIRS = "transformer-lens: get_act_patch_resid_pre"
NNSIGHT = "nnsight: one trace a patch"
NOTES = """\
resid_pre of every layer at every position of one corrupted prompt, set to its value in a clean one;
the metric is a difference of two logits at the last position. All tokens of the two prompts differ,
so no patch can be left out. Everyone's time includes the clean run. transformer-lens and nnsight
run on copies of their own and compute the logits of every position, as their forwards do; 'by hand'
is plain torch hooks that unembed the last position only, once with one forward a patch and once
with all positions of a layer in one batch. The last column is the largest difference of a score to
the first contestant's; attribution patching is an approximation, and its difference is its error
against the exact scores. Targets: at most a third of either peer's time."""


def difference(logits: Tensor) -> Tensor:
    """Of two logits: [... vocab] -> [...]."""
    return logits[..., ANSWER] - logits[..., VERSUS]


def contestants(
    model: PreTrainedModel, pair: tuple[Tensor, Tensor], peers: Peers
) -> list[Contestant]:
    """Everyone, the reference first."""
    clean, corrupted = pair
    handle, parts = interp.Model(model), parts_of(model)
    target = interp.Target("logit_difference", ANSWER, VERSUS)

    def ours(**options: Any) -> Held:
        eff = interp.patch(handle, clean, corrupted, "resid_pre", target, progress=False, **options)
        return Held({"scores": eff.stack("resid_pre")[:, 0]})

    third = (1 / 3, 1 / 3)
    return [
        Contestant(THEIRS, lambda: _bridge(peers, clean, corrupted)),
        Contestant(NNSIGHT, lambda: _traced(peers, parts, clean, corrupted)),
        Contestant("by hand: one forward a patch", lambda: _loop(model, clean, corrupted)),
        Contestant("by hand: a layer in one batch", lambda: _batched(model, clean, corrupted)),
        Contestant("interp.patch", ours, target=third),
        Contestant("interp.patch, against nnsight", ours, target=third, reference=NNSIGHT),
        Contestant("interp.patch, method='attribution'", partial(ours, method="attribution")),
    ]


def _bridge(peers: Peers, clean: Tensor, corrupted: Tensor) -> Held:
    from transformer_lens import patching

    with _without_bar(patching):
        _, cache = peers.bridge.run_with_cache(
            clean, names_filter=lambda name: name.endswith("hook_resid_pre")
        )
        scores = patching.get_act_patch_resid_pre(
            peers.bridge, corrupted, cache, lambda logits: difference(logits[0, -1])
        )
    return Held({"scores": scores})


@contextmanager
def _without_bar(module: Any) -> Iterator[None]:
    bar, module.tqdm = module.tqdm, lambda rows: rows
    try:
        yield
    finally:
        module.tqdm = bar


def _traced(peers: Peers, parts: Parts, clean: Tensor, corrupted: Tensor) -> Held:
    import nnsight

    model = peers.traced
    blocks, head = model.get(parts.blocks), model.get(parts.head)
    with model.trace(clean, use_cache=False):
        donors = nnsight.save([])
        for block in blocks:
            donors.append(block.input.clone())
    scores = torch.empty(len(donors), clean.shape[1])
    for layer, donor in enumerate(donors):
        block = blocks[layer]
        for position in range(clean.shape[1]):
            with model.trace(corrupted, use_cache=False):
                block.input[:, position] = donor[:, position]
                score = nnsight.save(difference(head.output[0, -1]))
            scores[layer, position] = score
    return Held({"scores": scores})


def _loop(model: PreTrainedModel, clean: Tensor, corrupted: Tensor) -> Held:
    donors, blocks = _donors(model, clean)
    scores = torch.empty(len(donors), clean.shape[1])
    for layer, donor in enumerate(donors):
        for position in range(clean.shape[1]):

            def put(_module: Any, args: Any, at: int = position, values: Tensor = donor) -> None:
                args[0][:, at] = values[:, at]

            scores[layer, position] = _with_hook(model, blocks[layer], put, corrupted)[0]
    return Held({"scores": scores})


def _batched(model: PreTrainedModel, clean: Tensor, corrupted: Tensor) -> Held:
    donors, blocks = _donors(model, clean)
    every = torch.arange(clean.shape[1])
    many = corrupted.expand(len(every), -1)
    scores = []
    for donor, block in zip(donors, blocks, strict=True):

        def put(_module: Any, args: Any, values: Tensor = donor) -> None:
            args[0][every, every] = values[0]

        scores.append(_with_hook(model, block, put, many))
    return Held({"scores": torch.stack(scores)})


def _donors(model: PreTrainedModel, ids: Tensor) -> tuple[list[Tensor], Any]:
    """The stream into each block, and the blocks."""
    blocks: Any = model.get_submodule(parts_of(model).blocks)
    kept: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _module, args: kept.append(args[0].clone()))
        for block in blocks
    ]
    model.base_model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept, blocks


def _with_hook(model: PreTrainedModel, block: Any, hook: Callable[..., Any], ids: Tensor) -> Tensor:
    handle = block.register_forward_pre_hook(hook)
    logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    handle.remove()
    return difference(logits)


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; one call of a peer takes tens of seconds, so rounds are few."""
    report = Report("patch", NOTES)
    for architecture in ARCHITECTURES if quick else ("llama",):
        model = build(architecture, tiny=quick)
        n_tokens = 8 if quick else TOKENS
        clean = random_ids(model, 1, n_tokens)
        corrupted = (clean + 1 + torch.arange(n_tokens)) % model.config.vocab_size
        everyone = contestants(model, (clean, corrupted), Peers(model))
        gaps = disagreement(everyone)
        rounds = (3, 3) if quick else (5, 20)
        timing = alternate(everyone, seconds=seconds, rounds=rounds)
        section = Section(f"{describe(model)}; 1 x {n_tokens}", THEIRS, timing)
        for one in everyone:
            row = row_of(one, timing, THEIRS)
            section.rows.append(row | {"max_difference": gaps.get(one.name)})
        report.sections.append(section)
    return report
