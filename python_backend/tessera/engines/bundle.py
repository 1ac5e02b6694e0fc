"""An opened bundle: its manifest, its files (checked on use) and its engines.

Knows no requests and no Triton.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.engines.base import Engine
from tessera.engines.devices import Device, Devices, devices_at
from tessera.engines.registry import (
    Source,
    chosen_kind,
    open_engine,
    open_placed,
    runs_on_gpu,
)
from tessera.errors import BundleError
from tessera.manifest import Manifest, network_of, read_manifest
from tessera.networks.outline import OUTLINE, Outline
from tessera.shared.checked import CheckedFiles
from tessera.shared.machine import memory
from tessera.shared.settings import AUTO, AUTOMATIC, EngineKind, PlaceSettings, ServerSettings

if TYPE_CHECKING:
    from tessera.networks.modules import GraphModule


class Bundle:
    """A bundle on disk.

    Args:
        folder: where `bundle.json` is.
        threads: threads per engine call; 0 is one per core.
        engine: what runs its graphs.
        compiled: whether torch engines compile the UNet.
        places: where networks run.
        max_steps: steps that a request may ask for, if fewer than the bundle says; 0 for as many.
        checked: record of the files that have been compared, see `CheckedFiles`.

    Raises:
        BundleError: the manifest is missing, or this version of Tessera cannot read it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        engine: EngineKind = EngineKind.AUTO,
        compiled: bool = False,
        places: PlaceSettings = AUTOMATIC,
        max_steps: int = 0,
        checked: Path | None = None,
    ) -> None:
        self.folder = folder
        self.manifest: Manifest = _limited(read_manifest(folder), max_steps)
        self._files = CheckedFiles(folder, self.manifest, checked)
        self._threads = threads
        self._engine = engine
        self._compiled = compiled
        self._places = places

    @property
    def threads(self) -> int:
        """Threads of one engine call."""
        return self._threads or len(os.sched_getaffinity(0))

    @classmethod
    def of(cls, settings: ServerSettings) -> Bundle:
        """The bundle that a server is to serve.

        Raises:
            BundleError: it cannot be served.
        """
        return cls(
            settings.bundle,
            threads=settings.threads,
            engine=settings.engine,
            compiled=settings.torch_compile,
            places=settings.places,
            max_steps=settings.max_steps,
            checked=settings.checked,
        )

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, after checking its digest against the manifest.

        Raises:
            BundleError: the manifest does not list the file, or its digest differs.
        """
        return self._files.check(name)

    def engine(self, graph: str, kind: EngineKind | None = None, *, device: str = "") -> Engine:
        """The engine that runs one of the bundle's graphs, on the network's device.

        Args:
            graph: name of the graph.
            kind: of the engine; the bundle's setting by default.
            device: where it runs instead (see `Source`).

        Raises:
            BundleError: there is no such graph or device, or a file is not the manifest's.
        """
        if device:
            return self._open(graph, kind, device, self._threads)
        return self._opened_on(self._device_of(graph), graph, kind)

    def module(self, graph: str) -> GraphModule:
        """One of the bundle's graphs as a torch module, on the network's device: for who looks
        inside. On the CPU it computes in float32, on a GPU in the precision of engines there.

        Raises:
            BundleError: see `engine`.
        """
        device = self._device_of(graph)
        return open_placed(self._source(graph, device.name, device.threads or self._threads))

    def unet_devices(self) -> Devices:
        """The devices that share the UNet's rows.

        Raises:
            BundleError: one is not there.
        """
        return Devices(self._devices_at(self._places.unet))

    def engines(self, graph: str, devices: Devices) -> list[Engine]:
        """One engine of a graph on each device."""
        return [self._opened_on(devices[i], graph, None) for i in range(len(devices))]

    def _devices_at(self, places: Sequence[str]) -> list[Device]:
        return devices_at(places, threads=self._threads, gpu=runs_on_gpu(self._engine))

    def _device_of(self, graph: str) -> Device:
        """Where a graph runs if nothing else is said: the first device of its network."""
        network = network_of(graph)
        if network == "unet":
            return self._devices_at(self._places.unet)[0]
        by_network = {"vae": self._places.vae}
        of_text = self._places.text_encoders if network.startswith("text_encoder") else AUTO
        return self._devices_at([by_network.get(network, of_text)])[0]

    def _opened_on(self, device: Device, graph: str, kind: EngineKind | None) -> Engine:
        return self._open(graph, kind, device.name, device.threads or self._threads)

    def _open(self, graph: str, kind: EngineKind | None, device: str, threads: int) -> Engine:
        source = self._source(graph, device, threads)
        return open_engine(kind or chosen_kind(self.folder, self._engine, device=device), source)

    def _source(self, graph: str, device: str, threads: int) -> Source:
        if graph not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.folder} has no graph {graph!r}")
        entry = self.manifest.graphs[graph]
        for name in self.manifest.files_of(graph):
            self.file(name)
        self.file(entry.config)
        return Source.of(
            self.folder,
            self.manifest,
            graph,
            threads=threads,
            compiled=self._compiled,
            device=device,
        )

    def outline(self, part: str) -> Outline:
        """Structure of the UNet or a text encoder (see `manifest.network_of`); a bundle of an older
        Tessera does not hold it, and finding it out then takes seconds.

        Raises:
            BundleError: the bundle has no such network.
        """
        graphs = self.manifest.graphs
        config = next((e.config for g, e in graphs.items() if network_of(g) == part), None)
        if config is None:
            raise BundleError(f"the bundle {self.folder} has no network {part!r}")
        name = str(Path(config).with_name(OUTLINE))
        if name in self.manifest.files:
            outline = Outline.from_json(self.file(name).read_text())
            if outline is not None:
                return outline
        from tessera.networks.walk import outline_from_config

        return outline_from_config(part, json.loads(self.file(config).read_text()))

    def tokenizer(self, folder: str) -> Path:
        """The folder of a tokenizer, after checking its files against the manifest."""
        for name in self.manifest.files:
            if name.startswith(f"{folder}/"):
                self.file(name)
        return self.folder / folder

    def text_widths(self, graphs: Sequence[str]) -> list[int]:
        """Of the token embeddings of text encoders that take vectors in their place; none if the
        graphs were exported by an older builder.
        """
        limits = self.manifest.limits
        return [self.text_width(graph) for graph in graphs] if limits.takes_vectors else []

    def text_width(self, graph: str) -> int:
        """Of a text encoder's token embeddings."""
        config = json.loads(self.file(self.manifest.graphs[graph].config).read_text())
        return int(config["hidden_size"])

    def decoder_channels(self) -> int:
        """Channels of the two largest tensors of the VAE decoder together: those at the size of the
        picture, in front of the last block and behind it.
        """
        config = json.loads(self.file(self.manifest.graphs["vae_decoder"].config).read_text())
        widths = config.get("up_block_out_channels") or config.get("block_out_channels")
        if widths is None:  # AutoencoderTiny
            widths = config["decoder_block_out_channels"]
        first, *more = sorted(widths)
        return int(first + (more or [first])[0])

    def skip_numbers(self) -> float:
        """Numbers that the UNet's encoder half hands to its decoder half, for each latent of a row:
        all are in memory at the same time.
        """
        config = json.loads(self.file(self.manifest.graphs["unet_encoder"].config).read_text())
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        counts = [layers] * len(widths) if isinstance(layers, int) else layers
        found = float(widths[0])  # conv_in
        for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
            found += count * width / 4**level
            if level + 1 < len(widths):
                found += width / 4 ** (level + 1)  # the downsampler
        return found

    def memory_of(self, graph: str) -> tuple[int, int]:
        """Bytes of memory where a graph runs, and the least of one of its numbers there."""
        place = self._device_of(graph).name
        if place.startswith("cuda"):
            import torch

            return torch.cuda.mem_get_info(place)[1], 2
        return memory(), 4

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The checkpoint's `scheduler_config.json`."""
        content: dict[str, Any] = json.loads(
            self.file("scheduler/scheduler_config.json").read_text()
        )
        return content


def _limited(manifest: Manifest, max_steps: int) -> Manifest:
    if not max_steps:
        return manifest
    most = min(max_steps, manifest.limits.max_steps or max_steps)
    limits = dataclasses.replace(manifest.limits, max_steps=most)
    steps = min(manifest.defaults.steps, most)
    defaults = dataclasses.replace(manifest.defaults, steps=steps)
    return dataclasses.replace(manifest, limits=limits, defaults=defaults)
