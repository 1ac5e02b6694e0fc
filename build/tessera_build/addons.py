"""What goes into a bundle beside the checkpoint: ControlNets, exported with it, and LoRA files.

LoRAs are copied as they are and not listed in the manifest: the folder `adapters` of a bundle is
one where files may be put in and taken out at any time.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from tessera.controls.models import read_placements
from tessera.errors import BundleError, TesseraError
from tessera.manifest import ADAPTERS, HINT, Latents
from tessera_build.checkpoint import first_line, refuse_pickle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FAMILY = (
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
"""What decides which inputs a ControlNet takes and how many residuals of which width it gives."""
_EMBEDDING_WIDTHS = (16, 32, 96, 256)  # Zhang et al. 2023, as in diffusers


@dataclass(frozen=True)
class AddOns:
    """Paths of what is to be built in.

    Attributes:
        controlnets: by name: a folder with `config.json` and safetensors weights, or one
            safetensors file.
        loras: safetensors files.
        placements: where ControlNets run, as `NAME=PLACE`; those that are not named run where the
            other models do.
    """

    controlnets: Mapping[str, Path] = field(default_factory=dict)
    loras: Sequence[Path] = ()
    placements: Sequence[str] = ()

    @property
    def places(self) -> dict[str, str]:
        """`placements` by name.

        Raises:
            BundleError: one is of another form or names no ControlNet.
        """
        try:
            found = read_placements(self.placements, self.controlnets)
        except TesseraError as error:
            raise BundleError(str(error)) from None
        return {name: place.text for name, place in found.items()}

    def check(self) -> None:
        """Look at names and files before anything expensive is done.

        Raises:
            BundleError: a name or a file is not accepted.
        """
        for name, path in self.controlnets.items():
            if not _NAME.fullmatch(name) or name.endswith(HINT):
                raise BundleError(
                    f"ControlNet name {name!r} is not accepted; accepted: letters, digits, _ and "
                    f"-, not ending in {HINT}"
                )
            _check_controlnet(name, path)
        self.places  # noqa: B018 - raises what is wrong with them
        stems = [path.stem for path in self.loras]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise BundleError(f"two LoRA files are called {twice[0]}; rename one of them")
        for path in self.loras:
            _check_lora(path)


def read_controlnets(pairs: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` of the command line.

    Raises:
        BundleError: one is of another form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise BundleError(f"--controlnet is {pair!r}; accepted: NAME=PATH")
        if name in found:
            raise BundleError(f"--controlnet {name} is given twice; give each its own name")
        found[name] = Path(path)
    return found


def open_controlnet(
    name: str, path: Path, unet: UNet2DConditionModel, latents: Latents
) -> ControlNetModel:
    """A ControlNet in float32 that fits the UNet.

    A single file says nothing of its configuration: it is read with the one that diffusers would
    give a new ControlNet for this UNet.

    Raises:
        BundleError: it cannot be read, or is of another family.
    """
    try:
        if path.is_dir():
            kind = json.loads((path / "config.json").read_text()).get("_class_name")
            if kind != ControlNetModel.__name__:
                raise BundleError(f"ControlNet {name} is a {kind}; accepted: ControlNetModel")
            network = ControlNetModel.from_pretrained(
                str(path), use_safetensors=True, dtype=torch.float32
            )
        else:
            network = _open_file(path, unet, latents)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BundleError(
            f"ControlNet {name} cannot be read from {path}: {first_line(error)}"
        ) from error
    _check_family(name, network.config, unet.config, latents)
    return network


def install_loras(out: Path, loras: Sequence[Path]) -> None:
    """Copy LoRA files into a bundle, each whole or not at all.

    Raises:
        BundleError: the disk is full, or the folder cannot be written.
    """
    folder = out / ADAPTERS
    try:
        folder.mkdir(exist_ok=True)
        for path in loras:
            partial = folder / f".{path.name}.partial"
            try:
                shutil.copyfile(path, partial)
                partial.replace(folder / path.name)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} could not be written: {error.strerror or error}") from error


def _check_controlnet(name: str, path: Path) -> None:
    refuse_pickle(path)
    if not path.exists():
        raise BundleError(
            f"ControlNet {name}: {path} does not exist; accepted: a diffusers folder or a "
            ".safetensors file"
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BundleError(f"ControlNet {name}: {path} is no safetensors file")
        return
    if not (path / "config.json").exists():
        raise BundleError(f"ControlNet {name}: {path} has no config.json")
    if not list(path.glob("*.safetensors")):
        raise BundleError(
            f"ControlNet {name}: {path} holds no safetensors weights; accepted: *.safetensors"
        )


def _open_file(path: Path, unet: UNet2DConditionModel, latents: Latents) -> ControlNetModel:
    levels = latents.pixels.bit_length()  # of the picture's embedding, each half as large
    with init_empty_weights():
        like = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=_EMBEDDING_WIDTHS[:levels],
            load_weights_from_unet=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        like.save_config(folder)
        return ControlNetModel.from_single_file(str(path), config=folder, dtype=torch.float32)


def _check_family(
    name: str, own: Mapping[str, Any], unet: Mapping[str, Any], latents: Latents
) -> None:
    """Compare a ControlNet's configuration with the UNet's.

    Raises:
        BundleError: the first thing that does not fit.
    """
    theirs = {key: _plain(unet.get(key)) for key in _FAMILY}
    ours = {key: _plain(own.get(key)) for key in _FAMILY}
    ours["pixels a latent"] = 2 ** (len(own["conditioning_embedding_out_channels"]) - 1)
    theirs["pixels a latent"] = latents.pixels
    for key, wanted in theirs.items():
        if ours[key] != wanted:
            raise BundleError(
                f"ControlNet {name} is of another family than the checkpoint: its {key} is "
                f"{ours[key]}, accepted: {wanted}"
            )
    for key in ("class_embed_type", "encoder_hid_dim_type", "global_pool_conditions"):
        if own.get(key):
            raise BundleError(
                f"ControlNet {name} has {key} {own[key]!r}; accepted: a ControlNet without"
            )


def _check_lora(path: Path) -> None:
    refuse_pickle(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise BundleError(f"LoRA {path} is no safetensors file; accepted: *.safetensors")
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"LoRA {path} cannot be read: {first_line(error)}") from error
    if not any("lora" in name for name in names):
        raise BundleError(f"{path} holds no LoRA: none of its {len(names)} tensors is named so")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
