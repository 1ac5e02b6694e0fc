"""Builds a bundle from a checkpoint.

The bundle is written to a temporary folder and renamed, so it appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

import tessera.networks
from tessera import __version__
from tessera.adapters.formats import PARTS
from tessera.contract import SCHEDULERS, SIZE_STEP
from tessera.errors import BundleError, TesseraError
from tessera.manifest import (
    ADAPTERS,
    LOWRANK,
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
from tessera.variants import VARIANTS
from tessera_build.addons import AddOns, install_loras, open_controlnet
from tessera_build.checkpoint import open_checkpoint
from tessera_build.exporter import exporting
from tessera_build.graphs import GraphSpec, graphs_of, latents_of
from tessera_build.shared import share_weights

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
        lora_rank: largest sum of the ranks of a request's LoRAs on the low-rank side path; 0 leaves
            its graphs out.
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


def build_bundle(
    checkpoint: Path,
    out: Path,
    *,
    choices: Choices,
    progress: Callable[[str, int, int], None],
    config: Path | None = None,
    addons: AddOns = _NONE,
) -> Manifest:
    """Export every graph of a checkpoint into a bundle.

    Args:
        checkpoint: a diffusers folder or a single safetensors file.
        out: the bundle's folder. An existing bundle is replaced, except for its LoRAs.
        choices: defaults and limits.
        progress: called with (next part, number of finished parts, number of all parts).
        config: see `open_checkpoint`.
        addons: ControlNets and LoRAs to add.

    Raises:
        BundleError: the checkpoint or an add-on cannot be read or is not supported, a choice is not
            accepted, another build is writing to `out`, or the disk is full.
    """
    addons.check()
    with _writing(out), _locked(out):
        progress("loading", 0, 1)
        source = source_digest(checkpoint, choices, addons)
        pipe, variant = open_checkpoint(checkpoint, config=config)
        torch.manual_seed(0)
        limits, defaults = _checked(_limits(pipe, choices), _defaults(pipe, variant, choices))
        controlnets = {
            name: open_controlnet(name, path, pipe.unet, latents_of(pipe))
            for name, path in addons.controlnets.items()
        }
        specs = graphs_of(pipe, VARIANTS[variant], controlnets, lowrank=choices.lora_rank > 0)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            _write_config(pipe, variant, folder)
            manifest = Manifest(
                name=out.name,
                variant=variant,
                tessera=__version__,
                defaults=defaults,
                limits=limits,
                latents=latents_of(pipe),
                graphs=_write_graphs(specs, folder, progress),
                files=_entries(folder),
                versions={name: version(name) for name in _LIBRARIES},
                source=source,
                placements=addons.places,
                zero_negative=bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
            )
            install_loras(folder, [*sorted((out / ADAPTERS).glob("*.safetensors")), *addons.loras])
            write_manifest(folder, manifest)
            folder.chmod(0o755)
            _put_in_place(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def is_current(out: Path, checkpoint: Path, choices: Choices, addons: AddOns = _NONE) -> bool:
    """Whether `out` is a complete bundle of this checkpoint with these choices and ControlNets,
    built by this version of the exporter.
    """
    try:
        manifest = read_manifest(out)
        if manifest.source != source_digest(checkpoint, choices, addons):
            return False
        check_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.tessera == __version__


def source_digest(checkpoint: Path, choices: Choices, addons: AddOns = _NONE) -> str:
    """SHA-256 of the files of a checkpoint and its ControlNets, the choices, and the exporter's
    code.
    """
    parts = [code_digest(), *(file_digest(p) for p in _files(checkpoint))]
    for name, path in sorted(addons.controlnets.items()):
        parts += [name, *(file_digest(p) for p in _files(path))]
    parts += [repr(choices), repr(sorted(addons.places.items()))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def code_digest() -> str:
    """SHA-256 of the code that determines the contents of a bundle's graphs."""
    here = Path(__file__).parent
    networks = Path(tessera.networks.__file__).parent
    builder = (
        "addons",
        "bundle",
        "checkpoint",
        "examples",
        "export",
        "exporter",
        "graphs",
        "shared",
    )
    code = [
        *(here / f"{n}.py" for n in (*builder, "sparse", "trace")),
        *sorted(networks.glob("*.py")),
    ]
    return hashlib.sha256("".join(file_digest(p) for p in code).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) or [path]


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a `BundleError`."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except TesseraError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise  # libraries written in Rust raise system errors without a class of their own
        raise BundleError(f"{out} could not be written: {reason or error}") from error


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Only one build at a time writes to `out`."""
    lock = out.with_name(f".{out.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), lock.stat()):
            raise BlockingIOError  # just removed by its owner; another process may have a new one
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise BundleError(f"another build is writing to {out}; wait until it ends") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _write_graphs(
    specs: Sequence[GraphSpec], folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, Graph]:
    (folder / "graphs").mkdir()
    graphs: dict[str, Graph] = {}
    with exporting(specs, folder / "graphs") as exported:
        for done, spec in enumerate(specs):
            progress(spec.name, done, len(specs))
            file, part = f"graphs/{spec.name}.onnx", network_of(spec.name)
            layout = exported(spec.name)
            twin = spec.name.removesuffix(LOWRANK)
            shares = twin if twin != spec.name else ""
            if shares:
                share_weights(folder / file, folder / graphs[shares].file)
            graphs[spec.name] = Graph(file, f"networks/{part}/config.json", layout, shares)
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


def _limits(pipe: DiffusionPipeline, choices: Choices) -> Limits:
    size = _natural_size(pipe)
    return Limits(
        min_size=choices.min_size or max(size // 2, 8 * SIZE_STEP),
        max_size=choices.max_size or 2 * size,
        max_rows=choices.max_rows,
        lora_rank=choices.lora_rank,
    )


def _defaults(pipe: DiffusionPipeline, variant: str, choices: Choices) -> Defaults:
    row = VARIANTS[variant]
    cls = type(pipe.scheduler).__name__
    of_checkpoint = [name for name, s in SCHEDULERS.items() if s.cls == cls and not s.settings]
    size = choices.size or _natural_size(pipe)
    return Defaults(
        steps=choices.steps or row.steps,
        guidance=row.guidance if choices.guidance is None else choices.guidance,
        width=size,
        height=size,
        scheduler=choices.scheduler or next(iter(of_checkpoint), row.scheduler),
        lora_bound=choices.lora_bound,
    )


def _checked(limits: Limits, defaults: Defaults) -> tuple[Limits, Defaults]:
    if defaults.scheduler not in SCHEDULERS:
        raise BundleError(
            f"scheduler {defaults.scheduler!r} is unknown; accepted: {', '.join(SCHEDULERS)}"
        )
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
