"""`interp trace`: the lens on one prompt, in the terminal, as a figure and as a page."""

from __future__ import annotations

from pathlib import Path

import interp
from interp import LensTrace
from studies._checkpoints import open_checkpoint
from studies._commands import Trace
from studies._heat_map import write_heat_map
from studies._run import create


def run(config: Trace) -> LensTrace:
    """Trace, print, write; returns the trace at the last position."""
    model = open_checkpoint(config.model)
    create(config.out)
    answers = [list(config.answer)] if config.answer else None
    last = interp.logit_lens(model, [config.prompt], answers, top_k=config.top_k)
    whole = interp.logit_lens(model, [config.prompt], answers, positions="all", top_k=config.top_k)
    last.save(config.out / "trace")
    _draw(last, config.out / "trace.png")
    write_heat_map(whole, config.out / "trace.html", title=f"{model.name}: {config.prompt}")
    _print(last, config)
    return last


def _draw(trace: LensTrace, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(max(5.0, 0.6 * trace.n_layers), 3.4), layout="constrained")
    trace.plot(ax)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _print(trace: LensTrace, config: Trace) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=escape(config.prompt), title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    for answer in trace.answers[0]:
        table.add_column(f"P({escape(_shown(answer))})", justify="right")
        table.add_column("rank", justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("KL", justify="right")
    table.add_column("top tokens", overflow="fold")
    for layer in range(trace.n_layers):
        cells = [str(layer)]
        for index in range(len(trace.answers[0])):
            rank = int(trace.rank[0, layer, index])
            prob = f"{float(trace.prob[0, layer, index]):.3f}"
            cells += [f"[bold]{prob}[/]" if rank == 1 else prob, str(rank)]
        tops = [trace.tokens[token] for token in trace.top_token[0, layer].tolist()]
        cells += [f"{float(trace.entropy[0, layer]):.2f}", f"{float(trace.kl[0, layer]):.2f}"]
        table.add_row(*cells, escape(" ".join(_shown(top) for top in tops)))
    console.print(table)
    for index, answer in enumerate(trace.answers[0]):
        decided = float(trace.decision_layer(index)[0])
        outcome = (
            f"is on top from layer {decided:.0f} on"
            if decided == decided  # NaN where it loses at the output
            else "is not on top at the output"
        )
        logprob = float(trace.answer_logprob[0, -1, index])
        console.print(f"{escape(_shown(answer))} {outcome}; log-prob of the whole: {logprob:.2f}")
        if not answer.startswith(" ") and not config.prompt.endswith((" ", "\n")) and config.answer:
            console.print(f'  (did you mean --answer " {escape(answer)}", with its leading space?)')
    console.print("Layer 0 is the embedding, the last row the model's own output.")
    console.print(f"Wrote {config.out}/trace.png and {config.out}/trace.html")


def _shown(text: str) -> str:
    return text.replace(" ", "·").replace("\n", "⏎") or "∅"
