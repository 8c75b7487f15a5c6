"""SAEs on disk: written in SAELens 6's layout; read from it, sparsify and dictionary_learning."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import InterpError, Site, SiteNotFound
from interp._batch import is_index
from interp._errors import nearest
from interp._record import provenance, replacing
from interventions._sae import SAE, misfit

if TYPE_CHECKING:
    from interventions._sae_card import SAECard

LAYOUT = "6.0.0"  # from here on SAELens reads model_name and hook_name from cfg.json's metadata
FILES = {
    "cfg.json", "sae_weights.safetensors", "card.json", "features.parquet", "card.png", "card.html",
}  # fmt: skip
_SAELENS = ("standard", "topk", "jumprelu", "gated")
_SUFFIX = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out", ".attn": "attn_out"}
_SUBMODULE = {"resid_post": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}


def load_sae(path: str | Path) -> SAE:
    """Read an SAE that SAELens, EleutherAI's sparsify or dictionary_learning wrote.

    Known by its files: `cfg.json` and `sae_weights.safetensors` (SAELens, also before 6);
    `cfg.json` and `sae.safetensors` (sparsify); `ae.pt` and perhaps `config.json`
    (dictionary_learning). Weights become float32. Latents that a layout multiplies by the norms of
    the decoder's rows are read so too: the norms are folded into the weights. Of a dictionary,
    latents are what `encode` gives by default in version 0.1 of its library; gated ones used to be
    multiplied by these norms, and no file tells. Without `config.json` a BatchTopK is read as a
    topk, whose tensors have the same names.

    Args:
        path: the folder, or the file with the weights in it.

    Raises:
        InterpError: no SAE there, one half written or damaged, an architecture that is not an SAE
            of one site, weights of other shapes than the config says.

    Examples:
        >>> made = iv.sae.random(d_in=128, d_sae=512, k=16, site="resid_post.3")
        >>> iv.load_sae(made.save("sae/")).site
        'resid_post.3'

    Source: the layouts as their libraries write them (SAELens 6.54, sparsify, dictionary_learning
    0.1: `dictionary.py` and `trainers/` as of August 2025).
    We deviate from SAELens' own reader of sparsify folders, which transposes the decoder and takes
    every hook for the residual stream.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    if (folder / "ae.pt").is_file() and path.suffix != ".safetensors":
        return _dictionary_learning(folder)
    if (folder / "sae.safetensors").is_file() and path.name != "sae_weights.safetensors":
        return _sparsify(folder)
    return _saelens(folder)


def save_sae(sae: SAE, path: Path, card: SAECard | None) -> Path:
    """`SAE.save` documents it."""
    with replacing(path, FILES) as folder:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in sae.tensors.items()}
        if sae.kind == "gated":
            tensors["b_mag"] = tensors.pop("b_enc")
        save_file(tensors, folder / "sae_weights.safetensors")
        text = json.dumps(_config(sae), indent=1, default=str)
        (folder / "cfg.json").write_text(text, encoding="utf-8")
        if card is not None:
            card.write_into(folder)
    return path


def _config(sae: SAE) -> dict[str, Any]:
    architecture = "jumprelu" if sae.kind == "batchtopk" else sae.kind
    metadata: dict[str, Any] = {
        "sae_lens_version": LAYOUT, "sae_lens_training_version": None,
        "model_name": sae.model, "hook_name": _hook(sae.site), "site": sae.site,
        "training_architecture": sae.kind, "k": sae.k, "interp": dict(sae.meta) | provenance(),
    }  # fmt: skip
    config = {
        "d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu", "apply_b_dec_to_input": sae.center, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": metadata, "architecture": architecture,
    }  # fmt: skip
    if sae.kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config


def _hook(site: str | None) -> str | None:
    try:
        return None if site is None else Site.parse(site).hook_name
    except (KeyError, SiteNotFound):
        return site


def _saelens(folder: Path) -> SAE:
    config = _json(folder, "cfg.json", "sae_weights.safetensors")
    tensors = _weights(folder / "sae_weights.safetensors")
    architecture = str(config.get("architecture", "standard"))
    activation = str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    if architecture == "standard" and activation.startswith("topk"):  # before SAELens 6
        architecture = "topk"
        options = config.get("activation_fn_kwargs") or {}
        config["k"] = config.get("k") or options.get("k")
    if architecture not in _SAELENS:
        raise InterpError(
            f"{folder} holds {architecture!r}, which is not an SAE of one site that can be read "
            f"here; {nearest(architecture, _SAELENS)}"
        )
    if (norm := str(config.get("normalize_activations", "none"))) != "none":
        raise InterpError(
            f"{folder} wants its input normalised ({norm!r}); fold that into its weights with "
            f"SAELens (fold_activation_norm_scaling_factor), then save it again"
        )
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) and metadata else config
    given = metadata.get("site") or metadata.get("hook_name")
    trained = metadata.get("training_architecture")
    kind = "batchtopk" if (architecture, trained) == ("jumprelu", "batchtopk") else architecture
    if architecture == "gated":
        tensors["b_enc"] = tensors.pop("b_mag", torch.empty(0))
    sae = _built(
        folder, kind, tensors, config, _site(given), str(metadata.get("model_name") or ""),
        k=config.get("k") or metadata.get("k"),
        center=bool(config.get("apply_b_dec_to_input", True)),
        meta=metadata.get("interp") or {"read from": "sae_lens"},
    )  # fmt: skip
    return _folded(sae) if config.get("rescale_acts_by_decoder_norm") else sae


def _sparsify(folder: Path) -> SAE:
    config = _json(folder, "cfg.json", "sae.safetensors")
    held = _weights(folder / "sae.safetensors")
    refused = [n for n in ("transcode", "skip_connection") if config.get(n)]
    refused += ["activation groupmax"] if config.get("activation", "topk") != "topk" else []
    if refused:
        raise InterpError(
            f"{folder} holds a sparsify coder with {' and '.join(refused)}, which is not a topk "
            f"SAE of one site"
        )
    tensors = {"W_enc": _transposed(held, "encoder.weight"), "b_enc": held.get("encoder.bias")}
    tensors |= {"W_dec": held.get("W_dec"), "b_dec": held.get("b_dec")}
    name = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(\.\w+)?", folder.name)
    site = None
    if name and (name[2] or "") in _SUFFIX:
        site = f"{_SUFFIX[name[2] or '']}.{name[1]}"
    elif folder.name.endswith(("embed_tokens", "wte", "embed_in")):
        site = "embed"
    return _built(
        folder, "topk", tensors, config, site, "", k=config.get("k"), center=True,
        meta={"read from": "sparsify", "hookpoint": folder.name},
    )  # fmt: skip


def _dictionary_learning(folder: Path) -> SAE:
    file = folder / "ae.pt"
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InterpError(
            f"{file} is damaged or no plain state dict: {_first(error)}; fetch it again"
        ) from error
    if isinstance(held, Mapping) and isinstance(held.get("ae"), Mapping):
        raise InterpError(
            f"{file} is the backup of a training that stopped at step {held.get('step')}, in the "
            f"unit of that training; let it end, or take one of its checkpoints"
        )
    if not isinstance(held, Mapping) or not all(torch.is_tensor(t) for t in held.values()):
        raise InterpError(f"{file} is no plain state dict; expected tensors by name")
    config = _json(folder, "config.json", "ae.pt") if (folder / "config.json").is_file() else {}
    trainer = config.get("trainer", config)
    named, where = str(trainer.get("dict_class", "")), str(trainer.get("submodule_name") or "")
    kind, tensors, options = _of_dictionary(held, trainer, named)
    kinds = [kind_ for word, kind_ in _SUBMODULE.items() if word in where]
    layer = trainer.get("layer")
    site = f"{kinds[0]}.{layer}" if kinds and isinstance(layer, int) else None
    sae = _built(
        folder, kind, tensors, {}, site, str(trainer.get("lm_name") or ""),
        meta={"read from": "dictionary_learning", "dict_class": named, "submodule": where},
        **options,
    )  # fmt: skip
    # Its reader scales the decoder of an AutoEncoder to norm 1, and of no other class.
    return _folded(sae) if "bias" in held else sae


def _of_dictionary(
    held: Mapping[str, Tensor], trainer: Mapping[str, Any], named: str
) -> tuple[str, dict[str, Tensor | None], dict[str, Any]]:
    """Kind, weights and options of a dictionary's state dict; which class it is, its keys tell."""
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    tensors: dict[str, Tensor | None]
    if "W_enc" in held:  # matrices as they are multiplied: JumpReLU and Matryoshka
        tensors = {name: held.get(name) for name in names}
        if "k" not in held:
            return "jumprelu", tensors | {"threshold": held.get("threshold")}, {"center": False}
    else:
        tensors = {
            "W_enc": _transposed(held, "encoder.weight"), "b_enc": held.get("encoder.bias"),
            "W_dec": _transposed(held, "decoder.weight"), "b_dec": held.get("b_dec"),
        }  # fmt: skip
    if "r_mag" in held:
        tensors |= {"b_enc": held.get("mag_bias"), "b_dec": held.get("decoder_bias")}
        return "gated", tensors | {"b_gate": held.get("gate_bias"), "r_mag": held["r_mag"]}, {}
    if "b_dec" not in held:  # AutoEncoderNew keeps its bias in the decoder, and subtracts none
        tensors["b_dec"] = held.get("bias", held.get("decoder.bias"))
        return "standard", tensors, {"center": "bias" in held}
    k = held.get("k", trainer.get("k"))
    options = {"k": None if k is None else int(k)}
    if not ("W_enc" in held or named.startswith("BatchTopK")):
        return "topk", tensors, options
    threshold, bias = held.get("threshold"), tensors["b_enc"]
    if threshold is not None and bias is not None:  # -1 stands for none yet, and relu comes first
        tensors["threshold"] = threshold.clamp(min=0).expand(len(bias)).clone()
    return "batchtopk", tensors, options


def _built(
    folder: Path,
    kind: str,
    tensors: Mapping[str, Tensor | None],
    config: Mapping[str, Any],
    site: str | None,
    model: str,
    **options: Any,
) -> SAE:
    """An SAE of tensors from a file that is not trusted."""
    names = {"W_enc", "W_dec", "b_enc", "b_dec"} | {
        "gated": {"b_gate", "r_mag"}, "jumprelu": {"threshold"}, "batchtopk": {"threshold"},
    }.get(kind, set())  # fmt: skip
    missing = sorted(name for name in names if (t := tensors.get(name)) is None or not t.numel())
    if missing:
        raise InterpError(
            f"{folder} is half written: a {kind} SAE has no {' and '.join(missing)} there; fetch "
            f"or save it again"
        )
    unknown = sorted(set(tensors) - names)
    if unknown:
        raise InterpError(
            f"{folder} holds {', '.join(unknown)}, which a {kind} SAE does not have; it would be "
            f"read wrongly without"
        )
    held: dict[str, Any] = {name: t.float() for name, t in tensors.items() if t is not None}
    k = options.get("k")
    odd = misfit(held) if k is None or is_index(k) else f"k={k!r} is no whole number"
    if odd is not None:
        raise InterpError(f"{folder} holds no usable SAE: {odd}")
    sae = SAE(kind, site=site, model=model, **held, **options)
    for name, found in {"d_in": sae.d_in, "d_sae": sae.d_sae}.items():
        if isinstance(config.get(name), int) and config[name] != found:
            raise InterpError(f"{folder} says {name} {config[name]}, and its weights have {found}")
    return sae


def _folded(sae: SAE) -> SAE:
    """Latents times the norms of the decoder's rows, which become unit vectors."""
    norm = sae.W_dec.norm(dim=1)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    changed: dict[str, Any] = {"W_dec": sae.W_dec / safe[:, None], "b_enc": sae.b_enc * safe}
    if sae.kind == "gated":
        assert sae.r_mag is not None
        changed["r_mag"] = sae.r_mag + safe.log()
    else:
        changed["W_enc"] = sae.W_enc * safe
    if sae.threshold is not None:
        changed["threshold"] = sae.threshold * safe
    return replace(sae, **changed)


def _site(name: str | None) -> str | None:
    """One of our sites, or the foreign name where it is none."""
    try:
        return None if name is None else str(Site.parse(str(name)))
    except SiteNotFound:
        return None


def _json(folder: Path, name: str, weights: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise InterpError(
            f"{folder} is no SAE: expected cfg.json with sae_weights.safetensors (SAELens) or "
            f"sae.safetensors (sparsify), or ae.pt (dictionary_learning)"
        )
    if not (folder / weights).is_file():
        raise InterpError(f"{folder} is half written: it has {name} and no {weights}")
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InterpError(f"{folder / name} is damaged: {_first(error)}") from error
    if not isinstance(found, dict):
        raise InterpError(f"{folder / name} is damaged: it holds no object")
    return found


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InterpError(
            f"{file} is half written or damaged: {_first(error)}; fetch or save it again"
        ) from error


def _transposed(held: Mapping[str, Tensor], name: str) -> Tensor | None:
    return held[name].T.contiguous() if name in held else None


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
