"""Integrated gradients of all neurons of all layers, beside a bare forward and beside captum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._models import build, describe, random_ids
from benchmarks._plain import bare, last_only, parts_of
from benchmarks._report import Report, Section, row_of

FORWARD = "bare forward (SDPA)"
OURS = "interp.attribute"
LAYER_IG = "captum LayerIntegratedGradients, all layers"
NODES = 16
# (model, tokens, most bare forwards promised, least times captum promised)
CASES: tuple[tuple[str, int, float | None, float | None], ...] = (
    ("llama", 128, 5.0, 40.0),
    ("llama", 512, None, 100.0),
    ("gpt2", 128, None, None),
)
NOTES = f"""\
One prompt; the target is the predicted token's log-probability at the last position, {NODES}
Gauss-Legendre nodes, baseline zero, every neuron of every layer. First beside the bare forward of
the prompt, logits of all positions included, then beside captum 0.9, which takes the layers one
after the other; in its favour, parameters are frozen for it and it unembeds the last position only.
captum's LayerIntegratedGradients scales the neurons of *all* positions, which is another quantity
(no difference is given), and takes its baseline in the input, here zero embeddings. 'captum
IntegratedGradients, same path', measured at 128 tokens, scales the last position's neurons in a
forward patched by hand, which is the same quantity: the last column is the largest difference,
between attributions of which the largest is about 0.03. Promised: at most 5 bare forwards at 128
tokens; at most 1/40 of LayerIntegratedGradients at 128 tokens, and 1/100 at 512."""


def held(attribution: interp.Attribution) -> Held:
    return Held({str(site): value for site, value in attribution.values.items()})


def beside_a_forward(
    model: PreTrainedModel, ids: Tensor, most: float | None = None
) -> list[Contestant]:
    """Everyone, the reference first; `most` bare forwards are promised."""
    handle = interp.Model(model)

    def ours(target: str = "logprob", **options: Any) -> Callable[[], Held]:
        return lambda: held(interp.attribute(handle, ids, target, progress=False, **options))

    return [
        Contestant(FORWARD, lambda: Held({}, bare(model, ids).logits)),
        Contestant("bare forward again (control)", lambda: Held({}, bare(model, ids).logits)),
        Contestant("forward, logits of the last position only", lambda: last_only(model, ids)),
        Contestant(OURS, ours(), target=None if most is None else (most, most)),
        Contestant(f"{OURS}, logit difference", ours("logit_difference")),
        Contestant(f"{OURS}, heads' outputs (z)", ours(site="z")),
        Contestant(f"{OURS}, gradient x activation", ours(method="gradient_x_activation")),
    ]


def beside_captum(
    model: PreTrainedModel, ids: Tensor, least: float, *, same_path: bool = True
) -> list[Contestant]:
    """Ours first; it is to be `least` times as fast as captum's LayerIntegratedGradients."""
    handle = interp.Model(model)
    with torch.no_grad():
        answer = int(last_only(model, ids).tensors["last"].argmax())

    def ours() -> Held:
        return held(interp.attribute(handle, ids, "logprob", progress=False))

    everyone = [
        Contestant(OURS, ours),
        Contestant(LAYER_IG, lambda: layer_ig(model, ids, answer)),
        Contestant(
            f"{OURS}, against that", ours, target=(1 / least, 1 / least), reference=LAYER_IG
        ),
    ]
    if same_path:
        everyone.append(
            Contestant("captum IntegratedGradients, same path", lambda: path_ig(model, ids, answer))
        )
    return everyone


def downs(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The down projection of every layer, by the site it reads."""
    parts = parts_of(model)
    blocks = model.get_submodule(parts.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return {f"mlp_post.{n}": block.get_submodule(parts.down) for n, block in enumerate(blocks)}


def layer_ig(model: PreTrainedModel, ids: Tensor, answer: int) -> Held:
    """Captum's layer attribution, a layer at a time; the last position's share is kept."""
    from captum.attr import LayerIntegratedGradients

    embedded = model.get_input_embeddings()(ids)

    def logprob(inputs_embeds: Tensor) -> Tensor:
        output = model(inputs_embeds=inputs_embeds, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1].log_softmax(-1)[:, answer]

    found = {}
    with frozen(model):
        for site, down in downs(model).items():
            values = LayerIntegratedGradients(logprob, down).attribute(
                embedded,
                torch.zeros_like(embedded),
                n_steps=NODES,
                method="gausslegendre",
                attribute_to_layer_input=True,
            )
            assert isinstance(values, Tensor)
            found[f"all positions scaled: {site}"] = values[:, -1].float()
    return Held(found)


def path_ig(model: PreTrainedModel, ids: Tensor, answer: int) -> Held:
    """Captum's input attribution of a forward that takes the last position's neurons."""
    from captum.attr import IntegratedGradients

    found = {}
    with frozen(model):
        for site, down in downs(model).items():
            logprob, neurons = patched(model, ids, down, answer)
            values = IntegratedGradients(logprob).attribute(
                neurons, torch.zeros_like(neurons), n_steps=NODES, method="gausslegendre"
            )
            found[site] = values.float()
    return Held(found)


def patched(
    model: PreTrainedModel, ids: Tensor, down: nn.Module, answer: int
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(a function of the last position's neurons [row d_mlp], those neurons)."""
    kept: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda _module, args: kept.append(args[0][:, -1]))
    last_only(model, ids)
    handle.remove()

    def logprob(neurons: Tensor) -> Tensor:
        def put(_module: nn.Module, args: Any) -> tuple[Tensor]:
            return (torch.cat([args[0][:, :-1], neurons[:, None]], dim=1),)

        hook = down.register_forward_pre_hook(put)
        try:
            logits = last_only(model, ids.expand(len(neurons), -1)).tensors["last"]
        finally:
            hook.remove()
        return logits.log_softmax(-1)[:, answer]

    return logprob, kept[0].detach()


@contextmanager
def frozen(model: PreTrainedModel) -> Any:
    """No gradients of parameters, which captum would compute for nothing."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; a quarter of `seconds` beside forwards, and three beside captum, on one model."""
    report = Report("attribute", NOTES)
    for architecture, tokens, most, least in CASES:
        if quick and tokens > 128:
            continue
        model = build(architecture, tiny=quick)
        ids = random_ids(model, 1, 16 if quick else tokens)
        share = seconds / len(CASES)
        sections = [("a forward", beside_a_forward(model, ids, most), share / 4, (16, 200))]
        if least is not None:
            everyone = beside_captum(model, ids, least, same_path=tokens == 128)
            sections.append(("captum", everyone, share * 3 / 4, (3, 20)))
        for what, everyone, budget, rounds in sections:
            gaps = disagreement(everyone) if what == "captum" and tokens == 128 else {}
            timing = alternate(everyone, seconds=budget, rounds=(2, 2) if quick else rounds)
            title = f"{describe(model)}; batch 1 x {ids.shape[1]}, beside {what}"
            section = Section(title, everyone[0].name, timing)
            for one in everyone:
                row = row_of(one, timing, everyone[0].name)
                section.rows.append(row | {"max_difference": gaps.get(one.name)})
            report.sections.append(section)
    return report
