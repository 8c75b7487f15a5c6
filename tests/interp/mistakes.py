"""Calls as a user makes them, without the type checker of the tests: {name: what came of it}.

Run by test_mistakes.py in a process of its own; prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch

import interp
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

IDS = [[5, 6, 7, 8], [9, 10, 11]]
TEXTS = ["The capital is", "Paris"]


def main(folder: Path) -> dict[str, str]:
    os.chdir(folder)
    (folder / "a-file").write_text("mine")
    (folder / "stories").mkdir()
    tokenizer = byte_level()
    model = interp.load(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    module = model.module
    edit = interp.Edit([interp.Affine("z.1", (0,), 0.0)])
    messages = [{"role": "user", "content": "hello"}]
    wrong: dict[str, Any] = {
        "generator": lambda: model.batch(text for text in TEXTS),
        "no prompts": lambda: model.batch(None),
        "a number": lambda: model.batch(5),
        "texts and ids": lambda: model.batch(["a", [1, 2]]),
        "messages": lambda: model.batch(messages),
        "one message": lambda: model.batch(messages[0]),
        "conversations": lambda: model.batch([messages, messages]),
        "half a mask": lambda: model.batch({"input_ids": IDS, "attention_mask": [[1], [1]]}),
        "slice": lambda: interp.capture(model, IDS, "z.1", positions=slice(0, 2)),
        "site number": lambda: interp.capture(model, IDS, 3),
        "site numbers": lambda: interp.capture(model, IDS, ["z.1", 3]),
        "no answer": lambda: interp.answer_logprob(model, IDS, None),
        "answers by name": lambda: interp.answer_logprob(model, IDS, {"a": 5}),
        "half an id": lambda: interp.answer_logprob(model, IDS, 5.5),
        "tuple": lambda: through(model, lambda z, site: (z,)),
        "zero": lambda: through(model, lambda z, site: 0.0),
        "one argument": lambda: through(model, lambda z: z),
        "three arguments": lambda: through(model, lambda z, site, more: z),
        "no function": lambda: through(model, 3),
        "no edit": lambda: interp.side_effects(model, {"z.1": 0}, TEXTS),
        "no text but a number": lambda: interp.side_effects(model, edit, 5),
        "list of diffs": lambda: interp.compare([interp.diff(module, module)]),
        "dtype": lambda: interp.load("stories", dtype="bf16"),
        "dtype of a module": lambda: interp.load(module, dtype=torch.bfloat16),
        "load nothing": lambda: interp.load(None),
        "load a name": lambda: interp.load("storys"),
        "load from home": lambda: interp.load("~/no-such-checkpoint"),
        "diff from home": lambda: interp.diff("~/no-such-checkpoint", module),
        "diff a number": lambda: interp.diff(module, 3),
        "diff numbers": lambda: interp.diff(module, {"tuned": 3}),
        "resume a file": lambda: interp.diff(module, module, resume="a-file"),
        "corpus of ids": lambda: interp.capture_corpus(model, IDS[0], "z.1", "ids"),
        "corpus of a text": lambda: interp.capture_corpus(model, TEXTS[0], "z.1", "text"),
        "corpus of nothing": lambda: interp.capture_corpus(model, None, "z.1", "none"),
        "corpus into a file": lambda: interp.capture_corpus(model, TEXTS, "z.1", "a-file"),
    }
    return {name: outcome(call) for name, call in wrong.items()} | good(model)


def through(model: interp.Model, function: Any) -> None:
    with interp.hooked(model, {"z.1": function}):
        model.module(torch.tensor(IDS[:1]))


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


def good(model: interp.Model) -> dict[str, str]:
    """The other forms of what is right, as tokens or numbers that the plain form gives too."""
    rows = model.tokenizer(TEXTS)  # as a tokenizer gives them unless it is told to pad
    prompts = {
        "list of texts": TEXTS,
        "column of texts": pd.Series(TEXTS, index=[7, 9]),
        "array of texts": np.array(TEXTS),
        "tokenizer's rows": rows,
        "rows without a mask": {"input_ids": rows["input_ids"]},
        "arrays of ids": [np.array(row) for row in rows["input_ids"]],
    }
    found = {name: str(_tokens(model.batch(given))) for name, given in prompts.items()}
    top = model.module(torch.tensor(IDS[:1])).logits[0, -1].argmax()
    answers: dict[str, Any] = {
        "a number of python": int(top),
        "a number of numpy": np.int64(int(top)),
        "argmax": top,
        "a tensor of ids": top[None],
        "a list of argmax": [top],
    }
    for name, given in answers.items():
        found[name] = str(interp.answer_logprob(model, IDS[:1], given).tolist())
    for name, at in {"list": [0, -1], "tensor": torch.tensor([0, -1])}.items():
        acts = interp.capture(model, IDS, "z.1", positions=at)
        found[f"positions in a {name}"] = f"{acts.tokens.tolist()} {acts.meta['positions']}"
    ids = [[5, 6], [7, 8]]
    corpora = {
        "lists": ids,
        "a tensor": torch.tensor(ids),
        "arrays": [np.array(row) for row in ids],
    }
    for name, given in corpora.items():
        store = interp.capture_corpus(model, given, "z.1", f"corpus of {name}", progress=False)
        found[f"corpus of {name}"] = str([batch["z.1"].tolist() for batch in store])
    return found


def _tokens(batch: interp.Batch) -> list[list[int]]:
    pairs = zip(batch.input_ids, batch.attention_mask, strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
