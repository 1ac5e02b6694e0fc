"""Opens a diffusers checkpoint and finds its row in the table of variants.

Accepts a folder, a single safetensors file and a hub's "owner/name". Rejects pickles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open

from tessera.errors import BundleError
from tessera.variants import VARIANTS

_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_UNREADABLE = (
    SafetensorError,
    SingleFileComponentError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
)
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
_SUPPORTED = ", ".join(f"{v.title} ({name})" for name, v in VARIANTS.items())


def find_checkpoint(source: str) -> Path:
    """The checkpoint's folder or file. A hub's "owner/name" is downloaded into the hub's cache.

    Raises:
        BundleError: the checkpoint does not exist, or is a pickle.
    """
    path = Path(source)
    refuse_pickle(path)
    if path.exists():
        if path.is_file() and path.suffix != ".safetensors":
            raise BundleError(f"{source} is not a safetensors file; accepted: *.safetensors")
        if path.is_dir() and not (path / "model_index.json").exists():
            raise BundleError(f"{source} is not a diffusers checkpoint: it has no model_index.json")
        return path
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise BundleError(
            f"{source} does not exist; accepted: a diffusers folder, a .safetensors file or a "
            'hub\'s "owner/name"'
        )
    try:
        return Path(DiffusionPipeline.download(source, use_safetensors=True))
    except Exception as error:  # the hub client raises whatever its HTTP library does
        raise BundleError(
            f"{source} is not a local path, and the hub did not provide it: {first_line(error)}"
        ) from error


def refuse_pickle(path: Path) -> None:
    """Reject a file with the suffix of a pickle.

    Raises:
        BundleError: the suffix is a pickle's.
    """
    if path.suffix in _PICKLES:
        raise BundleError(f"{path} is a pickle, which can run code; accepted: safetensors")


def open_checkpoint(path: Path, *, config: Path | None = None) -> tuple[DiffusionPipeline, str]:
    """Open a checkpoint as a diffusers pipeline in float32; returns it and its variant's name.

    Args:
        path: a diffusers folder or a single safetensors file.
        config: for a single file, a diffusers folder with its configuration. Without it the
            configuration comes from the hub.

    Raises:
        BundleError: the checkpoint cannot be read, or its kind is not supported.
    """
    try:
        if path.is_file():
            options = {} if config is None else {"config": str(config)}
            pipe = _open_file(path, options)
            return pipe, variant_of(type(pipe).__name__, dict(pipe.unet.config))
        return _open_folder(path)
    except _UNREADABLE as error:
        raise BundleError(f"{path} cannot be read: {first_line(error)}") from error


def variant_of(pipeline: str, unet: Mapping[str, Any]) -> str:
    """Name of the variant of a checkpoint, by its configuration.

    Args:
        pipeline: class name of the diffusers pipeline.
        unet: configuration of the UNet.

    Raises:
        BundleError: no variant fits. The message lists the supported ones.
    """
    known = {v.pipeline for v in VARIANTS.values()}
    if pipeline not in known:
        raise _unsupported(f"is a {pipeline}")
    if unet["in_channels"] != 4:
        raise _unsupported(f"has a UNet of {unet['in_channels']} input channels")
    added, classes = unet.get("addition_embed_type"), unet.get("class_embed_type")
    if classes or unet.get("encoder_hid_dim_type") or added not in (None, "text_time"):
        raise _unsupported("conditions its UNet on more than prompt and size")
    if (added == "text_time") != (pipeline == VARIANTS["sdxl"].pipeline):
        raise _unsupported(f"is a {pipeline} with addition_embed_type {added!r}")
    if added == "text_time":
        return "sdxl"
    width, linear = unet["cross_attention_dim"], unet.get("use_linear_projection")
    return "sd21" if width == 1024 or (width != 768 and linear) else "sd15"


def _open_folder(path: Path) -> tuple[DiffusionPipeline, str]:
    index = json.loads((path / "model_index.json").read_text())
    unet = path / "unet" / "config.json"
    if not unet.exists():
        raise _unsupported(f"is a {index.get('_class_name')} without a UNet")
    variant = variant_of(index["_class_name"], json.loads(unet.read_text()))
    needed = ("unet", "vae", *VARIANTS[variant].text_encoders)
    for part in needed:
        if index.get(part, [None])[0] is None:
            raise _unsupported(f"has no {part}, as refiners do")
        if not list((path / part).glob("*.safetensors")):
            raise BundleError(
                f"{path / part} has no safetensors weights; accepted: *.safetensors (convert a "
                "pickle with diffusers' save_pretrained)"
            )
    options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    if not VARIANTS[variant].pooled:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, VARIANTS[variant].pipeline)
    return pipeline.from_pretrained(str(path), **options), variant


def _open_file(path: Path, options: dict[str, str]) -> DiffusionPipeline:
    """Open a single file. The names and shapes of its weights determine the pipeline."""
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        if _FIRST_CONV not in names:
            raise _unsupported("has no UNet in the layout of the original releases")
        channels = weights.get_slice(_FIRST_CONV).get_shape()[1]
    if channels != 4:
        raise _unsupported(f"has a UNet of {channels} input channels")
    xl = any(name.startswith("conditioner.embedders.1.") for name in names)
    if not xl and any(name.startswith("conditioner.") for name in names):
        raise _unsupported("has no text_encoder, as refiners do")
    pipeline = getattr(diffusers, VARIANTS["sdxl" if xl else "sd15"].pipeline)
    try:
        return pipeline.from_single_file(str(path), dtype=torch.float32, **options)
    except OSError as error:
        if options:
            raise
        raise BundleError(
            f"{path} needs its configuration from a hub, which did not provide it "
            f"({first_line(error)}); name a folder that has it with --config"
        ) from error


def _unsupported(what: str) -> BundleError:
    return BundleError(f"the checkpoint {what}; supported: {_SUPPORTED}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
