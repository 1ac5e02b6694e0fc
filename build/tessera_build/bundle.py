"""Checkpoint -> bundle.

A bundle appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from tessera import __version__
from tessera.errors import BundleError
from tessera.manifest import (
    Defaults,
    FileEntry,
    Graph,
    Latents,
    Limits,
    Manifest,
    check_files,
    file_digest,
    read_manifest,
    write_manifest,
)
from tessera_build.export import export_graph
from tessera_build.graphs import graphs_of

_LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


def build_bundle(
    checkpoint: Path,
    out: Path,
    *,
    defaults: Defaults,
    limits: Limits,
    progress: Callable[[str, int, int], None],
) -> Manifest:
    """Export every graph of a diffusers folder into the bundle `out`, replacing what is there.

    `progress` is told (what comes next, parts done, parts in all).

    Raises:
        BundleError: `checkpoint` is not a diffusers folder.
    """
    if not (checkpoint / "model_index.json").exists():
        raise BundleError(f"{checkpoint} is not a diffusers checkpoint: it has no model_index.json")
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(str(checkpoint), dtype=torch.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        graphs = _export_graphs(pipe, folder, progress)
        pipe.tokenizer.save_pretrained(folder / "tokenizer")
        pipe.scheduler.save_pretrained(folder / "scheduler")
        manifest = Manifest(
            name=out.name,
            variant="sd15",
            tessera=__version__,
            defaults=defaults,
            limits=limits,
            latents=_latents(pipe),
            graphs=graphs,
            files=_entries(folder),
            versions={name: version(name) for name in _LIBRARIES},
            source=source_digest(checkpoint),
        )
        write_manifest(folder, manifest)
        folder.chmod(0o755)
        _put_in_place(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return manifest


def is_current(out: Path, checkpoint: Path) -> bool:
    """Whether `out` is a whole bundle of this checkpoint, made by this version of the exporter."""
    try:
        manifest = read_manifest(out)
        if manifest.source != source_digest(checkpoint) or manifest.tessera != __version__:
            return False
        check_files(out, manifest)
    except BundleError:
        return False
    return True


def source_digest(checkpoint: Path) -> str:
    """SHA-256 over a checkpoint's files and the code that exports them."""
    here = Path(__file__).parent
    code = [here / name for name in ("bundle.py", "export.py", "graphs.py", "modules.py")]
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    return hashlib.sha256("".join(file_digest(p) for p in [*code, *files]).encode()).hexdigest()


def _export_graphs(
    pipe: StableDiffusionPipeline, folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, Graph]:
    (folder / "graphs").mkdir()
    specs = graphs_of(pipe)
    graphs = {}
    for done, spec in enumerate(specs):
        progress(spec.name, done, len(specs))
        file = f"graphs/{spec.name}.onnx"
        graphs[spec.name] = Graph(file, export_graph(spec.module, spec.signature, folder / file))
    progress("done", len(specs), len(specs))
    return graphs


def _latents(pipe: StableDiffusionPipeline) -> Latents:
    config = pipe.vae.config
    return Latents(
        channels=config.latent_channels,
        pixels=2 ** (len(config.block_out_channels) - 1),
        scale=config.scaling_factor,
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
