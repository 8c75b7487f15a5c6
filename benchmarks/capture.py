"""Capturing activations: residuals, and residuals + heads (z) + neurons, in every layer."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._memory import in_fresh_process, retained
from benchmarks._models import ARCHITECTURES, build, describe, random_ids
from benchmarks._peers import Peers, bridge_capture, hook_names, traced_capture
from benchmarks._plain import asked_bytes, bare, blocks_only, hidden_states, hooks, parts_of
from benchmarks._report import Report, Section, row_of

REFERENCE = "bare forward (SDPA)"
SHAPES = ((8, 128, 0.45), (1, 1024, 0.5), (1, 8, 0.05))  # batch, tokens, share of the time
RESID, ALL = ("resid_post",), ("resid_post", "z", "mlp_post")
NOTES = """\
Every contestant captures the same tensors of the same weights (the largest difference to the first
contestant that reads a site is in the last column). `interp.capture` ends the forward after the
last site asked for, so by default it never computes logits: the rows with `logits=True` do the
whole forward, and only they are compared with a bare forward for the targets. Unembedding into
these vocabularies is half of a forward and dilutes any overhead, so the rows 'no logits' compare
with the blocks alone, where the same overhead weighs about twice as much: the stricter test, with
the same targets. Keeping tensors has a price of its own (fresh memory instead of recycled), which
plain hooks pay too. transformer-lens computes attention by its own eager code. Batch preparation
and the attaching and removing of hooks are inside every measured call. 1 x 8 shows fixed costs."""
BLOCKS = "blocks only, no logits"


def contestants(model: PreTrainedModel, ids: Tensor, peers: Peers) -> list[Contestant]:
    """Everyone, the reference first; our own handle is made once, as a user would."""
    handle = interp.Model(model)
    layers = model.config.num_hidden_layers

    def ours(kinds: tuple[str, ...], logits: bool) -> Held:
        acts = interp.capture(handle, ids, [f"{kind}.*" for kind in kinds], logits=logits)
        return Held({str(site): tensor for site, tensor in acts.items()}, acts.logits)

    found = [
        Contestant(REFERENCE, lambda: bare(model, ids)),
        Contestant("bare forward again (control)", lambda: bare(model, ids)),
        Contestant(BLOCKS, lambda: blocks_only(model, ids)),
    ]
    for kinds, what in ((RESID, "residuals"), (ALL, "residuals + z + neurons")):
        neurons, asked = kinds == ALL, asked_bytes(model, ids, kinds)
        target = ((1.10, 1.15) if neurons else (1.05, 1.10)) if ids.numel() >= 1024 else None
        found += [
            Contestant(f"torch hooks: {what}", partial(hooks, model, ids, neurons), asked),
            Contestant(
                f"torch hooks, no logits: {what}",
                partial(hooks, model, ids, neurons, head=False),
                asked,
                reference=BLOCKS,
            ),
            Contestant(
                f"interp.capture(logits=True): {what}",
                partial(ours, kinds, True),
                asked,
                target,
            ),
            Contestant(
                f"interp.capture, no logits: {what}",
                partial(ours, kinds, False),
                asked,
                target,
                reference=BLOCKS,
            ),
            Contestant(
                f"transformer-lens run_with_cache: {what}",
                partial(bridge_capture, peers, ids, hook_names(layers, kinds)),
                asked,
            ),
            Contestant(
                f"nnsight trace: {what}",
                partial(traced_capture, peers, parts_of(model), ids, neurons),
                asked,
            ),
        ]
    # Last, because transformers leaves hooks of its own behind after the first such call.
    copy_of = build(model.config.model_type, tiny=model.config.hidden_size < 256)
    found.append(
        Contestant(
            "output_hidden_states=True: residuals",
            lambda: hidden_states(copy_of, ids),
            asked_bytes(model, ids, RESID),
        )
    )
    return found


def at_peak(model: PreTrainedModel, tokens: int, peers: Peers) -> list[Contestant]:
    """Whose memory is measured in a process of its own: one prompt."""
    return contestants(model, random_ids(model, 1, tokens), peers)


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; `seconds` is shared among the models and batch shapes."""
    report = Report("capture", NOTES)
    shapes = ((2, 16, 1.0),) if quick else SHAPES
    for architecture in ARCHITECTURES:
        model = build(architecture, tiny=quick)
        peers = Peers(model)
        for batch, tokens, part in shapes:
            ids = random_ids(model, batch, tokens)
            everyone = contestants(model, ids, peers)
            gaps = disagreement(everyone)
            held = {one.name: retained(one.call()) for one in everyone if one.asked is not None}
            share = seconds * part / len(ARCHITECTURES)
            rounds = (3, 3) if quick else (16, 200)
            timing = alternate(everyone, seconds=share, rounds=rounds)
            section = Section(f"{describe(model)}; batch {batch} x {tokens}", REFERENCE, timing)
            for one in everyone:
                row = row_of(one, timing, REFERENCE)
                if one.asked is not None:
                    row |= {"asked_bytes": one.asked, "retained_bytes": held[one.name]}
                if not quick and tokens == 1024 and one.reference is None:
                    row["peak_growth_bytes"] = in_fresh_process(
                        ["capture", architecture, str(tokens), one.name]
                    )
                section.rows.append(row | {"max_difference": gaps.get(one.name)})
            report.sections.append(section)
    return report
