"""Ways of tuning some of a model's weights: masks of one budget, and larger parts of the model."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

import interp
import interventions as iv
from interp import Model
from interventions._examples import Example, batches, completion_loss, encode, mean_loss

Mask = iv.WeightMask | Callable[[Model], iv.WeightMask]
ROUNDS = 3  # of half fine-tuning, and trainings behind a consensus


@dataclass(frozen=True)
class Tuned:
    """A model after one way of tuning.

    Args:
        use: the model as tuned, within a context.
        count: weights that were trained.
        state_bytes: what the optimizer kept of them.
        dev: loss on the new task's dev examples, nats a token.
    """

    use: Callable[[], AbstractContextManager[Model]]
    count: int
    state_bytes: int
    dev: float


@dataclass
class Tuner:
    """One training set, and every way to learn from it.

    Args:
        model: which stays as it is.
        train: examples of the new task by seed.
        dev: further ones.
        steps: of AdamW.
        rows: examples a step.
        rank: of the approximation behind principal weights.
        layer: of the one module, which sets the budget of all masks.
        kept: texts of the old tasks, for adapters that start away from them.
        direction: a change of weights for gradients to lean towards.
    """

    model: Model
    train: Callable[[int], Sequence[Example]]
    dev: Sequence[Example]
    steps: int
    rows: int
    rank: int
    layer: int
    kept: Callable[[], list[str]] | None = None
    direction: Callable[[], iv.Edit] | None = None

    @cached_property
    def share(self) -> float:
        """The budget: the one module's weights, of all weights of the blocks' matrices."""
        whole = iv.masks.module_mask(self.model, modules=("attn", "mlp"))
        matrices = sum(
            len(places) for name, places in whole.index.items() if len(whole.shapes[name]) > 1
        )
        return self._module.count / matrices

    @cached_property
    def _module(self) -> iv.WeightMask:
        return iv.masks.module_mask(self.model, layers=self.layer, modules="down")

    @cached_property
    def _encoded_dev(self) -> list:
        return encode(self.model, self.dev, end=True)

    @cached_property
    def lora_rank(self) -> int:
        """The rank at which LoRA on every matrix trains as many numbers, as nearly as can be."""
        one = iv.masks.random_mask(self.model, lora_rank=1).count
        return max(1, round(self._module.count / one))

    def tune(self, way: str, seed: int, lr: float) -> Tuned:
        """One training."""
        return WAYS[way].tune(self, seed, lr)

    def masked(
        self, mask: Mask, seed: int, lr: float, remask: int | None = None,
        prior: iv.Edit | None = None,
    ) -> Tuned:  # fmt: skip
        """`iv.masked_tune`."""
        edit = self._edit(mask, seed, lr, remask, prior)
        return self._tuned(edit, edit.notes["masked_tune"])

    def _edit(
        self, mask: Mask, seed: int, lr: float, remask: int | None = None,
        prior: iv.Edit | None = None,
    ) -> iv.Edit:  # fmt: skip
        return iv.masked_tune(
            self.model, self.train(seed), mask, steps=self.steps, rows=self.rows, lr=lr, seed=seed,
            remask=remask, prior=prior, progress=False,
        )  # fmt: skip

    def _tuned(self, edit: iv.Edit, note: dict[str, Any]) -> Tuned:
        with edit.applied(self.model):
            dev = mean_loss(self.model, self._encoded_dev)
        return Tuned(partial(_edited, self.model, edit), note["count"], note["state bytes"], dev)

    def whole(self, seed: int, lr: float = 3e-4) -> iv.Edit:
        """Everything tuned: the first phase of a lottery ticket, one vote of a consensus."""
        return self._edit(iv.masks.module_mask(self.model), seed, lr)

    @cached_property
    def consensus(self) -> iv.WeightMask:
        """Entries that most of several trainings moved most, as many as the budget allows."""
        votes = [self.whole(1000 + i) for i in range(ROUNDS)]
        low, high = self.share, min(1.0, 4 * self.share)
        for _ in range(7):  # the share of each vote at which two of three agree on the budget
            share = (low + high) / 2
            masks = [iv.masks.change_mask(self.model, vote, share=share) for vote in votes]
            found = iv.masks.consensus_mask(masks, at_least=2 / 3)
            low, high = (share, high) if found.count < self._module.count else (low, share)
        return found

    def away(self, seed: int, lr: float) -> Tuned:
        """CorDA: adapters as large as LoRA's that start away from what the old tasks use."""
        assert self.kept is not None
        edit = iv.tune_with_corda(
            self.model, self.train(seed), self.kept(), rank=self.lora_rank, steps=self.steps,
            rows=self.rows, lr=lr, seed=seed, progress=False,
        )  # fmt: skip
        return self._tuned(edit, edit.notes["tune_with_corda"])

    @cached_property
    def leaning(self) -> iv.Edit:
        """The prior's direction."""
        assert self.direction is not None
        return self.direction()

    def adapter(self, seed: int, lr: float) -> Tuned:
        """LoRA through peft on every matrix of the blocks."""
        import peft

        config = peft.LoraConfig(
            r=self.lora_rank, lora_alpha=2 * self.lora_rank, lora_dropout=0.0,
            target_modules="all-linear",
        )  # fmt: skip
        module = copy.deepcopy(self.model.module)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", FutureWarning)  # peft asks by an old name
            torch.manual_seed(seed)
            wrapped = peft.get_peft_model(module, config)
        handle = Model(wrapped, self.model.tokenizer, self.model.name, check=False)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        wrapped.eval()  # dropout off, as for the masks
        examples = encode(self.model, self.train(seed), end=True)
        for step, some in enumerate(batches(examples, self.rows, self.steps, seed), 1):
            optimizer.zero_grad()
            completion_loss(handle, some).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * (self.steps - step + 1) / self.steps
            optimizer.step()
        merged = interp.load(wrapped.merge_and_unload().eval(), tokenizer=self.model.tokenizer)
        held = [t for entry in optimizer.state.values() for t in entry.values()]
        size = sum(t.numel() * t.element_size() for t in held)
        count = sum(p.numel() for p in trained)
        dev = mean_loss(merged, self._encoded_dev)
        return Tuned(lambda: nullcontext(merged), count, size, dev)


@dataclass(frozen=True)
class Way:
    """A way of tuning: how, at which rates, and whether it trains as many weights as the others."""

    tune: Callable[[Tuner, int, float], Tuned]
    rates: Sequence[float]  # the first, unless several are tried on dev
    matched: bool = True
    needs: str | None = None  # what of a `Tuner` may be missing


def _principal(tuner: Tuner, seed: int, lr: float) -> Tuned:
    mask = iv.principal_mask(tuner.model, rank=tuner.rank, share=tuner.share)
    return tuner.masked(mask, seed, lr)


def _magnitude(tuner: Tuner, seed: int, lr: float, *, low: bool = False) -> Tuned:
    mask = iv.masks.magnitude_mask(tuner.model, low=low, share=tuner.share, seed=seed)
    return tuner.masked(mask, seed, lr)


def _random(tuner: Tuner, seed: int, lr: float) -> Tuned:
    return tuner.masked(iv.masks.random_mask(tuner.model, share=tuner.share, seed=seed), seed, lr)


def _prior(tuner: Tuner, seed: int, lr: float, *, random: bool = False) -> Tuned:
    """The random mask of this seed, its gradients leaning one way, or a random way as far."""
    prior = iv.norm_matched_random(tuner.leaning, seed) if random else tuner.leaning
    mask = iv.masks.random_mask(tuner.model, share=tuner.share, seed=seed)
    return tuner.masked(mask, seed, lr, prior=prior)


def _safe(tuner: Tuner, seed: int, lr: float) -> Tuned:
    """A random part of the safe mask, as large as the budget."""
    safe = iv.masks.safe_mask(tuner.model, rank=tuner.rank, seed=seed)
    part = iv.masks.random_mask(tuner.model, share=tuner.share / safe.share, seed=seed)
    return tuner.masked(safe & part, seed, lr)


def _consensus(tuner: Tuner, seed: int, lr: float) -> Tuned:
    return tuner.masked(tuner.consensus, seed, lr)


def _lottery(tuner: Tuner, seed: int, lr: float) -> Tuned:
    ticket = iv.masks.change_mask(tuner.model, tuner.whole(seed), share=tuner.share)
    return tuner.masked(ticket, seed, lr)


def _one_module(tuner: Tuner, seed: int, lr: float) -> Tuned:
    return tuner.masked(tuner._module, seed, lr)


def _half(tuner: Tuner, seed: int, lr: float) -> Tuned:
    """Another half of every block's matrices each round."""
    rounds = itertools.count()
    made: list[iv.WeightMask] = []

    def mask(model: Model) -> iv.WeightMask:
        made.append(iv.masks.half_mask(model, seed=100 * seed + next(rounds)))
        return made[-1]

    return tuner.masked(mask, seed, lr, remask=max(1, tuner.steps // ROUNDS))


def _frozen(tuner: Tuner, seed: int, lr: float) -> Tuned:
    """All but the MLPs from a third to five sixths of the depth."""
    depth = tuner.model.anatomy.n_layers
    middle = [i for i in range(depth) if depth / 3 <= i < 5 * depth / 6]
    mask = iv.masks.module_mask(tuner.model, layers=middle, modules="mlp", frozen=True)
    return tuner.masked(mask, seed, lr)


def _qk(tuner: Tuner, seed: int, lr: float) -> Tuned:
    return tuner.masked(iv.masks.module_mask(tuner.model, modules=("q", "k")), seed, lr)


def _full(tuner: Tuner, seed: int, lr: float) -> Tuned:
    return tuner.masked(iv.masks.module_mask(tuner.model), seed, lr)


# The first is what dev chose between the first two, on the shipped organism.
SPARSE, STEADY, LARGE = (1e-2, 3e-3, 3e-2), (3e-3, 1e-2, 1e-3), (3e-4, 1e-3, 1e-4)
WAYS: dict[str, Way] = {
    "principal": Way(_principal, STEADY),
    "magnitude": Way(_magnitude, STEADY),
    "low magnitude": Way(partial(_magnitude, low=True), SPARSE),
    "random": Way(_random, SPARSE),
    "consensus": Way(_consensus, SPARSE),
    "safe": Way(_safe, SPARSE),
    "lottery ticket": Way(_lottery, SPARSE),
    "one module": Way(_one_module, SPARSE),
    "prior": Way(_prior, SPARSE, needs="direction"),
    "random prior": Way(partial(_prior, random=True), SPARSE, needs="direction"),
    "LoRA": Way(Tuner.adapter, SPARSE),
    "CorDA": Way(Tuner.away, STEADY, needs="kept"),
    "half in rounds": Way(_half, LARGE, matched=False),
    "middle MLPs frozen": Way(_frozen, LARGE, matched=False),
    "q and k": Way(_qk, (1e-3, 3e-4, 3e-3), matched=False),
    "full": Way(_full, LARGE, matched=False),
}


@contextmanager
def _edited(model: Model, edit: iv.Edit) -> Iterator[Model]:
    with edit.applied(model):
        yield model
