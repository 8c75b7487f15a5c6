"""One SAE while it is trained: weights in the unit of the activations, optimizer, dead latents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from interp import InterpError
from interventions import _sae_objective as objective
from interventions._sae import SAE
from interventions._sae_objective import Objective, Weights
from interventions._sae_plan import SAEPlan

WARMUP, DECAY = 0.05, 0.2  # shares of the steps over which the rate rises, and falls to 0
# Of topk and batchtopk: a step of Adam turns a unit row by about this at most. Ours: the best rate,
# or within 4 % of its FVU, in trainings of 60 to 1000 steps (docs/sae.md).
RATE = 0.09
WAITS = 100  # times as long as a latent of mean frequency waits, d_sae / k tokens, is dead
NOTED = 100  # rows of history
MEMORY = 0.99  # of the running mean of the least latent that survived, BatchTopK's threshold
# Our defaults, in the unit of variance 1 a coordinate: they find a planted dictionary. L1 shrinks
# a latent by sparsity * d_in / 2 while latents are about sqrt(d_in) large, hence the root below.
SPARSITY = {"jumprelu": 0.3, "gated": 0.6, "standard": 0.4}
THRESHOLD = 0.3  # of jumprelu at the start


@dataclass
class Learner:
    """An SAE in training.

    Rows come raw; they are centred and scaled to variance 1 first, and the weights live in that
    unit until `sae` folds it into them.
    """

    plan: SAEPlan
    weights: Weights
    origin: Float[Tensor, " d_in"]
    scale: float
    steps: int
    rate: float
    dead_after: int
    optimizer: torch.optim.Optimizer
    quiet: Int[Tensor, " feature"]  # tokens since a latent fired
    least: float = 0.0
    before: Weights = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def begin(
        plan: SAEPlan, rows: Float[Tensor, "token d_in"], steps: int, batch_size: int
    ) -> Learner:
        """Before the first step; centre and unit come from these rows."""
        d_in = rows.shape[1]
        d_sae = plan.d_sae or 8 * d_in
        if d_sae < plan.k:
            raise InterpError(f"k={plan.k} of d_sae={d_sae}: expected 1 to d_sae")
        origin = geometric_median(rows) if plan.center == "median" else rows.double().mean(0)
        variance = float((rows.double() - origin).square().mean())
        if not 0 < variance < float("inf"):
            raise InterpError(
                f"the activations at {plan.site} are all the same or not finite (variance "
                f"{variance:.3g}), so there is nothing to learn"
            )
        generator = torch.Generator().manual_seed(plan.seed)
        dec = normalize(torch.randn(d_sae, d_in, generator=generator).to(rows.device), dim=1)
        if fitted := plan.kind in ("topk", "batchtopk"):
            at = torch.randint(len(rows), (d_sae,), generator=generator).to(rows.device)
            dec = normalize(dec + normalize(rows[at] - origin.to(rows), dim=1), dim=1)
        zeros = torch.zeros(d_sae, device=rows.device)
        weights = {
            "enc": dec.clone(), "dec": dec, "b_enc": zeros.clone(), "b_dec": zeros.new_zeros(d_in),
        }  # fmt: skip
        if fitted:
            x = (rows[:batch_size] - origin.to(rows)) * variance**-0.5
            weights["enc"] *= fitting_factor(weights, x, plan.k)
        if plan.kind == "jumprelu":
            weights["log_threshold"] = torch.full_like(zeros, THRESHOLD).log()
        if plan.kind == "gated":
            weights |= {"b_gate": zeros.clone(), "r_mag": zeros.clone()}
        parameters = [nn.Parameter(tensor) for tensor in weights.values()]
        weights = {
            name: parameter.data for name, parameter in zip(weights, parameters, strict=True)
        }
        rate = plan.lr or (RATE / d_in**0.5 if fitted else 2e-4 / (d_sae / 2**14) ** 0.5)
        dead_after = plan.dead_after or max(steps * batch_size // 20, WAITS * d_sae // plan.k)
        quiet = torch.zeros(d_sae, dtype=torch.long, device=rows.device)
        return Learner(
            plan, weights, origin.to(rows), variance**-0.5, steps, rate, dead_after,
            torch.optim.Adam(parameters, lr=rate), quiet,
        )  # fmt: skip

    def step(self, rows: Float[Tensor, "token d_in"], step: int) -> bool:
        """One step of Adam; False, and nothing done, where loss or gradient are not finite."""
        found = self.objective((rows - self.origin) * self.scale)
        total = found.loss + sum(gradient.sum() for gradient in found.gradient.values())
        if not bool(total.isfinite()):
            return False
        objective.unit_decoder(self.weights, found.gradient)
        self.before = {name: tensor.clone() for name, tensor in self.weights.items()}
        group = self.optimizer.param_groups[0]
        group["lr"] = self.rate * _share(step, self.steps)
        for parameter, name in zip(group["params"], self.weights, strict=True):
            parameter.grad = found.gradient[name]
        self.optimizer.step()
        objective.unit_decoder(self.weights)
        self._note(found, len(rows), step)
        return True

    def objective(self, x: Float[Tensor, "token d_in"]) -> Objective:
        """The loss on centred and scaled rows."""
        plan, weights = self.plan, self.weights
        sparsity = plan.sparsity
        if sparsity is None:
            root = 1.0 if plan.kind == "jumprelu" else x.shape[1] ** 0.5
            sparsity = SPARSITY.get(plan.kind, 0.0) / root
        if plan.kind == "jumprelu":
            return objective.jumprelu(weights, x, plan.k, sparsity, plan.bandwidth)
        if plan.kind == "gated":
            return objective.gated(weights, x, sparsity)
        if plan.kind == "standard":
            return objective.standard(weights, x, sparsity)
        return objective.topk(
            weights, x, plan.k, whole_batch=plan.kind == "batchtopk",
            dead=self.quiet >= self.dead_after, aux=plan.aux,
            k_aux=plan.k_aux or max(1, x.shape[1] // 2),
        )  # fmt: skip

    def step_back(self) -> None:
        """The weights before the last step."""
        for name, tensor in self.before.items():
            self.weights[name].copy_(tensor)

    def sae(self, site: str, model: str, meta: dict[str, Any]) -> SAE:
        """The SAE that reads raw rows.

        Latents are divided by the scale, as the kinds allow: topk and relu commute with it, and
        thresholds and biases are divided too.
        """
        held = {name: tensor.clone() for name, tensor in self.weights.items()}
        unit = 1 / self.scale
        kind = self.plan.kind
        extra: dict[str, Any] = {}
        if kind == "jumprelu":
            extra["threshold"] = held["log_threshold"].exp() * unit
        if kind == "batchtopk":
            extra["threshold"] = torch.full_like(held["b_enc"], self.least * unit)
        if kind == "gated":
            extra = {"b_gate": held["b_gate"] * unit, "r_mag": held["r_mag"]}
        return SAE(
            kind, held["enc"].T.contiguous(), held["dec"], held["b_enc"] * unit,
            self.origin + held["b_dec"] * unit,
            k=self.plan.k if kind in ("topk", "batchtopk") else None,
            site=site, model=model, **extra,
            meta=meta | {
                "history": self.history, "scale": self.scale,
                "dead": int((self.quiet >= self.dead_after).sum()), "dead_after": self.dead_after,
            },
        )  # fmt: skip

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides what is learned next."""
        tensors = dict(self.weights) | {"quiet": self.quiet, "origin": self.origin}
        group = self.optimizer.param_groups[0]
        for parameter, name in zip(group["params"], self.weights, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam:{name}:{key}"] = value
        return tensors, {"least": self.least, "scale": self.scale, "history": self.history}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Back to a state."""
        home = self.quiet.device
        for name, tensor in self.weights.items():
            tensor.copy_(tensors[name])
        self.quiet.copy_(tensors["quiet"])
        self.origin = tensors["origin"].to(home)
        group = self.optimizer.param_groups[0]
        for parameter, name in zip(group["params"], self.weights, strict=True):
            keys = [key for key in tensors if key.startswith(f"adam:{name}:")]
            self.optimizer.state[parameter] = {
                key.rpartition(":")[2]: tensors[key].to("cpu" if key.endswith(":step") else home)
                for key in keys
            }
        self.least, self.scale = numbers["least"], numbers["scale"]
        self.history = list(numbers["history"])

    def _note(self, found: Objective, tokens: int, step: int) -> None:
        self.quiet += tokens
        self.quiet[found.fired] = 0
        if self.plan.kind == "batchtopk":
            least = float(found.least)
            self.least = least if step == 0 else MEMORY * self.least + (1 - MEMORY) * least
        if step % max(1, self.steps // NOTED) == 0 or step == self.steps - 1:
            terms = {name: float(term) for name, term in found.terms.items()}
            dead = float((self.quiet >= self.dead_after).float().mean())
            self.history.append({"step": step, **terms, "l0": float(found.l0), "dead": dead})


def fitting_factor(weights: Weights, x: Float[Tensor, "token d_in"], k: int) -> Float[Tensor, ""]:
    """What to multiply the encoder by so that x_hat is closest to x: `<x, x_hat> / |x_hat|^2`.

    Latents are proportional to the encoder while biases are 0. Random directions that are as long
    as the decoder's reconstruct far too much, the more the more of them there are, and undoing that
    takes Adam most of a short training and kills latents.
    """
    active = objective.greatest(x @ weights["enc"].T, k)
    x_hat = active.combined(active.values.relu(), weights["dec"])
    return (x * x_hat).sum() / x_hat.square().sum().clamp(min=torch.finfo(x.dtype).tiny)


def geometric_median(
    rows: Float[Tensor, "row d_in"], tolerance: int | float = 1e-6, most: int = 100
) -> Float[Tensor, " d_in"]:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration, float64."""
    points = rows.double()
    guess = points.mean(0)
    for _ in range(most):
        weight = 1 / (points - guess).norm(dim=1).clamp(min=1e-12)
        following = (weight @ points) / weight.sum()
        moved = float((following - guess).norm())
        guess = following
        if moved <= tolerance * float(guess.norm().clamp(min=1e-12)):
            break
    return guess


def _share(step: int, steps: int) -> float:
    """Of the rate: rising at the start, falling to 0 at the end."""
    rising = min(1000, max(1, round(WARMUP * steps)))
    falling = max(1, round(DECAY * steps))
    return min(1.0, (step + 1) / rising, (steps - step) / falling)
