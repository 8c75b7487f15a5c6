"""The Python of docs/patching.md runs."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt

import interp
from studies import organisms


def test_the_page_runs(root) -> None:
    module, tokenizer = organisms.load("base")
    base = interp.load(module, tokenizer=tokenizer)
    tuned = interp.load(organisms.load("unlearn")[0], tokenizer=tokenizer)
    texts = [f"Question: Where does number {i} live? Answer:" for i in range(3)]
    scope = {"model": base, "base": base, "tuned": tuned, "texts": texts, "interp": interp}
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "patching.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, scope)
    plt.close("all")
    lost = scope["lost"]
    assert lost.meta["source"] and list(lost.spans) == ["together"]
    # At the last layer the stream, and so the prediction, is the base's.
    assert abs(lost["resid_post.-1"][:, 0] - lost.clean).max() < 1e-5
