"""`bundle.json`: what a bundle holds, for which Tessera, with a digest of every file.

The builder writes it last; the runtime and the launcher read it. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.contract import SCHEDULERS, SPARSE_GRAPHS
from tessera.errors import BundleError

SCHEMA = 4
READABLE = (3, 4)
"""Schemas that this Tessera reads. 4 added `precision`, and several graphs in `Graph.shares`."""
FILE_NAME = "bundle.json"
ADAPTERS = "adapters"
"""Folder of a bundle's LoRAs, one .safetensors file each, named by its stem. They are not listed in
the manifest: files may be put in and taken out at any time; whoever opens one checks it."""
CONTROLNET, HINT = "controlnet_", "_hint"
"""A ControlNet's two graphs are `controlnet_NAME` and `controlnet_NAME_hint`."""
LOWRANK = "_lowrank"
"""`unet_encoder_lowrank` and `unet_decoder_lowrank` are the UNet's halves with low-rank inputs."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Defaults:
    """What a request gets when it leaves a field out.

    `lora_bound` is the share of the steps that one with `lora_policy` bounded may be without its
    LoRAs.
    """

    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str
    lora_bound: float = 0.2


@dataclass(frozen=True)
class Limits:
    """Sizes in pixels, how many UNet rows (two per request with guidance) one engine call may have,
    how large the ranks of a row's LoRAs together may be (0 without the graphs for it), how many
    steps a request may ask for (0 for as many as its sampler takes), how many layers of the text
    encoders it may skip, and whether words of a prompt may stand for vectors.
    """

    min_size: int
    max_size: int
    max_rows: int
    lora_rank: int = 0
    max_steps: int = 0
    clip_skip: int = 0
    takes_vectors: bool = False


@dataclass(frozen=True)
class Latents:
    """latents = (encoded - mean) / std * scale; one latent covers `pixels` x `pixels` of a picture.

    `mean` and `std` have a number for each channel, or none where they are 0 and 1.
    """

    channels: int
    pixels: int
    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Graph:
    """One network: its ONNX file and how its initializers differ in layout from the checkpoint's
    weights.

    `config` is the configuration file of the network that it is a part of. `layout` maps a weight's
    name to {"perm": [...]} or {"shape": [...]}; other weights are used as they are. `shares` are
    the graphs in whose external data weights are that are not its own.
    """

    file: str
    config: str
    layout: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class ControlKind:
    """What a request for a ControlNet depends on: a Union knows `modes` kinds of control images,
    others 0; the residuals of a `pooled` one are means over the picture.
    """

    modes: int = 0
    pooled: bool = False


@dataclass(frozen=True)
class Verification:
    """Largest difference between a graph in an engine and the torch module in float32, over `cases`
    random inputs, in units of the outputs' own size.
    """

    difference: float
    cases: int


@dataclass(frozen=True)
class LinearDecoder:
    """Makes previews: latents (n, channels) @ `weights` + `bias` = colours (n, 3), 0..255.

    `r2` and `rmse` (in the same units) compare them with the VAE's on pictures that were not used
    to fit them: the share of the colours' variance that they explain, and how far off they are.
    """

    weights: list[list[float]]
    bias: list[float]
    r2: float
    rmse: float


@dataclass(frozen=True)
class Manifest:
    """The whole of `bundle.json`.

    `source` is a digest of the checkpoint and the exporter; `versions` are those of the libraries
    that exported it; `placements` says where networks run, by name (`cpu`, `gpu:1`), unless the
    operator says otherwise; `schedulers` are the samplers that requests may name, none in
    bundles of an older Tessera; `zero_negative` says that a negative prompt that is left out means
    embeddings of zero instead of those of the empty prompt; `precision` is the one in which weights
    are stored (`fp16`, `bf16`, `fp32`), up to networks that overflow in it; `verification` is what
    `tessera-build verify` found: of ONNX Runtime by graph, of another engine by `graph@kind`;
    `linear_decoder` is `None` in bundles of older builders; `control_kinds` are those of
    ControlNets by name, usual ones are left out; `guidance_width` is the width of the embedding of
    the guidance scale that a UNet takes instead of a negative branch, 0 for others; `inpaints` says
    that the UNet takes a mask and a masked picture beside the latents.
    """

    name: str
    variant: str
    tessera: str
    defaults: Defaults
    limits: Limits
    latents: Latents
    graphs: dict[str, Graph]
    files: dict[str, FileEntry]
    versions: dict[str, str]
    source: str
    precision: str = "fp32"
    zero_negative: bool = False
    schedulers: tuple[str, ...] = ()
    placements: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Verification] = field(default_factory=dict)
    linear_decoder: LinearDecoder | None = None
    control_kinds: dict[str, ControlKind] = field(default_factory=dict)
    guidance_width: int = 0
    inpaints: bool = False
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """Identifies the bundle's content: SHA-256 over the names and digests of its files."""
        lines = [f"{name} {entry.sha256}\n" for name, entry in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def offered(self) -> tuple[str, ...]:
        """The samplers that requests may name."""
        return self.schedulers or tuple(n for n, spec in SCHEDULERS.items() if not spec.edm)

    def max_steps(self, scheduler: str) -> int:
        """How many steps a request may ask for with a sampler."""
        most = SCHEDULERS[scheduler].max_steps
        return min(most, self.limits.max_steps or most)

    def files_of(self, graph: str) -> list[str]:
        """Names of a graph's files: the .onnx and external data, whose name is that with a suffix;
        those of the graphs that it shares weights with too.
        """
        entry = self.graphs[graph]
        own = [name for name in sorted(self.files) if name.startswith(entry.file)]
        return [*own, *(name for other in entry.shares for name in self.files_of(other))]

    @property
    def largest_latents(self) -> int:
        """Positions in the latents of the largest picture."""
        return (self.limits.max_size // self.latents.pixels) ** 2

    @property
    def can_be_sparse(self) -> bool:
        """Whether the bundle has the graphs of token-sparse edits."""
        return set(SPARSE_GRAPHS) <= set(self.graphs)

    @property
    def controlnets(self) -> tuple[str, ...]:
        """Names of the ControlNets in the bundle."""
        graphs = sorted(g for g in self.graphs if g.startswith(CONTROLNET))
        return tuple(g.removeprefix(CONTROLNET) for g in graphs if not g.endswith(HINT))

    def control_kind(self, name: str) -> ControlKind:
        """Of a ControlNet."""
        return self.control_kinds.get(name, ControlKind())

    def controlnet_bytes(self, name: str) -> int:
        """Size of a ControlNet's graphs and weights."""
        graphs = (f"{CONTROLNET}{name}", f"{CONTROLNET}{name}{HINT}")
        prefixes = tuple(self.graphs[graph].file for graph in graphs)
        return sum(e.bytes for file, e in self.files.items() if file.startswith(prefixes))


def network_of(graph: str) -> str:
    """The part of a checkpoint that a graph belongs to: `unet`, `vae`, `text_encoder` ...; for a
    ControlNet the name of its graph.
    """
    if graph.startswith(CONTROLNET):
        return graph.removesuffix(HINT)
    return graph if graph.startswith("text_encoder") else graph.split("_")[0]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json` atomically: a bundle has it whole or not at all."""
    partial = folder / f"{FILE_NAME}.partial"
    with partial.open("w") as out:
        json.dump(dataclasses.asdict(manifest) | {"schema": SCHEMA}, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Read `bundle.json`.

    Raises:
        BundleError: there is none, it is damaged, or it is of another schema.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {FILE_NAME}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in READABLE:
        accepted = " and ".join(map(str, READABLE))
        raise BundleError(
            f"{path} has schema {schema!r}, this Tessera reads {accepted}; build the bundle again"
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged ({error}); build the bundle again") from None


def check_files(
    folder: Path, manifest: Manifest, progress: Callable[[str], None] = lambda name: None
) -> None:
    """Compare every file with its entry; `progress` is told each file's name before it is read.

    Raises:
        BundleError: a file is missing or is not the one the manifest describes.
    """
    for name, entry in manifest.files.items():
        progress(name)
        check_file(folder, name, entry)


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Compare one file with its entry.

    Raises:
        BundleError: it is missing or differs.
    """
    path = folder / name
    try:
        size = path.stat().st_size
        digest = file_digest(path) if size == entry.bytes else ""
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); build the bundle again"
        ) from None
    if size != entry.bytes:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {entry.bytes}; build the bundle again"
        )
    if digest != entry.sha256:
        raise BundleError(
            f"{path} is not the file of the manifest (SHA-256 differs); build the bundle again"
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _several(graph: dict[str, Any]) -> tuple[str, ...]:
    """The graphs that a graph shares weights with. Schema 3 had one, or an empty string."""
    shares = graph.get("shares", ())
    return tuple(filter(None, [shares] if isinstance(shares, str) else shares))


def _parse(content: dict[str, Any]) -> Manifest:
    parts: dict[str, Any] = {
        "defaults": Defaults(**content["defaults"]),
        "limits": Limits(**content["limits"]),
        "latents": _latents(content["latents"]),
        "graphs": {k: Graph(**v | {"shares": _several(v)}) for k, v in content["graphs"].items()},
        "verification": {k: Verification(**v) for k, v in content["verification"].items()},
        "files": {k: FileEntry(**v) for k, v in content["files"].items()},
    }
    kinds = content.get("control_kinds", {})
    parts["control_kinds"] = {name: ControlKind(**kind) for name, kind in kinds.items()}
    decoder = content.get("linear_decoder")
    parts["linear_decoder"] = decoder and LinearDecoder(**decoder)
    parts["schedulers"] = tuple(content.get("schedulers", ()))
    return Manifest(**(content | parts))


def _latents(content: dict[str, Any]) -> Latents:
    lists = {name: tuple(content.get(name, ())) for name in ("mean", "std")}
    return Latents(**(content | lists))
