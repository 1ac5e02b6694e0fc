"""Parts of a checkpoint: those that a folder has to have, and those that a single file lacks.

Many files hold a UNet only, or no VAE. What they lack is taken from the folder that --config names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from tessera.errors import BundleError
from tessera.networks.leftovers import left_behind
from tessera.variants import Variant
from tessera_build.precision import stored_type

Say = Callable[[str], None]
"""Takes a sentence for whoever builds the bundle."""
HALF_FILES = "fp16"
"""Diffusers' name for files in half precision beside others."""

_IN_FILES = {
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""What the names of a part's weights begin with in a single file."""
_CLASSES: dict[str, Any] = {
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
_VAES = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_WAYS = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")
_PLAIN = {
    f"{family}{way}Pipeline": f"{family}Pipeline"
    for family in ("StableDiffusion", "StableDiffusionXL")
    for way in _WAYS
}


def silent(sentence: str) -> None:
    """Says nothing."""


def plain_pipeline(pipeline: str) -> str:
    """The text-to-image pipeline of the same networks: checkpoints are saved from others as well.

    Args:
        pipeline: a class name of diffusers.
    """
    return _PLAIN.get(pipeline, pipeline)


def inpainting_pipeline(variant: Variant) -> str:
    """The class name in diffusers of a variant's pipeline for edits."""
    return variant.pipeline.replace("Pipeline", "InpaintPipeline")


def check_weights(path: Path) -> None:
    """Look whether weights are weights.

    Args:
        path: a single file, or a folder with some in it.

    Raises:
        BundleError: a file is what a download left behind; the message names both.
    """
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        try:
            with file.open("rb") as opened:
                found = left_behind(opened.read(64))
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror or error}") from None
        if found:
            raise BundleError(f"{file} is {found}")


def check_folder(path: Path, index: Mapping[str, Any], variant: Variant) -> None:
    """Look for the weights and tokenizers that a variant needs.

    Args:
        path: of a diffusers folder.
        index: its model_index.json.
        variant: its variant.

    Raises:
        BundleError: something is missing; the message names it.
    """
    for part in ("unet", "vae", *variant.text_encoders):
        if index.get(part, [None])[0] is None:
            raise BundleError(f"the checkpoint {path} has no {part}, as refiners do")
        if not list((path / part).glob("*.safetensors")):
            raise BundleError(
                f"{path / part} has no safetensors weights; accepted: *.safetensors (convert a "
                "pickle with diffusers' save_pretrained)"
            )
    for part in variant.tokenizers:
        if not any((path / part / name).is_file() for name in _TOKENIZERS):
            raise BundleError(
                f"{path / part} has no tokenizer; accepted: {' or '.join(_TOKENIZERS)}"
            )


def left_out(path: Path, index: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Options of `from_pretrained`, so that it does not ask for parts that no picture needs.

    Args:
        path: of a diffusers folder.
        index: its model_index.json.
        say: told of a ControlNet that lies there.
    """
    if index.get("controlnet", [None])[0] is not None:
        folder = path / "controlnet"
        say(f"{folder} is left out; build it in with --controlnet NAME={folder}")
    options: dict[str, Any] = dict.fromkeys(_UNUSED)
    if "XL" in str(index.get("_class_name")):
        del options["safety_checker"]
    else:
        options["requires_safety_checker"] = False
    return options


def missing_parts(
    path: Path,
    names: Collection[str],
    variant: Variant,
    config: Path | None,
    types: Mapping[str, torch.dtype],
    say: Say,
) -> dict[str, Any]:
    """The networks that a single file lacks, from the folder of its configuration.

    Args:
        path: of the single file.
        names: of its weights.
        variant: that it has, or `sd15` for any with one text encoder.
        config: a diffusers folder, if one is named.
        types: in which the parts are loaded.
        say: told what is taken.

    Raises:
        BundleError: a part is nowhere.
    """
    needed = ("vae", *variant.text_encoders)
    lacking = [p for p in needed if not any(name.startswith(_IN_FILES[p]) for name in names)]
    if "text_encoder_2" in lacking and "text_encoder" not in lacking:
        raise BundleError(
            f"{path} has a text_encoder and no text_encoder_2; accepted: both or none"
        )
    found = {}
    for part in lacking:
        if config is None:
            raise BundleError(f"{path} has no {part}; name a folder that has one with --config")
        folder = config / part
        files = [file.name for file in folder.glob("*.safetensors")]
        if not files:
            raise BundleError(f"{path} has no {part}, and {folder} has no safetensors weights")
        found[part] = _CLASSES[part].from_pretrained(
            str(folder),
            dtype=types[part],
            use_safetensors=True,
            variant=_halves(files),
        )
        say(f"{path.name} has no {part}: taken from {folder}")
    return found


def find_vae(path: Path) -> Path:
    """The folder of a VAE: itself, or that in a checkpoint's.

    Raises:
        BundleError: there is none, or its weights are none.
    """
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise BundleError(f"--vae is {path}; accepted: the folder of a VAE, with a config.json")
    check_weights(folder)
    return folder


def open_vae(path: Path, precision: str, variant: Variant, channels: int) -> Any:
    """Another VAE for a checkpoint.

    Args:
        path: a VAE's folder, or a whole checkpoint's.
        precision: see `open_checkpoint`.
        variant: of the checkpoint.
        channels: of its latents.

    Raises:
        BundleError: there is none, or it is of another kind.
        OSError, ValueError, SafetensorError: it cannot be read.
    """
    folder = find_vae(path)
    config = json.loads((folder / "config.json").read_text())
    name = config.get("_class_name")
    if name not in _VAES or config.get("latent_channels") != channels:
        raise BundleError(
            f"{folder} is a {name} with {config.get('latent_channels')} channels; "
            f"accepted: {', '.join(_VAES)} with {channels}"
        )
    return getattr(diffusers, name).from_pretrained(
        str(folder),
        dtype=stored_type("vae", precision, variant, config),
        use_safetensors=True,
        variant=_halves([file.name for file in folder.glob("*.safetensors")]),
    )


def _halves(names: Collection[str]) -> str | None:
    """The variant to read of weights that are there in half precision only."""
    marks = (f".{HALF_FILES}.", f".{HALF_FILES}-")
    return HALF_FILES if names and all(any(m in n for m in marks) for n in names) else None


def check_whole(path: Path, pipe: DiffusionPipeline) -> None:
    """Look for parameters that a single file has left without values, which diffusers does not.

    Raises:
        BundleError: there are some; the message names the first.
    """
    for part, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            empty = [name for name, value in network.named_parameters() if value.is_meta]
            if empty:
                raise BundleError(
                    f"{path} lacks {len(empty)} tensors of its {part}, first {empty[0]}"
                )


def read_index(path: Path) -> dict[str, Any]:
    """The model_index.json of a diffusers folder.

    Raises:
        BundleError: it is none.
    """
    try:
        index = json.loads((path / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / 'model_index.json'} cannot be read: {error}") from None
    if not isinstance(index, dict):
        raise BundleError(f"{path / 'model_index.json'} is no JSON object")
    return index
