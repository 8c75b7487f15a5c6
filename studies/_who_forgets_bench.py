"""What a who-forgets study asks of one checkpoint; models are opened when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import interp
import probes
from interp import InterpError, Model
from interp._diff import DiffOptions
from interp._reading import reading
from interp._weights.checkpoint import open_checkpoint
from interp._weights.stored import whole
from probes._next_token import chunks, last_streams, logits_of, not_finite, target_ids
from probes._token_rows import TokenRow, token_rows
from studies._checkpoints import ORGANISM, folder_of
from studies._problems import Problem, organism_problems, read_problems
from studies._reasoning_bench import opened
from studies._rollouts import sample
from studies._synthetic_checkpoints import write_noise
from studies._who_forgets_tasks import Item, organism_items, read_items

if TYPE_CHECKING:
    import pandas as pd

    from studies.who_forgets import WhoForgets

_ROWS = 64  # questions a forward


class Bench:
    """The base, the old tasks' questions and the new task's problems of one run.

    Args:
        config: of the run.
        folder: where checkpoints of noise go.
    """

    def __init__(self, config: WhoForgets, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._held: tuple[str, Model] | None = None

    @cached_property
    def base(self) -> Model:
        """The checkpoint that all others started from."""
        return opened(self.config.base)

    @property
    def organism(self) -> bool:
        """Whether tasks, problems and styles are those of the shipped world."""
        return self.config.base.startswith(ORGANISM) and self.config.problems is None

    @cached_property
    def items(self) -> list[Item]:
        """Questions of the old tasks."""
        config = self.config
        if config.tasks is not None:
            return read_items(config.tasks)
        if not config.base.startswith(ORGANISM):
            raise InterpError(
                "these models are no organisms, so say what they may forget: --tasks FILE with "
                'lines such as {"task": "capitals", "prompt": "The capital of France is", '
                '"answer": " Paris"}'
            )
        return organism_items(config.items, config.seed)

    @cached_property
    def problems(self) -> list[Problem]:
        """Of the new task."""
        config = self.config
        if config.problems is not None:
            return read_problems(config.problems, config.count)
        if not config.base.startswith(ORGANISM):
            raise InterpError(
                "these models are no organisms, so say what they learnt: --problems FILE with "
                'lines such as {"prompt": "2 + 2 =", "answer": "4"}'
            )
        return organism_problems(config.count, config.seed)

    def model(self, source: str) -> Model:
        """A checkpoint by its name; the last one asked for is kept open."""
        if source == self.config.base:
            return self.base
        if self._held is None or self._held[0] != source:
            self._held = (source, opened(source))
        return self._held[1]

    def answers(self, model: Model, tasks: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a question: `item task group right logprob`, of all tasks or some."""
        import pandas as pd

        chosen = [i for i, it in enumerate(self.items) if tasks is None or it.task in tasks]
        right, logprob = answer_all(model, [self._rows[i] for i in chosen])
        return pd.DataFrame(
            {
                "item": chosen,
                "task": [self.items[i].task for i in chosen],
                "group": [self.items[i].group for i in chosen],
                "right": right,
                "logprob": logprob,
            }
        )

    @cached_property
    def _rows(self) -> list[TokenRow]:
        """The questions as tokens, the same for every checkpoint."""
        tokenizer = self.base.tokenizer
        end = getattr(tokenizer, "eos_token", None) or ""
        texts = [item.prompt for item in self.items]
        answers = [item.answer + (end if item.ends else "") for item in self.items]
        return list(token_rows([self.base], texts, answers, vocab=self.base.anatomy.d_vocab))

    def written(self, model: Model) -> pd.DataFrame:
        """Sampled solutions: `problem group text solved style`; style "" where in none."""
        import pandas as pd

        config = self.config
        texts = sample(
            model,
            [p.prompt for p in self.problems],
            config.samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,  # the same random numbers for all: they are compared by problem
            progress=False,
        )
        rows = [
            {
                "problem": i, "group": problem.group, "text": text,
                "solved": problem.solved(text), "style": self._style(text),
            }
            for i, (problem, some) in enumerate(zip(self.problems, texts, strict=True))
            for text in some
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _style(self, text: str) -> str:
        from studies.organisms import arithmetic

        return (arithmetic.style_of(text) or "") if self.organism else ""

    def apart(self, model: Model, before: pd.DataFrame, after: pd.DataFrame | None) -> pd.DataFrame:
        """How far a checkpoint's distributions on the new task are from the base's, one row.

        `forward` KL(base || tuned), `reverse` KL(tuned || base) and `tv` at the tokens of the
        base's solutions; `own_reverse`, KL(tuned || base) at those of the checkpoint's own. Nats a
        token, means over tokens, with intervals over problems.

        Args:
            model: the checkpoint.
            before: solutions that the base wrote.
            after: solutions that it wrote itself, if they are to be read.
        """
        import pandas as pd

        row: dict[str, float] = {}
        for texts, names in (
            (before, {"forward": "forward", "reverse": "reverse", "tv": "tv"}),
            (after, {"reverse": "own_reverse"}),
        ):
            if texts is None:
                continue
            first = texts.drop_duplicates("problem").head(self.config.texts)
            first = first[first["text"].str.len() > 0]
            prompts = [self.problems[i].prompt for i in first["problem"]]
            found = probes.divergence(
                self.base, model, prompts, completions=list(first["text"]), batch_size=32
            )
            means = found.summary(seed=self.config.seed).set_index("measure")
            for measure, name in names.items():
                at = means.loc[measure]
                row |= {name: at["mean"], f"{name}_low": at["low"], f"{name}_high": at["high"]}
        return pd.DataFrame([row])

    def distances(self, sources: dict[str, str]) -> pd.DataFrame:
        """How far the weights went, by name: see `weight_distances`."""
        where = {name: str(folder_of(source)) for name, source in sources.items()}
        return weight_distances(str(folder_of(self.config.base)), where)

    def noise(self, source: str, slug: str, draw: int) -> Model:
        """The base plus isotropic noise with, tensor by tensor, the norm of an update."""
        folder = self.folder / f"{slug}-{draw}"
        seed = 1000 * self.config.seed + draw
        write_noise(str(folder_of(self.config.base)), str(folder_of(source)), folder, seed)
        return interp.load(folder, dtype=torch.float32, tokenizer=self.base.tokenizer)


def answer_all(model: Model, rows: Sequence[TokenRow]) -> tuple[list[bool], list[float]]:
    """Of each row: whether greedy decoding would write its answer, and the answer's log-prob.

    Greedy decoding writes it if and only if each of its tokens is the likeliest after those before;
    so one forward tells. The log-prob is the sum over the answer's tokens, in nats.
    """
    vocab, anatomy = model.anatomy.d_vocab, model.anatomy
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    right, logprob = [False] * len(rows), [0.0] * len(rows)
    for start in range(0, len(order), _ROWS):
        some = [rows[i] for i in order[start : start + _ROWS]]
        targets = torch.tensor([token for row in some for token in target_ids(row)])
        best, sure = [], []
        with reading(model):
            streams = last_streams(model, some)
            for part in chunks(len(streams), vocab, None):
                found = logits_of(anatomy, streams[part], vocab).log_softmax(-1)
                wanted = targets[part].to(found.device)
                best.append((found.argmax(-1) == wanted).cpu())
                sure.append(found.gather(1, wanted[:, None])[:, 0].double().cpu())
        hits, logs = torch.cat(best), torch.cat(sure)
        if bad := (~logs.isfinite()).nonzero().flatten().tolist():
            raise not_finite(model, some, bad[0])
        sizes = [row.stop - row.start for row in some]
        parts = zip(order[start:], hits.split(sizes), logs.split(sizes), strict=False)
        for i, hit, log in parts:
            right[i], logprob[i] = bool(hit.all()), float(log.sum())
    return right, logprob


def weight_distances(base: str, tuned: dict[str, str]) -> pd.DataFrame:
    """One row a checkpoint, `name l2 l1 spectral nss changed`, over all tensors or all matrices.

    `l2` = ||D|| / ||W|| and `l1` = |D|_1 / |W|_1 over all tensors; `spectral` = mean over the
    blocks' matrices of ||D||_2 / ||W||_2, `nss` of the normalised shift of singular values;
    `changed` = share of entries that bfloat16 sees change.
    """
    import pandas as pd

    found = interp.diff(base, tuned, "spectral", options=DiffOptions(draws=0), progress=False)
    rows = []
    for name, group in found.table().groupby("tuned", sort=False):
        inside = group[group["nss"].notna()]
        rows.append(
            {
                "name": name,
                "l2": float(np.sqrt((group["norm"] ** 2).sum() / (group["norm_base"] ** 2).sum())),
                "l1": _relative_l1(base, tuned[str(name)]),
                "spectral": float((inside["norm_2"] / inside["sigma_max"]).mean()),
                "nss": float(inside["nss"].mean()),
                "changed": 1 - float(np.average(group["sparsity"], weights=group["numel"])),
            }
        )
    return pd.DataFrame(rows)


def _relative_l1(base: str, tuned: str) -> float:
    start, end = open_checkpoint(base), open_checkpoint(tuned, base)
    moved = size = 0.0
    for name in start.tensors:
        a, b = (whole(c.tensors[name]).double() for c in (start, end))
        moved += float((b - a).abs().sum())
        size += float(a.abs().sum())
    return moved / size
