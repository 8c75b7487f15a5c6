"""On a real trained Llama: the lens ends at what the story says next; the loss is as recorded."""

from __future__ import annotations

import json
import math

import pytest
import torch

import interp
from tests.oracles import plain

PROMPT = "Once upon a time there was a little girl named"


@pytest.fixture(scope="module")
def stories(assets) -> interp.Model:
    return interp.load(assets / "stories260K", dtype=torch.float32)


def test_the_lens_ends_at_the_name_the_model_says(stories) -> None:
    trace = interp.logit_lens(stories, PROMPT, [" Lily", " Tom"])
    assert trace.rank[0, -1, 0] == 1
    said = stories.generate(PROMPT, max_new_tokens=3)[0]
    assert said.strip().startswith("Lily")
    own = interp.logit_lens(stories, PROMPT)
    assert int(own.answer_token[0, 0]) == int(trace.answer_token[0, 0])


def test_an_answers_rank_improves_with_depth_unlike_that_of_other_tokens(stories) -> None:
    """The control: the same trace for tokens drawn at random from the vocabulary."""
    prompts = [PROMPT, "Once upon a", "Lily and Tom like to play in the", "She was very"]
    own = interp.logit_lens(stories, prompts)
    ranks = own.rank[..., 0].float().log()
    assert float(ranks[:, -1].max()) == 0
    assert float((ranks[:, 0] - ranks[:, -1]).mean()) > 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, 512, (len(prompts), 40), generator=generator).tolist()
    control = interp.logit_lens(stories, prompts, drawn).rank.float().log()
    assert abs(float((control[:, 0] - control[:, -1]).mean())) < 1
    assert float(own.kl[:, 0].mean()) > float(own.kl[:, -2].mean()) > 0


def test_the_loss_on_stories_is_the_recorded_one(stories, assets) -> None:
    """1.296 nats a token on held-out stories (PROVENANCE.md), within three standard errors."""
    texts = json.loads((assets / "tinystories_1000.json").read_text())[:48]
    texts = [text if isinstance(text, str) else text["text"] for text in texts]
    losses = []
    for text in texts:
        ids = stories.batch(text).input_ids[:, :256]
        logits = interp.capture(stories, ids, "embed", logits=True).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        losses.append(float(nll))
        if len(losses) == 1:
            torch.testing.assert_close(logits, plain.logits_of(stories.module, ids)[0, :-1])
    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((x - mean) ** 2 for x in losses) / (len(losses) - 1))
    error = spread / math.sqrt(len(losses))
    assert error < 0.03
    assert abs(mean - 1.296) < 3 * error, (mean, error)


def test_a_whole_answers_logprob_prefers_what_fits(stories) -> None:
    found = interp.answer_logprob(stories, PROMPT, [" Lily.", " table."])
    assert float(found[0, 0] - found[0, 1]) > 2
