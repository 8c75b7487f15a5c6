"""The training loop: its rates, its best state, and that an interrupted training continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

import interp
import interventions as iv
from interp import Edit, InterpError
from interventions._checkpoint import Checkpoint
from interventions._examples import encode
from interventions._training import Course, train
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]


def model_of() -> interp.Model:
    tokenizer = byte_level()
    return interp.load(build("llama", vocab_size=max(97, len(tokenizer))), tokenizer=tokenizer)


class Interrupted(Exception):
    """What a user's Ctrl-C is here."""


@contextmanager
def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """AdamW raises instead of making this step."""
    made = torch.optim.AdamW.step
    count = iter(range(1, 10_000))

    def stepped(self: torch.optim.AdamW, *arguments: object) -> object:
        if next(count) == step:
            raise Interrupted
        return made(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(torch.optim.AdamW, "step", stepped)
        yield


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (7, 0.0), (5, 1.0), (1, 0.03)])
def test_the_rate_is_the_linear_schedule(steps: int, warmup: float):
    """transformers' schedule counts from 0 and ends one step later at 0."""
    course = Course(steps, 1, 0.5, warmup, None, 1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    rising = max(1, round(warmup * steps))
    schedule = get_linear_schedule_with_warmup(optimizer, rising, steps + 1)
    for step in range(1, steps + 1):
        optimizer.step()
        schedule.step()
        assert course.rate(step) == pytest.approx(schedule.get_last_lr()[0])


class Point:
    """A number that is pulled to 0."""

    def __init__(self) -> None:
        self.x = nn.Parameter(torch.tensor([1.0]))
        self.named = {"x": self.x}

    def backward(self, _: object) -> float:
        loss = self.x.square().sum()
        loss.backward()
        return float(loss.detach())

    def write(self) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {"x": self.x.detach().clone()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        self.x.copy_(state["x"])


@pytest.mark.parametrize(
    ("said", "greater", "best"),
    [
        ([3.0, 2.0, 4.0, 1.0, 5.0], False, 6),
        ([3.0, 2.0, 4.0, 1.0, 5.0], True, 8),
        ([1.0, 1.0, 1.0, 1.0, 1.0], False, 0),  # no better than the start is the start
        ([float("nan"), 2.0, float("nan"), 3.0, 2.0], False, 2),
        ([float("inf"), float("nan"), 7.0, 7.0, float("nan")], False, 4),
    ],
)
def test_the_best_state_is_kept(said: list[float], greater: bool, best: int):
    point, states = Point(), []
    answers = iter(said)

    def look() -> float:
        states.append(point.state()["x"])
        return next(answers)

    course = Course(8, 1, 0.1, 0.0, None, 2)
    found = train(point, [None] * 8, point.backward, course, look=look, greater=greater)
    assert found.best == best
    assert torch.equal(point.x.detach(), states[best // 2])
    assert [row["step"] for row in found.history if "dev" in row] == [2, 4, 6, 8]


def test_masked_tuning_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a mask made anew, a prior, weight decay and dev: interrupted twice, the same edit."""
    model = model_of()
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}

    def draw(handle: interp.Model) -> iv.WeightMask:
        """Another mask once weights have moved, and the same for the same weights."""
        weight = handle.module.get_parameter("model.layers.0.mlp.down_proj.weight").detach()
        return iv.masks.random_mask(handle, share=0.3, seed=int(1e6 * weight.sum().abs()) % 1000)

    prior = iv.masks.module_mask(model, modules="mlp").noise(1.0, seed=3)
    options = {
        "steps": 12, "rows": 3, "lr": 1e-2, "remask": 3, "prior": prior, "weight_decay": 0.1,
        "dev": PAIRS[4:], "dev_every": 2, "seed": 4,
    }  # fmt: skip
    whole = iv.masked_tune(model, PAIRS[:4], draw, **options)
    kept = options | {"checkpoint": tmp_path / "state", "checkpoint_every": 2}
    for step in (6, 4):  # the second run begins after the fourth step
        with interrupted_at(step, monkeypatch):
            iv.masked_tune(model, PAIRS[:4], draw, **kept)
        assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
        assert (tmp_path / "state" / "meta.json").is_file()
    with pytest.raises(InterpError, match=r"state of another training \(another course\)"):
        iv.masked_tune(model, PAIRS[:4], draw, **(kept | {"lr": 2e-2}))
    with pytest.raises(InterpError, match=r"another training \(another examples\)"):
        iv.masked_tune(model, PAIRS[1:5], draw, **kept)
    again = iv.masked_tune(model, PAIRS[:4], draw, **kept)
    assert_same(again, whole)
    assert again.notes == whole.notes
    assert not (tmp_path / "state").exists()


def test_tuning_with_an_sae_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_of()
    width = model.anatomy.d_model
    sae = iv.sae.random(width, 2 * width, 8, site="resid_post.1")
    texts = [prompt + completion for prompt, completion in PAIRS]
    sae = replace(sae, W_dec=0.3 * sae.W_dec)  # so that there is much to learn
    options = {"rank": 2, "steps": 9, "rows": 3, "lr": 1e-2, "dev": texts[:4], "dev_every": 3}
    whole = iv.tune_with_sae(model, sae, texts[:4], **options)
    kept = options | {"checkpoint": tmp_path / "state", "checkpoint_every": 2}
    with interrupted_at(6, monkeypatch):
        iv.tune_with_sae(model, sae, texts[:4], **kept)
    other = iv.sae.random(width, 2 * width, 8, site="resid_post.1", seed=5)
    with pytest.raises(InterpError, match="another SAE"):
        iv.tune_with_sae(model, other, texts[:4], **kept)
    again = iv.tune_with_sae(model, sae, texts[:4], **kept)
    assert_same(again, whole)
    assert again.notes == whole.notes
    assert not (tmp_path / "state").exists()


def assert_same(found: Edit, wanted: Edit) -> None:
    assert len(found.deltas) == len(wanted.deltas) > 0
    for a, b in zip(found.deltas, wanted.deltas, strict=True):
        assert a.parameter == b.parameter
        mine, theirs = a.change.tensors(), b.change.tensors()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"), ({"rows": 0}, "rows=0"), ({"lr": 0.0}, r"lr=0\.0"),
        ({"lr": float("nan")}, "lr=nan"), ({"dev_every": 0}, "dev_every=0"),
        ({"warmup": 1.5}, r"warmup=1\.5: expected a share"), ({"clip": -1.0}, r"clip=-1\.0"),
        ({"clip": 0.0}, "or None for no limit"), ({"betas": (1.2, 0.9)}, r"betas=\(1\.2, 0\.9\)"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
    ],
)  # fmt: skip
def test_a_course_that_cannot_be_is_said(options: dict[str, object], said: str):
    course: Callable[..., Course] = Course
    asked = {"steps": 2, "rows": 1, "lr": 0.1, "warmup": 0.0, "clip": None, "dev_every": 1}
    with pytest.raises(InterpError, match=said):
        course(**(asked | options))


def test_a_checkpoint_is_never_something_else(tmp_path: Path):
    """Nothing of the user's is deleted, and it is said before any work."""
    model = model_of()
    mask = iv.masks.module_mask(model, modules="down")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all my work")
    for path in (mine, mine / "thesis.tex"):
        with pytest.raises(InterpError, match="is there and holds something else; name a new"):
            iv.masked_tune(model, PAIRS, mask, steps=2, rows=3, checkpoint=path)
    assert (mine / "thesis.tex").read_text() == "all my work"
    mask.save(tmp_path / "mask")
    with pytest.raises(InterpError, match="weight_mask"):
        iv.masked_tune(model, PAIRS, mask, steps=2, rows=3, checkpoint=tmp_path / "mask")
    assert iv.WeightMask.load(tmp_path / "mask") == mask
    with pytest.raises(InterpError, match="checkpoint_every=0: expected at least 1"):
        iv.masked_tune(
            model, PAIRS, mask, steps=2, rows=3, checkpoint=tmp_path / "new", checkpoint_every=0
        )


def test_the_default_saves_ten_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_of()
    mask = iv.masks.module_mask(model, modules="down")
    saved = []
    save = Checkpoint.save

    def counted(self: Checkpoint, *arguments: object, **meta: object) -> None:
        saved.append(meta["step"])
        save(self, *arguments, **meta)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoint, "save", counted)
    iv.masked_tune(model, PAIRS, mask, steps=20, rows=3, checkpoint=tmp_path / "state")
    assert saved == list(range(2, 20, 2))


def test_the_harm_of_the_last_step_is_seen():
    """One step too large, and no dev to see it: the start comes back with a warning."""
    model = model_of()
    mask = iv.masks.module_mask(model, modules="down")
    with pytest.warns(UserWarning, match="after step 1 at lr=1e"):
        edit = iv.masked_tune(model, PAIRS, mask, steps=1, rows=6, lr=1e37, clip=None)
    assert not edit.deltas and edit.notes["masked_tune"]["history"] == []


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ("ab cd", "expected a list .* got str"), (["ab", "cd"], "example 0 is 'ab'"),
        ([("a", "b", "c")], "example 0 is"), ([*PAIRS, {"text": "ab"}], "example 6 is"),
        ([("a", None)], "pair of texts"), (7, "got int"), ([], "there are no examples"),
        (PAIRS[0], "example 0 is 'ab'"),
    ],
)  # fmt: skip
def test_examples_that_are_none_are_said(examples: object, said: str):
    with pytest.raises(InterpError, match=said):
        encode(model_of(), examples, end=True)


def test_examples_by_name_are_the_pairs():
    model = model_of()
    named = [{"prompt": a, "completion": b} for a, b in PAIRS]
    assert encode(model, named, end=True) == encode(model, PAIRS, end=True)
    assert encode(model, [list(pair) for pair in PAIRS], end=True) == encode(model, PAIRS, end=True)
