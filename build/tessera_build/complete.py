"""Whether a checkpoint's files have just the tensors that its configurations ask for.

Diffusers leaves out what a configuration does not know, and transformers draws what a file lacks at
random, both without a word. The networks are made without weights, to know the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tessera.adapters.names import original_names
from tessera.errors import BundleError
from tessera.networks.graphs import new_network

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_IN_FILE = "model.diffusion_model."
_OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the VAE's attention in older diffusers."""
_OTHERS = re.compile(r"\.(?:fp16|bf16|non_ema|ema)[.-]")
"""In the names of files beside those without."""
_SMALL = ("F8_E4M3", "F8_E5M2")


def check_complete(path: Path, config: Path | None = None) -> None:
    """Compare a checkpoint's tensors with its configurations, and look for values that are not
    finite.

    Args:
        path: a diffusers folder or a single file.
        config: the folder of a single file's configuration. Without it, only values are looked at.

    Raises:
        BundleError: tensors are missing, are too many, or have values that are not finite. What
            cannot be read at all is left to whoever opens the checkpoint.
    """
    try:
        if path.is_file():
            if config is not None:
                _check_file(path, config)
            _check_values(path)
            return
        for part in _PARTS:
            files = sorted((path / part).glob("*.safetensors"))
            files = [f for f in files if not _OTHERS.search(f.name)] or files
            if files and (path / part / "config.json").is_file():
                _check_part(path, part, {name for file in files for name in _names(file)})
            for file in files:
                _check_values(file)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return


def _check_part(path: Path, part: str, held: Collection[str]) -> None:
    expected = _expected(path / part, part)
    known = {_current(part, name) for name in held}
    missing = sorted(expected - known)
    if missing:
        raise BundleError(f"{path / part} lacks {len(missing)} tensors, first {missing[0]}")
    left = sorted(known - expected) if part in ("unet", "vae") else []
    if left:
        raise BundleError(
            f"{path / part} has {len(left)} tensors that its config.json does not know, first "
            f"{left[0]}"
        )


def _check_file(path: Path, config: Path) -> None:
    """The UNet of a single file, in the names of the original release."""
    held = {n.removeprefix(_IN_FILE) for n in _names(path) if n.startswith(_IN_FILE)}
    if not held or not (config / "unet" / "config.json").is_file():
        return
    names = _expected(config / "unet", "unet")
    originals = original_names({name.rpartition(".")[0] for name in names})
    expected = {f"{originals[stem]}.{leaf}" for stem, _, leaf in (n.rpartition(".") for n in names)}
    for what, names in (("lacks", expected - held), ("has", held - expected)):
        if names:
            known = "" if what == "lacks" else f" that {config} does not know"
            first = min(names)
            raise BundleError(f"{path} {what} {len(names)} tensors of a UNet{known}, first {first}")


def _expected(folder: Path, part: str) -> set[str]:
    """Names of a network's tensors by its configuration."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    with init_empty_weights():
        if part.startswith("text_encoder"):
            network: Any = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(str(folder)))
            names = {_current(part, name) for name in network.state_dict()}
            projects = "WithProjection" in str(config.get("architectures"))
            return names if projects else names - {"text_projection.weight"}
        return set(new_network(part, config).state_dict())


def _current(part: str, name: str) -> str:
    """A tensor's name as it is today."""
    if part.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if part == "vae":
        stem, _, leaf = name.rpartition(".")
        before, _, last = stem.rpartition(".")
        return f"{before}.{_OLD_VAE[last]}.{leaf}" if last in _OLD_VAE else name
    return name


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _check_values(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        for name in list(opened.keys()):
            small = opened.get_slice(name).get_dtype() in _SMALL
            tensor = opened.get_tensor(name)
            if not torch.isfinite(tensor.half() if small else tensor).all():
                raise BundleError(f"{file} has NaN or infinite values in {name}")
