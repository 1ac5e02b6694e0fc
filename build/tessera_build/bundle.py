"""Builds a bundle from a checkpoint.

The bundle is written to a temporary folder and renamed, so it appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

from tessera import __version__
from tessera.adapters.formats import PARTS
from tessera.contract import SIZE_STEP
from tessera.errors import BundleError
from tessera.manifest import (
    Defaults,
    FileEntry,
    Graph,
    Limits,
    Manifest,
    check_files,
    file_digest,
    network_of,
    read_manifest,
    write_manifest,
)
from tessera.networks.outline import OUTLINE
from tessera.networks.walk import outline_of
from tessera.variants import INPAINTING, VARIANTS
from tessera_build.addons import AddOns, install_loras, keep_adapters
from tessera_build.checkpoint import checkpoint_precision, open_checkpoint
from tessera_build.controlnets import kinds_of, open_controlnets
from tessera_build.digests import code_digest
from tessera_build.exporter import exporting
from tessera_build.graphs import GraphSpec, clip_skip_of, graphs_of, latents_of
from tessera_build.markers import AS_CONFIGURED, Training
from tessera_build.parts import Say, silent
from tessera_build.previews import fit_linear_decoder
from tessera_build.samplers import default_sampler, samplers_of
from tessera_build.writing import locked, writing

_NONE = AddOns()
_LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Choices:
    """Options of a bundle. `None` means the value of the checkpoint or its variant.

    Attributes:
        steps, guidance, scheduler, size: defaults for requests that do not set them.
        min_size, max_size: limits of width and height in pixels.
        max_rows: largest batch of one UNet call (a guided request has two rows).
        lora_bound: share of the steps that a request with `lora_policy` bounded may run without its
            LoRAs.
        training: how the network was trained, if the checkpoint does not say it or says it wrong.
        lora_rank: largest sum of the ranks of a request's LoRAs on the low-rank side path; 0 leaves
            its graphs out.
        precision: in which weights are stored: `fp16`, `bf16` or `fp32`.
        base, vae, files: see `open_checkpoint`.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size: int | None = None
    min_size: int | None = None
    max_size: int | None = None
    max_rows: int = 16
    lora_bound: float = 0.2
    lora_rank: int = 64
    training: Training = AS_CONFIGURED
    precision: str | None = None
    base: Path | None = field(default=None, repr=False)
    vae: Path | None = field(default=None, repr=False)
    files: str | None = None


def build_bundle(
    checkpoint: Path,
    out: Path,
    *,
    choices: Choices,
    progress: Callable[[str, int, int], None],
    config: Path | None = None,
    addons: AddOns = _NONE,
    say: Say = silent,
) -> Manifest:
    """Export every graph of a checkpoint into a bundle.

    Args:
        checkpoint: a diffusers folder or a single safetensors file.
        out: the bundle's folder. An existing bundle is replaced, except for its LoRAs.
        choices: defaults and limits.
        progress: called with (next part, number of finished parts, number of all parts).
        config: see `open_checkpoint`.
        addons: ControlNets and LoRAs to add.
        say: see `open_checkpoint`.

    Raises:
        BundleError: the checkpoint or an add-on cannot be read or is not supported, a choice is not
            accepted, another build is writing to `out`, or the disk is full.
    """
    addons.check()
    with writing(out), locked(out):
        progress("loading", 0, 1)
        source = source_digest(checkpoint, choices, addons, config)
        precision = choices.precision or checkpoint_precision(checkpoint)
        pipe, variant = _opened(checkpoint, config, precision, choices, say)
        torch.manual_seed(0)
        limits, defaults = _checked(pipe, variant, choices)
        networks = open_controlnets(addons.controlnets, pipe, precision=precision)
        lowrank = choices.lora_rank > 0
        specs = graphs_of(pipe, VARIANTS[variant], networks, lowrank=lowrank, precision=precision)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            _write_config(pipe, variant, folder)
            manifest = Manifest(
                name=out.name,
                variant=variant,
                defaults=defaults,
                limits=limits,
                graphs=_write_graphs(specs, folder, progress),
                files=_entries(folder),
                source=source,
                placements=addons.places,
                control_kinds=kinds_of(networks),
                precision=precision,
                **_facts(pipe),
            )
            keep_adapters(out, folder)
            install_loras(folder, addons.loras)
            write_manifest(folder, manifest)
            folder.chmod(0o755)
            _put_in_place(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _opened(
    checkpoint: Path, config: Path | None, precision: str, choices: Choices, say: Say
) -> tuple[DiffusionPipeline, str]:
    return open_checkpoint(
        checkpoint,
        config=config,
        precision=precision,
        training=choices.training,
        base=choices.base,
        vae=choices.vae,
        files=choices.files,
        say=say,
    )


def _facts(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What the manifest says of a pipeline, and of what built it."""
    return {
        "tessera": __version__,
        "versions": {name: version(name) for name in _LIBRARIES},
        "latents": latents_of(pipe),
        "schedulers": samplers_of(_scheduler_config(pipe)),
        "linear_decoder": fit_linear_decoder(pipe.vae, latents_of(pipe)),
        "guidance_width": pipe.unet.config.time_cond_proj_dim or 0,
        "inpaints": pipe.unet.config.in_channels == INPAINTING,
        "zero_negative": bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
    }


def is_current(
    out: Path,
    checkpoint: Path,
    choices: Choices,
    addons: AddOns = _NONE,
    config: Path | None = None,
) -> bool:
    """Whether `out` is a complete bundle of this checkpoint with these choices and ControlNets,
    built by this version of the exporter.
    """
    try:
        manifest = read_manifest(out)
        if manifest.source != source_digest(checkpoint, choices, addons, config):
            return False
        check_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.tessera == __version__


def source_digest(
    checkpoint: Path, choices: Choices, addons: AddOns = _NONE, config: Path | None = None
) -> str:
    """SHA-256 of the files of a checkpoint, of its configuration and its ControlNets, the choices,
    and the exporter's code.
    """
    sources = [path for path in (checkpoint, choices.base, choices.vae) if path is not None]
    parts = [code_digest(), *(file_digest(p) for source in sources for p in _files(source))]
    if config is not None and checkpoint.is_file():
        parts += [file_digest(p) for p in _files(config)]
    for name, path in sorted(addons.controlnets.items()):
        parts += [name, *(file_digest(p) for p in _files(path))]
    parts += [repr(choices), repr(sorted(addons.places.items()))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) or [path]


def _write_graphs(
    specs: Sequence[GraphSpec], folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, Graph]:
    (folder / "graphs").mkdir()
    graphs: dict[str, Graph] = {}
    with exporting(specs, folder / "graphs") as exported:
        for done, spec in enumerate(specs):
            progress(spec.name, done, len(specs))
            file, part = f"graphs/{spec.name}.onnx", network_of(spec.name)
            written = exported(spec.name)
            config = f"networks/{part}/config.json"
            graphs[spec.name] = Graph(file, config, written.layout, written.shares)
            _save_config(spec.module.source, folder / "networks" / part)
            if part in PARTS:
                outline = outline_of(spec.module.source).to_json()
                (folder / "networks" / part / OUTLINE).write_text(outline)
    progress("done", len(specs), len(specs))
    return graphs


def _write_config(pipe: DiffusionPipeline, variant: str, folder: Path) -> None:
    for name in VARIANTS[variant].tokenizers:
        getattr(pipe, name).save_pretrained(folder / name)
    pipe.scheduler.save_pretrained(folder / "scheduler")


def _save_config(network: nn.Module, folder: Path) -> None:
    """Write `config.json` only, without the path that the network was loaded from. So a checkpoint
    gives the same bundle wherever it is stored.
    """
    owner: Any = network if isinstance(network, ConfigMixin) else network.config
    (owner.save_config if isinstance(network, ConfigMixin) else owner.save_pretrained)(folder)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _natural_size(pipe: DiffusionPipeline) -> int:
    """Side in pixels of the square images that the UNet was trained for."""
    return int(pipe.unet.config.sample_size) * latents_of(pipe).pixels


def _limits(pipe: DiffusionPipeline, variant: str, choices: Choices) -> Limits:
    size = _natural_size(pipe)
    return Limits(
        min_size=choices.min_size or max(size // 2, 8 * SIZE_STEP),
        max_size=choices.max_size or 2 * size,
        max_rows=choices.max_rows,
        lora_rank=choices.lora_rank,
        clip_skip=clip_skip_of(pipe, VARIANTS[variant]),
        takes_vectors=True,
    )


def _defaults(pipe: DiffusionPipeline, variant: str, choices: Choices) -> Defaults:
    row = VARIANTS[variant]
    size = choices.size or _natural_size(pipe)
    return Defaults(
        steps=choices.steps or row.steps,
        guidance=row.guidance if choices.guidance is None else choices.guidance,
        width=size,
        height=size,
        scheduler=default_sampler(_scheduler_config(pipe), choices.scheduler, row.scheduler),
        lora_bound=choices.lora_bound,
    )


def _scheduler_config(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What `scheduler/scheduler_config.json` will hold."""
    return {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}


def _checked(pipe: DiffusionPipeline, variant: str, choices: Choices) -> tuple[Limits, Defaults]:
    limits, defaults = _limits(pipe, variant, choices), _defaults(pipe, variant, choices)
    sizes = (limits.min_size, defaults.width, limits.max_size)
    if list(sizes) != sorted(sizes) or any(s % SIZE_STEP for s in sizes):
        raise BundleError(
            f"smallest, default and largest size are {sizes}; accepted: multiples of {SIZE_STEP} "
            "in ascending order"
        )
    return limits, defaults


def _entries(folder: Path) -> dict[str, FileEntry]:
    files: Iterable[Path] = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): FileEntry(p.stat().st_size, file_digest(p)) for p in files}


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`. An older bundle there is renamed first and removed afterwards."""
    old = folder.with_name(folder.name + "-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
