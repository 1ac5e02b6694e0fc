"""Add-ons of a bundle: ControlNets, which are exported with the checkpoint, and LoRA files.

LoRA files are copied unchanged. The manifest does not list them, since files may be added to and
removed from a bundle's folder `adapters` at any time.
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
"""Configuration that decides a ControlNet's inputs and the number and widths of its residuals."""
_EMBEDDING_WIDTHS = (16, 32, 96, 256)  # Zhang et al. 2023, as in diffusers


@dataclass(frozen=True)
class AddOns:
    """Paths of ControlNets and LoRAs to add to a bundle.

    Attributes:
        controlnets: ControlNets by name: a folder with `config.json` and safetensors weights, or a
            single safetensors file.
        loras: safetensors files.
        placements: where ControlNets run, as `NAME=PLACE`. Others run where the other models do.
    """

    controlnets: Mapping[str, Path] = field(default_factory=dict)
    loras: Sequence[Path] = ()
    placements: Sequence[str] = ()

    @property
    def places(self) -> dict[str, str]:
        """`placements` by name.

        Raises:
            BundleError: a placement has another form or names an unknown ControlNet.
        """
        try:
            placements = read_placements(self.placements, self.controlnets)
        except TesseraError as error:
            raise BundleError(str(error)) from None
        return {name: placement.text for name, placement in placements.items()}

    def check(self) -> None:
        """Check names and files before expensive work begins.

        Raises:
            BundleError: a name or a file is not accepted.
        """
        for name, path in self.controlnets.items():
            if not _NAME.fullmatch(name) or name.endswith(HINT):
                raise BundleError(
                    f"ControlNet name is {name!r}; accepted: letters, digits, _ and -, not ending "
                    f"in {HINT}"
                )
            _check_controlnet(name, path)
        self.places  # noqa: B018 - raises if a placement is wrong
        stems = [path.stem for path in self.loras]
        duplicates = sorted({stem for stem in stems if stems.count(stem) > 1})
        if duplicates:
            raise BundleError(f"two LoRA files are called {duplicates[0]}; rename one of them")
        for path in self.loras:
            _check_lora(path)


def read_controlnets(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse `NAME=PATH` arguments of the command line.

    Raises:
        BundleError: an argument has another form, or a name is given twice.
    """
    controlnets: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise BundleError(f"--controlnet is {pair!r}; accepted: NAME=PATH")
        if name in controlnets:
            raise BundleError(f"--controlnet {name} is given twice; give each a different name")
        controlnets[name] = Path(path)
    return controlnets


def open_controlnet(
    name: str, path: Path, unet: UNet2DConditionModel, latents: Latents
) -> ControlNetModel:
    """Open a ControlNet in float32 and check that it fits the UNet.

    A single file has no configuration. It is read with the configuration that diffusers would give
    a new ControlNet for this UNet.

    Raises:
        BundleError: the ControlNet cannot be read, or belongs to another family.
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
    """Copy LoRA files into a bundle, each atomically.

    Raises:
        BundleError: the disk is full or the folder cannot be written.
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
            raise BundleError(f"ControlNet {name}: {path} is not a safetensors file")
        return
    if not (path / "config.json").exists():
        raise BundleError(f"ControlNet {name}: {path} has no config.json")
    if not list(path.glob("*.safetensors")):
        raise BundleError(
            f"ControlNet {name}: {path} has no safetensors weights; accepted: *.safetensors"
        )


def _open_file(path: Path, unet: UNet2DConditionModel, latents: Latents) -> ControlNetModel:
    levels = latents.pixels.bit_length()  # of the hint's network, each half as large
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
    name: str, config: Mapping[str, Any], unet: Mapping[str, Any], latents: Latents
) -> None:
    """Compare a ControlNet's configuration with the UNet's.

    Raises:
        BundleError: they differ; the message has the first difference.
    """
    expected = {key: _plain(unet.get(key)) for key in _FAMILY}
    actual = {key: _plain(config.get(key)) for key in _FAMILY}
    actual["pixels per latent"] = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    expected["pixels per latent"] = latents.pixels
    for key, value in expected.items():
        if actual[key] != value:
            raise BundleError(
                f"ControlNet {name} is of another family than the checkpoint: its {key} is "
                f"{actual[key]}; accepted: {value}"
            )
    for key in ("class_embed_type", "encoder_hid_dim_type", "global_pool_conditions"):
        if config.get(key):
            raise BundleError(
                f"ControlNet {name} has {key} {config[key]!r}; accepted: a ControlNet without it"
            )


def _check_lora(path: Path) -> None:
    refuse_pickle(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise BundleError(f"LoRA {path} is not a safetensors file; accepted: *.safetensors")
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"LoRA {path} cannot be read: {first_line(error)}") from error
    if not any("lora" in name for name in names):
        raise BundleError(
            f'{path} is not a LoRA: none of its {len(names)} tensors has "lora" in its name'
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
