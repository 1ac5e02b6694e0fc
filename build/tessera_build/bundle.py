"""Checkpoint -> bundle.

A bundle appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

from tessera import __version__, modules
from tessera.contract import SCHEDULERS, SIZE_STEP
from tessera.errors import BundleError
from tessera.manifest import (
    Defaults,
    FileEntry,
    Graph,
    Limits,
    Manifest,
    check_files,
    file_digest,
    read_manifest,
    write_manifest,
)
from tessera.variants import VARIANTS
from tessera_build.checkpoint import open_checkpoint
from tessera_build.export import export_graph
from tessera_build.graphs import graphs_of, latents_of

_LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Choices:
    """What may be chosen about a bundle; `None` is what the checkpoint and its variant suggest.

    Attributes:
        steps, guidance, scheduler, size: of a request that does not say.
        min_size, max_size: limits of width and height in pixels.
        max_rows: largest batch of one UNet call (two rows for a request with guidance).
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size: int | None = None
    min_size: int | None = None
    max_size: int | None = None
    max_rows: int = 16


def build_bundle(
    checkpoint: Path,
    out: Path,
    *,
    choices: Choices,
    progress: Callable[[str, int, int], None],
    config: Path | None = None,
) -> Manifest:
    """Export every graph of a checkpoint into the bundle `out`, replacing what is there.

    Args:
        checkpoint: a diffusers folder or a single safetensors file.
        out: the bundle's folder.
        choices: defaults and limits.
        progress: is told (what comes next, parts done, parts in all).
        config: see `open_checkpoint`.

    Raises:
        BundleError: the checkpoint cannot be read or is not supported, a choice does not fit,
            another build is writing to `out`, or the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        progress("loading", 0, 1)
        pipe, variant = open_checkpoint(checkpoint, config=config)
        limits, defaults = _limits(pipe, choices), _defaults(pipe, variant, choices)
        _check(limits, defaults)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            manifest = Manifest(
                name=out.name,
                variant=variant,
                tessera=__version__,
                defaults=defaults,
                limits=limits,
                latents=latents_of(pipe),
                graphs=_write_parts(pipe, variant, folder, progress),
                files=_entries(folder),
                versions={name: version(name) for name in _LIBRARIES},
                source=source_digest(checkpoint, choices),
                zero_negative=bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
            )
            write_manifest(folder, manifest)
            folder.chmod(0o755)
            _put_in_place(folder, out)
        except OSError as error:
            raise BundleError(f"{out} could not be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def is_current(out: Path, checkpoint: Path, choices: Choices) -> bool:
    """Whether `out` is a whole bundle of this checkpoint with these choices, made by this version
    of the exporter.
    """
    try:
        manifest = read_manifest(out)
        if manifest.source != source_digest(checkpoint, choices):
            return False
        check_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.tessera == __version__


def source_digest(checkpoint: Path, choices: Choices) -> str:
    """SHA-256 over a checkpoint's files, the choices, and the code that exports them."""
    here = Path(__file__).parent
    names = ("bundle.py", "checkpoint.py", "examples.py", "export.py", "graphs.py")
    code = [*(here / n for n in names), Path(modules.__file__)]
    files = [p for p in checkpoint.rglob("*") if p.is_file()] or [checkpoint]
    parts = [file_digest(p) for p in [*code, *sorted(files)]]
    return hashlib.sha256("".join([*parts, repr(choices)]).encode()).hexdigest()


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Only one build at a time writes to `out`."""
    lock = out.with_name(f".{out.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        raise BundleError(f"another build is writing to {out}; wait for it to end") from None
    finally:
        os.close(descriptor)


def _write_parts(
    pipe: DiffusionPipeline, variant: str, folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, Graph]:
    torch.manual_seed(0)
    (folder / "graphs").mkdir()
    specs = graphs_of(pipe, VARIANTS[variant])
    graphs = {}
    for done, spec in enumerate(specs):
        progress(spec.name, done, len(specs))
        file, part = f"graphs/{spec.name}.onnx", modules.network_of(spec.name)
        layout = export_graph(spec.module, spec.signature, folder / file)
        graphs[spec.name] = Graph(file, f"networks/{part}/config.json", layout)
        _save_config(getattr(pipe, part), folder / "networks" / part)
    progress("done", len(specs), len(specs))
    for name in VARIANTS[variant].tokenizers:
        getattr(pipe, name).save_pretrained(folder / name)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    return graphs


def _save_config(network: nn.Module, folder: Path) -> None:
    """Write `config.json` alone, without the path that the network was loaded from: the same
    checkpoint elsewhere is the same bundle.
    """
    owner: Any = network if isinstance(network, ConfigMixin) else network.config
    (owner.save_config if isinstance(network, ConfigMixin) else owner.save_pretrained)(folder)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _natural_size(pipe: DiffusionPipeline) -> int:
    """Pixels of the square pictures that the UNet was made for."""
    return int(pipe.unet.config.sample_size) * latents_of(pipe).pixels


def _limits(pipe: DiffusionPipeline, choices: Choices) -> Limits:
    size = _natural_size(pipe)
    return Limits(
        min_size=choices.min_size or max(size // 2, 8 * SIZE_STEP),
        max_size=choices.max_size or 2 * size,
        max_rows=choices.max_rows,
    )


def _defaults(pipe: DiffusionPipeline, variant: str, choices: Choices) -> Defaults:
    row = VARIANTS[variant]
    cls = type(pipe.scheduler).__name__
    own = [name for name, s in SCHEDULERS.items() if s.cls == cls and not s.settings]
    size = choices.size or _natural_size(pipe)
    return Defaults(
        steps=choices.steps or row.steps,
        guidance=row.guidance if choices.guidance is None else choices.guidance,
        width=size,
        height=size,
        scheduler=choices.scheduler or (own[0] if own else row.scheduler),
    )


def _check(limits: Limits, defaults: Defaults) -> None:
    if defaults.scheduler not in SCHEDULERS:
        raise BundleError(
            f"scheduler {defaults.scheduler!r} is unknown; accepted: {', '.join(SCHEDULERS)}"
        )
    sizes = (limits.min_size, defaults.width, limits.max_size)
    if list(sizes) != sorted(sizes) or any(s % SIZE_STEP for s in sizes):
        raise BundleError(
            f"smallest, usual and largest size are {sizes}; accepted: multiples of {SIZE_STEP} in "
            "ascending order"
        )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files: Iterable[Path] = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): FileEntry(p.stat().st_size, file_digest(p)) for p in files}


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; an older bundle there is moved aside first and then removed."""
    old = folder.with_name(folder.name + "-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
