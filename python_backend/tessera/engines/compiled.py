"""The compiled engines of a bundle (TensorRT's `.plan` files), and which one fits a machine.

A compiled engine runs only on the GPU architecture and TensorRT version that it was built for. So
its file name has a digest of everything it depends on, and an engine of another graph, GPU or
version is never opened. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import BundleError
from tessera.manifest import Manifest, file_digest

FOLDER = "compiled"
FAULTY_REFIT = {
    (11, 3, 0): "a refittable engine may drop the bias of a matrix product (its release notes)",
}
"""TensorRT versions whose refittable engines are known to compute wrong results."""


@dataclass(frozen=True)
class Shapes:
    """Smallest, likeliest and largest shape of one input."""

    smallest: tuple[int, ...]
    likeliest: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class CompiledKey:
    """Everything that a compiled engine depends on.

    Attributes:
        graph: the graph's name in the bundle.
        weights: digest of the graph's files, which include its weights.
        precision: `fp16`, `bf16` or `fp32`.
        architecture: architecture of the GPU, such as `sm_90`.
        tensorrt: TensorRT version.
        profile: shapes by input.
        stripped: whether the compiled engine has no weights and is refitted with them when opened.
    """

    graph: str
    weights: str
    precision: str
    architecture: str
    tensorrt: str
    profile: dict[str, Shapes]
    stripped: bool = False

    @property
    def name(self) -> str:
        """File name without suffix."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.graph}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class CompiledRecord:
    """The record beside a compiled engine.

    Attributes:
        key: everything that the engine depends on.
        sha256: checksum of its file.
        canary_built, canary_refitted: largest difference of its outputs from torch's, in units of
            the largest value, as built and after a refit.
    """

    key: CompiledKey
    sha256: str
    canary_built: float
    canary_refitted: float


def check_version(tensorrt: str) -> None:
    """Reject a TensorRT version whose refit is known to be faulty.

    Raises:
        BundleError: the version is one of `FAULTY_REFIT`.
    """
    numbers = tuple(int(n) for n in tensorrt.split(".")[:3])
    if numbers in FAULTY_REFIT:
        raise BundleError(
            f"TensorRT {tensorrt} is not supported: {FAULTY_REFIT[numbers]}; install another "
            "version"
        )


def weights_digest(manifest: Manifest, graph: str) -> str:
    """Digest of a graph's files: the .onnx and its external data."""
    lines = [f"{name} {manifest.files[name].sha256}" for name in manifest.files_of(graph)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canary_path(engine_file: Path) -> Path:
    """Path of a compiled engine's canary (`canary.Canary`)."""
    return engine_file.with_suffix(".canary.safetensors")


def write_compiled(folder: Path, record: CompiledRecord, engine_file: Path) -> Path:
    """Move a built compiled engine and its canary into a bundle; returns the engine's path.

    The record is written first, since an engine without a record is never opened.
    """
    engines = folder / FOLDER
    engines.mkdir(exist_ok=True)
    final = engines / f"{record.key.name}.plan"
    partial = final.with_suffix(".json.partial")
    partial.write_text(json.dumps(dataclasses.asdict(record), indent=1))
    os.replace(partial, final.with_suffix(".json"))
    os.replace(canary_path(engine_file), canary_path(final))
    os.replace(engine_file, final)
    return final


def read_record(path: Path) -> CompiledRecord:
    """The record beside a compiled engine.

    Raises:
        BundleError: the record is damaged.
    """
    try:
        content = json.loads(path.read_text())
        key = content.pop("key")
        shapes = {k: Shapes(*(tuple(s) for s in v.values())) for k, v in key["profile"].items()}
        return CompiledRecord(key=CompiledKey(**(key | {"profile": shapes})), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged ({error}); compile the bundle again") from None


def find_compiled(
    folder: Path, manifest: Manifest, graph: str, *, architecture: str, tensorrt: str
) -> Path:
    """The compiled engine of a graph that fits this machine.

    Raises:
        BundleError: there is none. The message lists the architectures and versions that exist.
    """
    check_version(tensorrt)
    records = [read_record(p) for p in sorted((folder / FOLDER).glob(f"{graph}-*.json"))]
    weights = weights_digest(manifest, graph)
    current = [r for r in records if (r.key.graph, r.key.weights) == (graph, weights)]
    for record in current:
        path = folder / FOLDER / f"{record.key.name}.plan"
        fits = (record.key.architecture, record.key.tensorrt) == (architecture, tensorrt)
        if fits and path.exists():
            if file_digest(path) != record.sha256:
                raise BundleError(f"{path} is damaged (SHA-256 differs); compile the bundle again")
            return path
    raise BundleError(
        f"{folder} has no compiled engine of {graph} for {architecture} and TensorRT {tensorrt}"
        f"{_instead(current)}; run: tessera-build compile {folder}"
    )


def _instead(records: Iterable[CompiledRecord]) -> str:
    others = sorted({f"{r.key.architecture} with TensorRT {r.key.tensorrt}" for r in records})
    return f", only for {', '.join(others)}" if others else ""
