"""What a lens saw: a record with a tidy table and a figure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._errors import InterpError, counted
from interp._record import load_record, save_record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_NOT_TENSORS = ("answers", "tokens", "meta")


@dataclass(frozen=True, eq=False)
class LensTrace:
    """Predictions by layer at chosen positions; `row` runs over (prompt, position).

    Args:
        logprob: log-prob of each answer's first token, in nats.
        rank: its rank, 1 for the top token; equally likely tokens in the order of their ids.
        entropy: of the whole prediction, in nats.
        kl: KL(model's output || this layer), in nats.
        top_logprob: log-probs of the top tokens.
        top_token: their ids.
        answer_logprob: log-prob of the whole answer through the lens (equal to `logprob` for
            answers of one token; NaN where positions other than the last were asked for).
        answer_token: the first token of each answer.
        prompt: index of each row's prompt.
        position: position of each row in real tokens.
        token: the token standing there.
        answers: the answers as text, for each row.
        tokens: text of every token mentioned.
        meta: model, lens and arguments.
    """

    logprob: Float[Tensor, "row layer answer"]
    rank: Int[Tensor, "row layer answer"]
    entropy: Float[Tensor, "row layer"]
    kl: Float[Tensor, "row layer"]
    top_logprob: Float[Tensor, "row layer k"]
    top_token: Int[Tensor, "row layer k"]
    answer_logprob: Float[Tensor, "row layer answer"]
    answer_token: Int[Tensor, "row answer"]
    prompt: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    answers: list[list[str]]
    tokens: dict[int, str]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n_rows, n_layers, n_answers = self.logprob.shape
        said = ", ".join(map(repr, self.answers[0][:3])) if n_rows else ""
        more = f", ... {n_answers} in all" if n_answers > 3 else ""
        lens = self.meta.get("lens", "logit")
        rows = counted(n_rows, "row")
        return f"LensTrace({lens} lens: {rows}, {n_layers} layers; answers {said}{more})"

    @property
    def prob(self) -> Float[Tensor, "row layer answer"]:
        """Probability of each answer's first token."""
        return self.logprob.exp()

    @property
    def n_layers(self) -> int:
        """Rows of the lens: blocks + 1, the embedding first."""
        return int(self.logprob.shape[1])

    def decision_layer(self, answer: int = 0, versus: int | None = None) -> Float[Tensor, " row"]:
        """The layer from which the answer wins and never loses again; NaN where it loses last.

        It wins where it is the top token, or with `versus` where it is likelier than that other
        answer: min { l : p_answer[l'] > p_versus[l'] for all l' >= l }.

        Args:
            answer: index of the answer.
            versus: index of the answer to compare with.
        """
        n_answers = self.rank.shape[-1]
        for index in (answer, versus):
            if index is not None and not 0 <= index < n_answers:
                raise InterpError(f"no answer {index}; this trace has {n_answers}, from 0")
        if versus is None:
            wins = self.rank[..., answer] == 1
        else:
            wins = self.logprob[..., answer] > self.logprob[..., versus]
        lasting = wins.flip(1).long().cumprod(dim=1).sum(dim=1)  # wins counted back from the output
        layer = (self.n_layers - lasting).float()
        return torch.where(lasting > 0, layer, torch.full_like(layer, float("nan")))

    def table(self) -> pd.DataFrame:
        """Tidy: `prompt position layer answer prob logprob rank entropy kl top answer_logprob`."""
        import pandas as pd

        n_rows, n_layers, n_answers = self.logprob.shape
        row, layer, answer = torch.meshgrid(
            torch.arange(n_rows), torch.arange(n_layers), torch.arange(n_answers), indexing="ij"
        )
        row, layer, answer = row.flatten(), layer.flatten(), answer.flatten()
        return pd.DataFrame(
            {
                "prompt": self.prompt[row].numpy(),
                "position": self.position[row].numpy(),
                "layer": layer.numpy(),
                "answer": [self.answers[r][a] for r, a in zip(row, answer, strict=True)],
                "prob": self.prob.flatten().numpy(),
                "logprob": self.logprob.flatten().numpy(),
                "rank": self.rank.flatten().numpy(),
                "entropy": self.entropy[row, layer].numpy(),
                "kl": self.kl[row, layer].numpy(),
                "top": [
                    " ".join(repr(self.tokens[t]) for t in self.top_token[r, la].tolist())
                    for r, la in zip(row, layer, strict=True)
                ],
                "answer_logprob": self.answer_logprob.flatten().numpy(),
            }
        )

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """One prompt: P(answer) by layer, or layer x position with the top token where several.

        Args:
            ax: where to draw; a new figure by default.
            prompt: which prompt.
        """
        from interp._lens_plot import draw_heat_map, draw_lines

        rows = (self.prompt == prompt).nonzero()[:, 0]
        if len(rows) == 0:
            raise InterpError(
                f"no prompt {prompt} in this trace; it has 0 to {int(self.prompt.max())}"
            )
        draw = draw_lines if len(rows) == 1 else draw_heat_map
        return draw(self, rows.tolist(), ax)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `LensTrace.load` reads back, whole or not at all."""
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_TENSORS
        }
        meta = {
            "answers": self.answers,
            "tokens": {str(token): text for token, text in self.tokens.items()},
            "trace": self.meta,
        }
        return save_record(path, "lens_trace", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> LensTrace:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "lens_trace")
        tokens = {int(token): text for token, text in meta["tokens"].items()}
        return LensTrace(**tensors, answers=meta["answers"], tokens=tokens, meta=meta["trace"])
