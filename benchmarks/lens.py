"""The logit lens: every layer's prediction at the last position, and at all positions."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

import interp
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._memory import in_fresh_process
from benchmarks._models import ARCHITECTURES, build, describe, random_ids
from benchmarks._peers import Peers, bridge_lens, traced_lens
from benchmarks._plain import bare, lens_floor, lens_loop, parts_of
from benchmarks._report import Report, Section, row_of

REFERENCE = "forward + one unembedding a layer"
FLOOR = "blocks + one unembedding a layer"
SHAPES = ((8, 128, True), (1, 1024, True), (1, 256, False))
TOP = 5
NOTES = """\
'forward + one unembedding a layer' is the bare forward, logits of every position included, and the
final norm and unembedding of every layer's stream at the positions asked for, whose results are
dropped: no log-probs, nothing kept. 'blocks + ...' is the same without the forward's own logits,
which a lens does not need. The target is judged against both. A lens can come out below them:
`interp.logit_lens` unembeds all layers in one product, which reads the matrix once.
`interp.logit_lens` also gives log-prob, rank, entropy, KL to the output and the top tokens, of
every layer and position asked for, as a record; the others give the log-probs of the top tokens
only. At all positions transformer-lens' accumulated residuals are unembedded at once, layer x pos x
vocab in memory; `interp.logit_lens` holds 64 MiB of logits at a time, however many layers and
positions there are. The peak's growth is that of one call in a fresh process. The last column is
the largest difference of the top log-probs to the plain loop's. transformer-lens and nnsight run on
copies of their own."""


def contestants(
    model: PreTrainedModel, ids: Tensor, peers: Peers, last: bool, *, judged: bool
) -> list[Contestant]:
    """Everyone, the reference first."""
    handle, parts = interp.Model(model), parts_of(model)

    def ours() -> Held:
        trace = interp.logit_lens(handle, ids, positions="last" if last else "all", top_k=TOP)
        layers = trace.top_logprob.transpose(0, 1)
        return Held({f"top.{layer}": rows for layer, rows in enumerate(layers)})

    target = (1.10, 1.10) if last and judged else None
    return [
        Contestant(REFERENCE, lambda: lens_floor(model, ids, last, head=True)),
        Contestant("the same again (control)", lambda: lens_floor(model, ids, last, head=True)),
        Contestant(FLOOR, lambda: lens_floor(model, ids, last, head=False)),
        Contestant("bare forward (SDPA)", lambda: bare(model, ids)),
        Contestant(
            "plain loop: blocks, log-probs, top tokens", lambda: lens_loop(model, ids, last, TOP)
        ),
        Contestant("interp.logit_lens", ours, target=target),
        Contestant("interp.logit_lens, against the blocks", ours, target=target, reference=FLOOR),
        Contestant(
            "transformer-lens: cache, ln_final, unembed",
            lambda: bridge_lens(peers, ids, last, TOP),
        ),
        Contestant(
            "nnsight: unembed in the trace",
            lambda: traced_lens(peers, parts, ids, last, TOP),
        ),
    ]


def at_peak(model: PreTrainedModel, tokens: int, peers: Peers) -> list[Contestant]:
    """Whose memory is measured in a process of its own: all positions of one prompt."""
    return contestants(model, random_ids(model, 1, tokens), peers, False, judged=False)


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; `seconds` is shared among the models and batch shapes."""
    report = Report("lens", NOTES)
    shapes = ((2, 16, True), (1, 16, False)) if quick else SHAPES
    for architecture in ARCHITECTURES:
        model = build(architecture, tiny=quick)
        peers = Peers(model)
        for batch, tokens, last in shapes:
            ids = random_ids(model, batch, tokens)
            everyone = contestants(model, ids, peers, last, judged=not quick)
            gaps = disagreement(everyone)
            share = seconds / len(shapes) / len(ARCHITECTURES)
            rounds = (3, 3) if quick else (16 if last else 5, 200)
            timing = alternate(everyone, seconds=share, rounds=rounds)
            where = "last position" if last else "all positions"
            title = f"{describe(model)}; batch {batch} x {tokens}, {where}"
            section = Section(title, REFERENCE, timing)
            for one in everyone:
                row = row_of(one, timing, REFERENCE)
                if not quick and not last and one.reference is None:
                    arguments = ["lens", architecture, str(tokens), one.name]
                    row["peak_growth_bytes"] = in_fresh_process(arguments)
                section.rows.append(row | {"max_difference": gaps.get(one.name)})
            report.sections.append(section)
    return report
