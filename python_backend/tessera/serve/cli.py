"""`tessera-serve BUNDLE`."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from pathlib import Path

import typer

from tessera.controls.models import engine_is_half, read_placements, write_models
from tessera.errors import BundleError, TesseraError, brief, listing
from tessera.manifest import Manifest, check_files, read_manifest
from tessera.serve import options as o
from tessera.serve.launch import Launch
from tessera.serve.tritonserver import Ports
from tessera.shared.settings import (
    AdapterSettings,
    ControlSettings,
    LoraPath,
    ServerSettings,
    TemplateSettings,
)
from tessera.terminal.console import Console
from tessera.variants import VARIANTS

console = Console(stderr=True)
GB = 1e9


def serve(
    bundle: o.Bundle,
    triton_args: o.TritonArgs = None,
    host: o.Host = "0.0.0.0",
    http_port: o.HttpPort = Ports.http,
    grpc_port: o.GrpcPort = Ports.grpc,
    metrics_port: o.MetricsPort = Ports.metrics,
    engine: o.Engine = ServerSettings.engine,
    threads: o.Threads = ServerSettings.threads,
    torch_compile: o.TorchCompile = ServerSettings.torch_compile,
    adapters: o.Adapters = None,
    adapter_memory: o.AdapterMemory = AdapterSettings.memory / GB,
    lora_path: o.LoraPath = AdapterSettings.path,
    place: o.Place = None,
    pin: o.Pin = None,
    control_memory: o.ControlMemory = ControlSettings.memory / GB,
    write_models_to: o.WriteModelsTo = None,
    templates: o.Templates = None,
    template_disk: o.TemplateDisk = TemplateSettings.disk / GB,
    template_memory: o.TemplateMemory = TemplateSettings.memory / GB,
    template_size: o.TemplateSize = TemplateSettings.size / GB,
    template_device: o.TemplateDevice = TemplateSettings.device / GB,
    start_timeout: o.StartTimeout = 600.0,
    trace_to: o.TraceTo = None,
    verbose: o.Verbose = False,
) -> None:
    """Serve a bundle with tritonserver until a signal ends it."""
    try:
        sizes = (template_disk, template_memory, template_size, template_device)
        settings = ServerSettings(
            bundle.resolve(),
            threads,
            engine,
            torch_compile,
            trace=trace_to and trace_to.resolve(),
            templates=_templates(templates, sizes),
            adapters=AdapterSettings(_resolved(adapters), _bytes(adapter_memory), lora_path),
            controls=ControlSettings(_bytes(control_memory), tuple(dict.fromkeys(pin or ()))),
        )
        settings.to_environment()  # says now what a variable cannot hold
        manifest = _checked(bundle)
        check_lora_path(lora_path, manifest)
        bundled = [f"{name}={text}" for name, text in manifest.placements.items()]
        placements = read_placements([*bundled, *(place or [])], manifest.controlnets)
        _check_pinned(settings.controls, manifest)
        if write_models_to:
            half = engine_is_half(engine)
            write_models(write_models_to, manifest.controlnets, placements, half=half)
            raise typer.Exit
        ports = Ports(http_port, grpc_port, metrics_port)
        _check_ports(ports, host)
        _begin_trace(trace_to)
        launch = Launch(settings, manifest, ports, host, placements, triton_args or [], verbose)
        code = launch.run(console, timeout=start_timeout)
    except TesseraError as error:
        console.say(f"tessera-serve: {error}", style="red")
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _resolved(folders: Iterable[Path] | None) -> tuple[Path, ...]:
    return tuple(folder.resolve() for folder in folders or ())


def _templates(folder: Path | None, gigabytes: Iterable[float]) -> TemplateSettings:
    kept = folder or TemplateSettings().folder
    return TemplateSettings(kept.resolve(), *map(_bytes, gigabytes))


def _checked(bundle: Path) -> Manifest:
    """The bundle's manifest, every file compared with it.

    Raises:
        BundleError: something does not fit.
    """
    manifest = read_manifest(bundle)
    if manifest.variant not in VARIANTS:
        raise BundleError(
            f"{bundle} is of variant {manifest.variant!r}; this Tessera serves "
            f"{', '.join(VARIANTS)}"
        )
    with console.doing("checking the bundle ...") as news:
        check_files(bundle, manifest, lambda name: news(f"checking the bundle: {name}"))
    return manifest


def _bytes(gigabytes: float) -> int:
    """An option's value in bytes.

    Raises:
        TesseraError: it is infinite.
    """
    if not math.isfinite(gigabytes):
        raise TesseraError(f"{gigabytes} GB is no size; accepted: numbers from 0")
    return int(GB * gigabytes)


def _begin_trace(file: Path | None) -> None:
    """Make the file of a trace empty.

    Raises:
        TesseraError: it cannot be written.
    """
    if file is None:
        return
    try:
        file.write_text("")
    except OSError as error:
        raise TesseraError(f"--trace {file} cannot be written: {error}") from None


def _check_pinned(settings: ControlSettings, manifest: Manifest) -> None:
    for name in settings.pinned:
        if name not in manifest.controlnets:
            accepted = listing(manifest.controlnets)
            raise TesseraError(f"--pin names the ControlNet {brief(name)}; accepted: {accepted}")
    together = sum(map(manifest.controlnet_bytes, settings.pinned))
    if together > settings.memory:
        raise TesseraError(
            f"--control-memory is {settings.memory / GB:g} GB; accepted: at least "
            f"{together / GB:.2g} GB for what --pin names, {listing(settings.pinned)}"
        )


def check_lora_path(path: LoraPath, manifest: Manifest) -> None:
    """Refuse a way of LoRAs that the bundle was not built for.

    Raises:
        TesseraError: it has no graphs for it.
    """
    if path is LoraPath.SIDE and not manifest.limits.lora_rank:
        raise TesseraError(
            f"--lora-path side: bundle {manifest.name} has no graphs for it; build it with "
            "--lora-rank above 0"
        )


def _check_ports(ports: Ports, host: str) -> None:
    """Say which port is taken before Triton fails on it with a page of log."""
    for name, port in vars(ports).items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise TesseraError(
                    f"--{name}-port {port} cannot be used: {error.strerror}"
                ) from None


def main() -> None:
    """Entry point of the console script."""
    typer.run(serve)
