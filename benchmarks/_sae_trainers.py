"""One trainer of topk SAEs on stored activations, in the environment of whoever runs this file.

`python benchmarks/_sae_trainers.py NAME data.safetensors D_SAE K BATCH STEPS SEED LR ...` prints
one line of JSON for each rate: seconds and CPU seconds of the training loop, by how much it lifted
the peak of the process's memory (Linux), and the FVU on the file's dev and test rows. It imports
nothing of ours but for NAME "interp", so peers need no more than their own packages.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Reconstruct = Callable[[Tensor], Tensor]


def batches(rows: Tensor, size: int, steps: int) -> Iterator[Tensor]:
    """The same for everybody."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield rows[torch.randint(len(rows), (size,), generator=generator)]


def interp(
    rows: Tensor, d_sae: int, k: int, size: int, steps: int, seed: int, lr: float,
    aux: float = 1 / 32,
) -> Any:  # fmt: skip
    """Ours, with everything that `train_sae` does to a batch."""
    from interventions._sae_learner import Learner
    from interventions._sae_plan import SAEPlan

    plan = SAEPlan("resid_post.0", "topk", d_sae, k, lr=lr, aux=aux, seed=seed)
    with torch.no_grad():
        learner = Learner.begin(plan, rows[:32_768], steps, size)

        def train() -> Reconstruct:
            for step, batch in enumerate(batches(rows, size, steps)):
                learner.step(batch, step)
            return learner.sae("resid_post.0", "", {}).reconstruct

    return torch.no_grad()(train)


def sae_lens(
    rows: Tensor, d_sae: int, k: int, size: int, steps: int, seed: int, lr: float
) -> Any:  # fmt: skip
    """sae-lens' own SAETrainer over a data provider; defaults, our rate."""
    from sae_lens.config import SAETrainerConfig  # type: ignore[import-not-found]
    from sae_lens.saes.topk_sae import (  # type: ignore[import-not-found]
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=d_sae, k=k))
    config = SAETrainerConfig(
        total_training_samples=size * steps, train_batch_size_samples=size, lr=lr, lr_end=lr / 10,
        lr_warm_up_steps=max(1, steps // 20), lr_decay_steps=steps // 5,
    )  # fmt: skip

    def train() -> Reconstruct:
        trained = SAETrainer(config, sae, batches(rows, size, steps + 1)).fit()
        return lambda x: trained.decode(trained.encode(x))

    return train


def sparsify(
    rows: Tensor, d_sae: int, k: int, size: int, steps: int, seed: int, lr: float
) -> Any:  # fmt: skip
    """sparsify's SparseCoder with the steps of its Trainer.fit, which itself only takes a model."""
    from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    coder = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=d_sae, k=k))
    coder.b_dec.data = rows[:32_768].mean(0)
    optimizer = torch.optim.Adam(coder.parameters(), lr=lr)
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    quiet = torch.zeros(d_sae, dtype=torch.long)

    def train() -> Reconstruct:
        for batch in batches(rows, size, steps):
            coder.set_decoder_norm_to_unit_norm()
            out = coder(batch)
            out.fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            fired = torch.zeros(d_sae, dtype=torch.bool)
            fired[out.latent_indices.flatten()] = True
            quiet.add_(len(batch))
            quiet[fired] = 0
        return lambda x: coder(x).sae_out

    return train


def peak(reset: bool = False) -> int:
    """Bytes: the most this process has held, or what it holds now, from which the peak then counts.

    0 where the system tells neither.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    field = "VmRSS:" if reset else "VmHWM:"
    return 1024 * int(next(x for x in status.splitlines() if x.startswith(field)).split()[1])


def fvu(reconstruct: Reconstruct, x: Tensor) -> float:
    """Share of the rows' variance that is missed."""
    with torch.no_grad():
        return float((reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def main() -> None:
    """Train, measure, print."""
    name, path, *numbers = sys.argv[1:]
    sizes, rates = [int(n) for n in numbers[:5]], [float(n) for n in numbers[5:]]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = load_file(path)
    trainers: dict[str, Callable[..., Any]]
    trainers = {"interp": interp, "sae-lens": sae_lens, "sparsify": sparsify}
    trainers["interp without AuxK"] = partial(interp, aux=0.0)
    for lr in rates:
        train = trainers[name](data["train"], *sizes, lr)
        before = peak(reset=True)
        begun, cpu = time.perf_counter(), time.process_time()
        reconstruct = train()
        found = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
        found |= {"lr": lr, "peak_growth_bytes": peak() - before}
        print(json.dumps(found | {part: fvu(reconstruct, data[part]) for part in ("dev", "test")}))


if __name__ == "__main__":
    main()
