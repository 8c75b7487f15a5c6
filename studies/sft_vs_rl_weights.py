"""What did SFT and RL change in the weights? Two checkpoints of one base, each beside its nulls.

The figures of "Scalpel vs. Hammer" (arXiv 2507.10616) and "The Path Not Taken" (arXiv 2511.08567)
from any three checkpoints, with what such a comparison needs beside it: both normalisations, SFT
shrunk to the norm of RL, isotropic noise of the same norms as a fourth and fifth checkpoint, and a
null for every sparsity, overlap and Jaccard.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import InterpError
from interp._compare import compare
from interp._diff import DiffOptions, diff
from interp._weights.comparison import WeightComparison
from interp._weights.weight_diff import WeightDiff
from studies import _sft_vs_rl_figures as figures
from studies._checkpoints import folder_of, identity
from studies._report import Section, write_report
from studies._run import Run
from studies._synthetic_checkpoints import write_at_norm, write_noise

if TYPE_CHECKING:
    import pandas as pd

NAME = "sft-vs-rl-weights"
MATCHED = "sft at rl's norm"
SHOWN = ["tuned", "relative_norm", "rms", "sparsity", "sparsity_null", "nss", "nss_ratio"]
SHOWN += ["angle_left", "gap", "stable_rank", "principal_energy", "principal_energy_null"]
OVERLAPS = [
    ("sparsity", "unchanged in bf16"),
    ("overlap_low", "overlap with low |W|"),
    ("overlap_principal", "overlap with principal |W|"),
    ("principal_energy", "energy in principal subspace"),
]


@dataclass(frozen=True)
class SftVsRlWeights:
    """What did SFT and RL change in the weights, and what would noise have changed?"""

    base: str = "organism:base"
    """The checkpoint that both started from: a folder, a hub id, or a shipped organism."""
    sft: str = "organism:sft"
    """After supervised fine-tuning."""
    rl: str = "organism:rl"
    """After reinforcement learning."""
    out: Path = Path("runs/sft-vs-rl-weights")
    """The run folder; an interrupted run continues there."""
    rank: int = 64
    """k of principal subspaces and of the rank-k part behind the principal mask."""
    alpha: float = 0.5
    """Share of entries in the principal and the low-magnitude mask."""
    draws: int = 8
    """Draws of each null."""
    seed: int = 0
    """Of nulls and noise."""
    workers: int = 1
    """Processes."""
    smoke: bool = False
    """Two layers and few draws, that everything runs, in seconds."""


def run(config: SftVsRlWeights) -> Run:
    """Run the study and write its folder: records, tables, figures, report.html."""
    if config.workers < 1:
        raise InterpError(f"--workers {config.workers}: expected at least 1")
    sources = {label: getattr(config, label) for label in ("base", "sft", "rl")}
    weights = {source: identity(source) for source in sources.values()}
    folder = Run.open(config.out, NAME, config, checkpoints=weights)
    found, shared = _measured(config, folder)
    table = found.table()
    summary = folder.table("summary", lambda: _summary(table))
    folder.table("matrices", lambda: table)
    pairs = folder.table("pairs", lambda: shared.table())
    verdict = _verdict(summary, found, shared)
    sections = _sections(folder, found, shared, summary, config)
    write_report(
        folder.path / "report.html",
        "What did SFT and RL change in the weights?",
        verdict,
        sections,
        folder.meta,
    )
    folder.finish(verdict=verdict, matrices=len(table), pairs=len(pairs))
    return folder


def _measured(config: SftVsRlWeights, folder: Run) -> tuple[WeightDiff, WeightComparison]:
    """The diff of five checkpoints and the comparison of SFT with RL, kept in the run folder."""
    kept = folder.path / "kept"
    if not (folder.path / "diff").exists():
        base, sft, rl = (str(folder_of(s)) for s in (config.base, config.sft, config.rl))
        made = folder.path / "controls"
        runs = {
            "sft": sft,
            "rl": rl,
            MATCHED: str(write_at_norm(base, sft, rl, made / "sft-at-rl-norm")),
            "noise like sft": str(write_noise(base, sft, made / "noise-like-sft", config.seed)),
            "noise like rl": str(write_noise(base, rl, made / "noise-like-rl", config.seed + 1)),
        }
        options = DiffOptions(
            rank=config.rank,
            alpha=config.alpha,
            draws=5 if config.smoke else config.draws,
            seed=config.seed,
        )
        found = diff(
            base, runs, "all", select=r"layers\.[01]\." if config.smoke else None,
            options=options, workers=config.workers, resume=kept,
        )  # fmt: skip
        found.save(folder.path / "diff")
    found = WeightDiff.load(folder.path / "diff")
    if not (folder.path / "compare").exists():
        two = _only(found, ("sft", "rl"))
        compare(two, spectral=True, workers=config.workers, resume=kept).save(
            folder.path / "compare"
        )
    shutil.rmtree(kept, ignore_errors=True)  # what an interrupted diff continues from
    return found, WeightComparison.load(folder.path / "compare")


def _only(found: WeightDiff, labels: tuple[str, ...]) -> WeightDiff:
    tuned = {label: found.meta["tuned"][label] for label in labels}
    return WeightDiff([], [], {}, {**found.meta, "tuned": tuned})


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint: norms over all tensors, the rest as means over block matrices."""
    import pandas as pd

    rows = []
    for tuned, group in table.groupby("tuned", sort=False):
        both = group.dropna(subset=["norm", "norm_base"])
        inside = group[group["nss"].notna()]
        row: dict[str, Any] = {"tuned": tuned}
        squares = float((both["norm"] ** 2).sum())
        row["relative_norm"] = (squares / float((both["norm_base"] ** 2).sum())) ** 0.5
        row["rms"] = (squares / float(both["numel"].sum())) ** 0.5
        for share in ("sparsity", "sparsity_null"):
            weighted = (inside[share] * inside["numel"]).sum()
            row[share] = float(weighted / inside["numel"].sum())
        for column in SHOWN[5:]:
            row[column] = float(inside[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _verdict(summary: pd.DataFrame, found: WeightDiff, shared: WeightComparison) -> list[str]:
    """What was found, a sentence a line; an effect only where |z| >= 3."""
    at = summary.set_index("tuned")
    sentences = [
        f"SFT moved the weights by {at.loc['sft', 'relative_norm']:.2%} of their norm, RL by "
        f"{at.loc['rl', 'relative_norm']:.2%}: magnitude follows learning rate and steps, which "
        f"weights do not tell.",
        f"Singular values moved by NSS {at.loc['sft', 'nss']:.2g} (SFT) and "
        f"{at.loc['rl', 'nss']:.2g} (RL); at RL's norm SFT has {at.loc[MATCHED, 'nss']:.2g}, and "
        f"noise of RL's norm {at.loc['noise like rl', 'nss']:.2g}.",
    ]
    sentences += [s for s in found.findings() if s.startswith(("sft:", "rl:"))]
    return sentences + shared.findings()


def _sections(
    folder: Run,
    found: WeightDiff,
    shared: WeightComparison,
    summary: pd.DataFrame,
    config: SftVsRlWeights,
) -> list[Section]:
    table = found.table()
    norms = folder.figure("norms", lambda: figures.norms(found))
    spectral = [("nss", "NSS"), ("nss_ratio", "NSS / relative norm"), ("angle_left", "angle (°)")]
    geometry = folder.figure("geometry", lambda: figures.by_layer(table, spectral))
    ranks = [("stable_rank", "stable rank of ΔW"), ("principal_energy", "principal energy")]
    rank = folder.figure("ranks", lambda: figures.by_layer(table, ranks))
    nulls = folder.figure("nulls", lambda: figures.against_nulls(table, OVERLAPS))
    jaccard = folder.figure("jaccard", lambda: figures.jaccard(shared))
    return [
        Section("In numbers", [_reading()], summary[SHOWN]),
        Section(
            "Where the norm is (2507.10616)",
            [
                "The same changes in two normalisations. Which module “changed most” can depend on "
                "the choice: relative norms favour matrices with small weights. Colours are scaled "
                "panel by panel."
            ],
            figures=[(norms, "Relative norm ||ΔW||/||W|| (top) and RMS ||ΔW||/√(mn) (bottom).")],
        ),
        Section(
            "Singular values and subspaces (2511.08567)",
            [
                "NSS is at most the relative norm, so a small NSS may only mean a small update: "
                "read NSS / relative norm, and the checkpoint with SFT's direction at RL's norm. "
                "An angle means nothing where the gap behind the k-th singular value is small; the "
                "table has both."
            ],
            figures=[
                (geometry, "By layer."),
                (rank, "Rank of the update; where its energy is."),
            ],
        ),
        Section(
            "Masks beside their nulls (2511.08567, 2506.00772)",
            [
                f"alpha = {config.alpha}, rank = {config.rank} (at most a quarter of a side), "
                f"{config.draws} draws. The null is isotropic noise of the same density through "
                "the bfloat16 gate (for sparsity: of the same norm). On the diagonal there is "
                "nothing left to explain by training."
            ],
            figures=[(nulls, "One point a matrix; filled where |z| ≥ 3.")],
        ),
        Section(
            "What SFT and RL share",
            ["Jaccard of the changed entries; dashed: independent gated noise."],
            _shared(shared),
            [(jaccard, "Solid: observed. Dashed: null.")],
        ),
        Section("Confounds", _confounds(found, config)),
    ]


def _reading() -> str:
    return (
        "Means over the weight matrices of the blocks; norms over all tensors. “noise like …” is "
        "the base plus isotropic Gaussian noise with, tensor by tensor, the norm of that update, "
        "stored in the base's dtype. Angles in degrees."
    )


def _shared(shared: WeightComparison) -> pd.DataFrame:
    columns = ["jaccard", "jaccard_expected", "jaccard_null", "delta_cosine", "delta_cosine_null"]
    columns += ["row_correlation", "row_correlation_null"]
    return shared.table().groupby("module", sort=False)[columns].mean().reset_index()


def _confounds(found: WeightDiff, config: SftVsRlWeights) -> list[str]:
    table = found.table()
    stored = {
        tuned: sorted(set(group["dtype"].dropna())) for tuned, group in table.groupby("tuned")
    }
    lines = [
        f"Storage: {label} is {', '.join(stored[label])} on a base in "
        f"{', '.join(sorted(set(table['dtype_base'].dropna())))}. In float32 nothing is gated, and "
        f"the sparsity shown is that after casting to bfloat16."
        for label in ("sft", "rl")
    ]
    for label in ("sft", "rl"):
        lines.append(f"{label}: {_training(folder_of(getattr(config, label)))}")
    lines.append(
        "Learning rates of SFT and RL often differ fifty-fold, so norms compare recipes, not "
        "methods; compare at matched norm, and at matched accuracy on the new task. One seed of "
        "each says nothing about their spread."
    )
    return lines


def _training(folder: Path) -> str:
    """Learning rate and steps, where a trainer left its state beside the weights."""
    file = folder / "trainer_state.json"
    if not file.is_file():
        return "no trainer_state.json, so learning rate and steps are unknown here."
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InterpError(f"{file} is damaged: {error}") from error
    rates = [e["learning_rate"] for e in state.get("log_history", []) if "learning_rate" in e]
    peak = f"{max(rates):.2g}" if rates else "unknown"
    return f"{state.get('global_step', 'unknown')} steps, peak learning rate {peak}."
