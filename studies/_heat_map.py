"""A lens trace as an interactive page: layer x position, hover for the top tokens."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import LensTrace
from interp._record import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def write_heat_map(trace: LensTrace, path: Path, *, title: str) -> Path:
    """Write one self-contained HTML page, plotly included, for a trace of one prompt.

    Args:
        trace: of one prompt, usually at positions="all".
        path: the HTML file.
        title: shown above; like all text from prompts and models it is escaped.
    """
    write_text(path, heat_map(trace, title).to_html(include_plotlyjs=True, full_html=True))
    return path


def heat_map(trace: LensTrace, title: str) -> go.Figure:
    """The figure: buttons choose between top probability, answer, entropy and KL."""
    import plotly.graph_objects as go

    columns = list(range(len(trace.position)))
    # The number keeps equal tokens apart: plotly merges columns of equal names.
    names = [f"{i} {_shown(trace.tokens[int(trace.token[i])])}" for i in columns]
    views = _views(trace)
    first = next(iter(views))
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=list(range(trace.n_layers)),
            text=[
                [_shown(trace.tokens[int(trace.top_token[i, layer, 0])]) for i in columns]
                for layer in range(trace.n_layers)
            ],
            texttemplate="%{text}",
            hovertext=[
                [_hover(trace, i, layer) for i in columns] for layer in range(trace.n_layers)
            ],
            hoverinfo="text",
            xgap=1,
            ygap=1,
            **views[first],
        )
    )
    buttons = [
        {"label": name, "method": "restyle", "args": [{k: [v] for k, v in view.items()}]}
        for name, view in views.items()
    ]
    figure.update_layout(
        title={"text": html.escape(title), "x": 0.01},
        xaxis={"title": "token read", "tickangle": -45, "side": "bottom"},
        yaxis={"title": "layer (0 the embedding, last the output)", "dtick": 1},
        updatemenus=[
            {
                "buttons": buttons,
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
            }
        ],
        font={"family": "system-ui, sans-serif"},
        margin={"t": 110},
        height=max(420, 34 * trace.n_layers + 240),
        template="plotly_white",
    )
    return figure


def _views(trace: LensTrace) -> dict[str, dict[str, Any]]:
    """What colour can mean; each with its values and scale."""
    views: dict[str, dict[str, Any]] = {
        "P(top token)": {
            "z": trace.top_logprob[..., 0].exp().T.tolist(),
            **_scale("Blues", 0.0, 1.0),
        }
    }
    for index, answer in enumerate(trace.answers[0]):
        if all(answers[index] == answer for answers in trace.answers):
            values = trace.prob[..., index].T.tolist()
            views[f"P({_shown(answer)})"] = {"z": values, **_scale("Oranges", 0.0, 1.0)}
    most = math.log(len(trace.tokens) + 1)
    entropy, kl = trace.entropy.T.tolist(), trace.kl.T.tolist()
    views["entropy (nats)"] = {"z": entropy, **_scale("Purples", 0.0, max(most, _top(entropy)))}
    views["KL to output (nats)"] = {"z": kl, **_scale("Greens", 0.0, _top(kl))}
    return views


def _scale(colours: str, low: float, high: float) -> dict[str, Any]:
    return {"colorscale": colours, "zmin": low, "zmax": high}


def _top(rows: list[list[float]]) -> float:
    return max(max(row) for row in rows) or 1.0


def _hover(trace: LensTrace, row: int, layer: int) -> str:
    lines = [f"layer {layer}, after {_shown(trace.tokens[int(trace.token[row])])}"]
    for token, logprob in zip(
        trace.top_token[row, layer].tolist(), trace.top_logprob[row, layer].tolist(), strict=True
    ):
        lines.append(f"{math.exp(logprob):.3f} {_shown(trace.tokens[token])}")
    for index, answer in enumerate(trace.answers[row]):
        lines.append(
            f"{_shown(answer)}: p {float(trace.prob[row, layer, index]):.2g}, "
            f"rank {int(trace.rank[row, layer, index])}"
        )
    lines.append(
        f"entropy {float(trace.entropy[row, layer]):.2f}, KL {float(trace.kl[row, layer]):.2f}"
    )
    return "<br>".join(lines)


def _shown(text: str) -> str:
    """A token with its spaces visible, and with nothing that plotly would take for markup."""
    visible = text.replace(" ", "·").replace("\n", "⏎") or "∅"
    return html.escape(visible).replace("%{", "%&#123;")
