"""Opens a diffusers checkpoint and finds its row in the table of variants.

Accepts a folder, a single safetensors file and a hub's "owner/name". Rejects pickles.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open

from tessera.errors import BundleError
from tessera.variants import UNET_CHANNELS, VARIANTS
from tessera_build.audit import check_config
from tessera_build.markers import (
    AS_CONFIGURED,
    Training,
    apply_markers,
    apply_training,
    read_markers,
)
from tessera_build.parts import (
    HALF_FILES,
    Say,
    check_folder,
    check_weights,
    check_whole,
    left_out,
    missing_parts,
    open_vae,
    plain_pipeline,
    read_index,
    silent,
)
from tessera_build.precision import PRECISIONS, stored_type
from tessera_build.sampling_audit import check_sampling
from tessera_build.unet_files import (
    BARE_TEXT,
    bare_text_encoder,
    holds_unet_alone,
    replace_unet,
)

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
_PRECISIONS = {"F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp16", "F8_E5M2": "fp16"}
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
_SIZES = "model.diffusion_model.label_emb.0.0.weight"
_SUPPORTED = ", ".join(f"{v.title} ({name})" for name, v in VARIANTS.items())


def find_checkpoint(
    source: str, *, revision: str | None = None, variant: str | None = None
) -> Path:
    """The checkpoint's folder or file. A hub's "owner/name" is downloaded into the hub's cache.

    Args:
        source: what the user has named.
        revision: branch, tag or commit at the hub.
        variant: of the files to download, such as `fp16`.

    Raises:
        BundleError: the checkpoint does not exist, is a pickle, or is here and has no revisions.
    """
    path = Path(source)
    refuse_pickle(path)
    if path.exists():
        if revision is not None:
            raise BundleError(
                f"--revision is {revision}, and {source} is a local path; accepted: with a hub's "
                '"owner/name"'
            )
        if path.is_file() and path.suffix != ".safetensors":
            raise BundleError(f"{source} is not a safetensors file; accepted: *.safetensors")
        if path.is_dir() and not (path / "model_index.json").exists():
            raise BundleError(f"{source} is not a diffusers checkpoint: it has no model_index.json")
        check_weights(path)
        return path
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise BundleError(
            f"{source} does not exist; accepted: a diffusers folder, a .safetensors file or a "
            'hub\'s "owner/name"'
        )
    try:
        options = {"revision": revision, "variant": variant, "use_safetensors": True}
        return Path(DiffusionPipeline.download(source, **options))
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


def open_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    precision: str = "fp32",
    training: Training = AS_CONFIGURED,
    base: Path | None = None,
    vae: Path | None = None,
    files: str | None = None,
    say: Say = silent,
) -> tuple[DiffusionPipeline, str]:
    """Open a checkpoint as a diffusers pipeline; returns it and its variant's name.

    Its weights are rounded to `precision` while they are loaded, except for a VAE that has to stay
    in float32. They are mapped from the file where it holds them in that precision.

    Args:
        path: a diffusers folder or a single safetensors file.
        precision: `fp16`, `bf16` or `fp32`.
        config: for a single file, a diffusers folder with its configuration, and with the parts
            that the file lacks. Without it the configuration comes from the hub.
        training: replaces what the scheduler config says about it.
        base: a checkpoint of which everything but the UNet is taken. `path` may then be a single
            file with a UNet alone.
        vae: a folder with a VAE that takes the place of the checkpoint's.
        files: the variant of a folder's weights to read, such as `fp16`.
        say: told what is taken from elsewhere, or left out.

    Raises:
        BundleError: the checkpoint cannot be read, or its kind is not supported.
    """
    try:
        if base is not None:
            pipe, variant = _open_on(path, base, config, precision, files)
        elif path.is_file():
            if files is not None:
                raise BundleError(
                    f"--variant is {files}, and {path} is one file; accepted: a folder"
                )
            pipe = _open_file(path, config, precision, say)
            variant = variant_of(type(pipe).__name__, dict(pipe.unet.config))
        else:
            pipe, variant = _open_folder(path, precision, files, say)
        if vae is not None:
            pipe.vae = open_vae(vae, precision, VARIANTS[variant], pipe.unet.config.out_channels)
    except _UNREADABLE as error:
        raise BundleError(f"{path} cannot be read: {first_line(error)}") from error
    for what, network in (("UNet", pipe.unet), ("VAE", pipe.vae)):
        check_config(what, type(network).__name__, network.config)
    check_sampling(type(pipe.scheduler).__name__, pipe.scheduler.config)
    apply_training(pipe, training)
    return pipe, variant


def checkpoint_precision(path: Path) -> str:
    """The precision of a checkpoint: that of its UNet's weights.

    Raises:
        BundleError: the checkpoint cannot be read.
    """
    files = sorted((path / "unet").glob("*.safetensors"), key=_of_variant) if path.is_dir() else []
    try:
        with safe_open(files[0] if files else path, framework="pt") as weights:
            names = weights.keys()
            name = _FIRST_CONV if _FIRST_CONV in names else next(iter(names))
            return _PRECISIONS.get(weights.get_slice(name).get_dtype(), "fp32")
    except (*_UNREADABLE, StopIteration) as error:
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
    given, pipeline = pipeline, plain_pipeline(pipeline)
    if pipeline not in known:
        raise _unsupported(f"is a {given}")
    if unet["in_channels"] not in UNET_CHANNELS:
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


def _open_folder(
    path: Path, precision: str, wanted: str | None, say: Say
) -> tuple[DiffusionPipeline, str]:
    index = read_index(path)
    unet = path / "unet" / "config.json"
    if not unet.exists():
        raise _unsupported(f"is a {index.get('_class_name')} without a UNet")
    variant = variant_of(str(index.get("_class_name")), json.loads(unet.read_text()))
    row = VARIANTS[variant]
    check_folder(path, index, row)
    needed = ("unet", "vae", *row.text_encoders)
    vae = json.loads((path / "vae" / "config.json").read_text())
    types = {
        name: stored_type(name, precision, row, vae if name == "vae" else {}) for name in needed
    }
    options: dict[str, Any] = {"use_safetensors": True, "dtype": types}
    files = [[_of_variant(f) for f in (path / part).glob("*.safetensors")] for part in needed]
    only, there = any(all(of) for of in files), all(any(of) for of in files)
    if wanted is None and (only or (there and precision == "fp16")):
        wanted = HALF_FILES
    if wanted is not None:
        options["variant"] = wanted
        say(f"{path}: files of the variant {wanted} are read")
    pipeline = getattr(diffusers, row.pipeline)
    return pipeline.from_pretrained(str(path), **options, **left_out(path, index, say)), variant


def only_half_files(folder: Path) -> bool:
    """Whether a network's folder has its weights as a variant in half precision only."""
    return all(_of_variant(file) for file in folder.glob("*.safetensors"))


def _open_on(
    path: Path, base: Path, config: Path | None, precision: str, files: str | None
) -> tuple[DiffusionPipeline, str]:
    """The UNet of a file in the place of another checkpoint's."""
    if not path.is_file():
        raise BundleError(f"{path} is no file; accepted with --base: a .safetensors file")
    pipe, variant = open_checkpoint(base, config=config, precision=precision, files=files)
    replace_unet(pipe, path)
    apply_markers(pipe, read_markers(path))
    return pipe, variant


def _of_variant(file: Path) -> bool:
    """Whether weights are in a file beside those of the same name in float32."""
    return f".{HALF_FILES}." in file.name or f".{HALF_FILES}-" in file.name


def _open_file(path: Path, config: Path | None, precision: str, say: Say) -> DiffusionPipeline:
    """Open a single file. The names and shapes of its weights determine the pipeline."""
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        if _FIRST_CONV not in names:
            _refuse_unet_alone(path, names)
            raise _unsupported("has no UNet in the layout of the original releases")
        first = weights.get_slice(_FIRST_CONV)
        channels, own = first.get_shape()[1], _PRECISIONS.get(first.get_dtype(), "fp32")
    if channels not in UNET_CHANNELS:
        raise _unsupported(f"has a UNet of {channels} input channels")
    if config is None:
        _refuse_unet_alone(path, names)
    else:
        _check_config(path, config, channels)
    xl = any(name.startswith("conditioner.") for name in names) or _takes_sizes(names)
    if _refines(names):
        raise _unsupported("has no text_encoder, as refiners do")
    row = VARIANTS["sdxl" if xl else "sd15"]
    # All parts get one type here. A VAE that has to stay in float32 must not be rounded.
    loaded = PRECISIONS[precision if own == precision or not xl else "fp32"]
    types = dict.fromkeys(("vae", *row.text_encoders), loaded)
    options = missing_parts(path, names, row, config, types, say)
    if config is not None:
        options["config"] = str(config)
    if BARE_TEXT in names:
        options["text_encoder"] = bare_text_encoder(path, options.get("config"), loaded)
    try:
        pipe = getattr(diffusers, row.pipeline).from_single_file(str(path), dtype=loaded, **options)
    except OSError as error:
        if config is not None:
            raise
        raise BundleError(
            f"{path} needs its configuration from a hub, which did not provide it "
            f"({first_line(error)}); name a folder that has it with --config"
        ) from error
    check_whole(path, pipe)
    apply_markers(pipe, read_markers(path))
    return pipe


def _check_config(path: Path, config: Path, channels: int) -> None:
    """Compare the input channels of a file's UNet with those of the folder of its configuration."""
    unet = config / "unet" / "config.json"
    said = json.loads(unet.read_text()).get("in_channels") if unet.exists() else channels
    if said != channels:
        raise BundleError(
            f"{path} has a UNet of {channels} input channels, and that of {config} has {said}; "
            "accepted: the same (9 are an inpainting checkpoint's)"
        )


def _takes_sizes(names: set[str]) -> bool:
    """Whether a UNet takes the picture's sizes, as XL's does; unCLIP's has names like that, too."""
    return _SIZES in names and not any(name.startswith("cond_stage_model.") for name in names)


def _refines(names: set[str]) -> bool:
    """Whether a file has the second of XL's text encoders in the place of the first."""
    second = any(name.startswith("conditioner.embedders.1.") for name in names)
    return not second and any(name.startswith("conditioner.embedders.0.model.") for name in names)


def _refuse_unet_alone(path: Path, names: Collection[str]) -> None:
    if holds_unet_alone(names):
        raise BundleError(
            f"{path} holds a UNet alone; accepted: such files with --base, which names the "
            "checkpoint that has the rest"
        )


def _unsupported(what: str) -> BundleError:
    return BundleError(f"the checkpoint {what}; supported: {_SUPPORTED}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
