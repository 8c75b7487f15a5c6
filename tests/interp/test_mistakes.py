"""What a user gets wrong has a sentence that says what to do; what he may give works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SAYS = {
    "generator": r"cannot read prompts of type generator; give a text, a list of texts",
    "no prompts": r"cannot read prompts of type NoneType",
    "a number": r"cannot read prompts of type int",
    "texts and ids": r"cannot read the prompt 'a'; expected texts, or token ids",
    "messages": r"chat messages; make them texts first: tokenizer\.apply_chat_template\(",
    "one message": r"chat messages",
    "conversations": r"chat messages",
    "half a mask": r"input_ids and attention_mask have different sizes",
    "slice": r"positions=slice\(0, 2, None\): expected whole numbers .*list\(range\(",
    "site number": r"3 is no site; expected a name such as 'resid_post\.3'",
    "site numbers": r"3 is no site; expected a name",
    "no answer": r"None is no answer; expected a text, a token id, or a list",
    "answers by name": r"\{'a': 5\} is no answer",
    "half an id": r"5\.5 is no answer",
    "tuple": r"the function on z\.1 returned a tuple; expected a tensor of shape \[1, 4, 4, 8\]",
    "zero": r"the function on z\.1 returned a float; expected a tensor",
    "one argument": r"the function on z\.1 cannot be called as fn\(tensor, site\): too many",
    "three arguments": r"cannot be called as fn\(tensor, site\): missing .*'more'",
    "no function": r"3 on z\.1 is no function; expected fn\(tensor, site\)",
    "no edit": r"edit is a dict; expected an Edit",
    "no text but a number": r"texts is of type int; give a list of texts",
    "list of diffs": r"got a list; of a list: compare\(\*diffs\)",
    "dtype of a module": r"a module you hold is read as it is",
    "dtype": r"no dtype 'bf16'; nearest valid names: 'bfloat16'",
    "load nothing": r"source is of type NoneType; give a folder, a hub id or a module",
    "load a name": r"'storys' is neither a folder here \(nearest .*'stories'\) nor a checkpoint",
    "load from home": r"no checkpoint folder at ~/no-such-checkpoint",
    "diff from home": r"no checkpoint folder at ~/no-such-checkpoint; check the path",
    "diff a number": r"tuned is of type int; expected a path, a model, a list",
    "diff numbers": r"a checkpoint is of type int; expected a folder",
    "resume a file": r"cannot keep finished tensors in resume='a-file'",
    "corpus of ids": r"prompts is one list of token ids; give a list of them, such as \[ids\]",
    "corpus of a text": r"prompts is one text; give a list of texts",
    "corpus of nothing": r"prompts is of type NoneType; give a list of texts",
    "corpus into a file": r"a-file is a file; choose an empty or new folder",
}
ALIKE = (
    ("list of texts", "column of texts", "array of texts"),
    ("list of texts", "tokenizer's rows", "rows without a mask", "arrays of ids"),
    ("a number of python", "a number of numpy", "argmax", "a tensor of ids", "a list of argmax"),
    ("corpus of lists", "corpus of a tensor", "corpus of arrays"),
    ("positions in a list", "positions in a tensor"),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mistakes")
    command = [sys.executable, "-m", "tests.interp.mistakes", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mistake", SAYS)
def test_a_mistake_gets_a_sentence(mistake: str, outcomes: dict[str, str]) -> None:
    kind, _, message = outcomes[mistake].partition(": ")
    assert kind in ("InterpError", "SiteNotFound"), outcomes[mistake]
    assert re.search(SAYS[mistake], message), message


@pytest.mark.parametrize("forms", ALIKE, ids=lambda forms: forms[-1])
def test_every_form_means_the_same(forms: tuple[str, ...], outcomes: dict[str, str]) -> None:
    assert {outcomes[form] for form in forms} == {outcomes[forms[0]]}
