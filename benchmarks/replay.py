"""Doing less than a forward: one token, a suffix of blocks, or an early stop."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._models import ARCHITECTURES, build, describe, random_ids
from benchmarks._plain import bare, last_only
from benchmarks._report import Report, Section, row_of

REFERENCE = "bare forward (SDPA)"
LENGTHS = (128, 512, 1024)
NOTES = """\
One prompt. 'recorded once' is what `replay_last` and `replay` cost before anything is replayed; the
replays use a recording made beforehand and end with the logits of the last position, so the fair
reference for them is the forward that also unembeds the last position only: divide by its row. A
replay of all blocks computes what the forward does for that position, so its logits are compared
with the forward's (last column: the largest difference). `interp.capture` of layer 0 ends the
forward after the first block."""


def contestants(model: PreTrainedModel, ids: Tensor) -> list[Contestant]:
    """Everyone, the reference first."""
    handle = interp.Model(model)
    middle = model.config.num_hidden_layers // 2
    token = interp.replay_last(handle, ids)
    whole = interp.replay(handle, ids)

    def last_logits(held: Held) -> Held:
        assert held.logits is not None
        return Held({"last": held.logits[:, -1]}, held.logits)

    def again(recording: interp.Replay, layer: int) -> Held:
        stream = recording.run(layer, recording.streams[layer])
        return Held({"last": recording.unembed(stream[:, -1])})

    def record(how: object) -> Held:
        assert callable(how)
        how(handle, ids)
        return Held()

    def first_layer() -> Held:
        return Held({"resid_post.0": interp.capture(handle, ids, "resid_post.0")["resid_post.0"]})

    return [
        Contestant(REFERENCE, lambda: last_logits(bare(model, ids))),
        Contestant("bare forward again (control)", lambda: last_logits(bare(model, ids))),
        Contestant("forward, logits of the last position only", lambda: last_only(model, ids)),
        Contestant("replay_last recorded once", lambda: record(interp.replay_last)),
        Contestant("one-token replay, all blocks", lambda: again(token, 0)),
        Contestant("one-token replay, upper half", lambda: again(token, middle)),
        Contestant("replay recorded once", lambda: record(interp.replay)),
        Contestant("whole-sequence replay, all blocks", lambda: again(whole, 0)),
        Contestant("whole-sequence replay, upper half", lambda: again(whole, middle)),
        Contestant("interp.capture of layer 0", first_layer),
    ]


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; `seconds` is shared among the models and lengths."""
    report = Report("replay", NOTES)
    lengths = (16,) if quick else LENGTHS
    for architecture in ARCHITECTURES:
        model = build(architecture, tiny=quick)
        for tokens in lengths:
            everyone = contestants(model, random_ids(model, 1, tokens))
            gaps = disagreement(everyone)
            share = seconds / len(lengths) / len(ARCHITECTURES)
            rounds = (3, 3) if quick else (16, 200)
            timing = alternate(everyone, seconds=share, rounds=rounds)
            section = Section(f"{describe(model)}; batch 1 x {tokens}", REFERENCE, timing)
            for one in everyone:
                row = row_of(one, timing, REFERENCE)
                section.rows.append(row | {"max_difference": gaps.get(one.name)})
            report.sections.append(section)
    return report
