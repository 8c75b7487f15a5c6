"""A report card as one page; every word of a model or a text is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 100  # features on the page; features.parquet has all
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:left;"
    "border-bottom:1px solid #ddd}mark{background:#fd8}.f{margin:1rem 0}img{max-width:100%}"
    "p{margin:.1rem 0;font-family:ui-monospace,monospace;font-size:13px;white-space:pre-wrap}"
)


def card_html(
    table: pd.DataFrame, top: Sequence[Mapping[str, Any]], density: Tensor, meta: Mapping[str, Any]
) -> str:
    """The page: quantities, density, and the texts at which the most active features fire most."""
    say = html.escape
    rows = "".join(
        f"<tr><td>{say(str(r.quantity))}</td><td>{_number(r.value)}</td>"
        f"<td>{_between(r.low, r.high)}</td><td>{_number(r.random)}</td></tr>"
        for r in table.itertuples()
    )
    by_feature: dict[int, list[Mapping[str, Any]]] = {}
    for one in top:
        by_feature.setdefault(int(one["feature"]), []).append(one)
    shown = sorted(by_feature, key=lambda j: -float(density[j]))[:SHOWN]
    features = "".join(
        f'<div class="f"><b>feature {j}</b>, fires at {float(density[j]):.2%} of tokens'
        + "".join(
            f"<p>{one['value']:.2f}  {say(one['before'])}<mark>{say(one['token'])}</mark>"
            f"{say(one['after'])}</p>"
            for one in by_feature[j]
        )
        + "</div>"
        for j in shown
    )
    facts = ", ".join(f"{say(str(k))} {say(str(v))}" for k, v in meta.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>SAE report card</title>'
        f"<style>{_STYLE}</style><h1>SAE report card</h1><div>{facts}</div>"
        f"<table><tr><th>quantity</th><th>value</th><th>95 % over texts</th>"
        f"<th>random SAE</th></tr>{rows}</table>"
        f'<img alt="what is kept, and how often features fire" src="card.png">'
        f"<h2>Where the {len(shown)} most frequent features fire most</h2>{features}</html>\n"
    )


def _between(low: float, high: float) -> str:
    return "" if low != low else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4g}"
