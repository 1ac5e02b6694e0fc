"""`tessera-serve BUNDLE`."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from tessera.controls.models import engine_is_half, write_models
from tessera.engines.places import Places, read_places
from tessera.errors import BundleError, TesseraError, brief, listing
from tessera.manifest import Manifest, read_manifest
from tessera.serve import options as o
from tessera.serve.drain import DRAIN_S
from tessera.serve.gateway import GatewayOptions, check_gateway
from tessera.serve.launch import Launch
from tessera.serve.starts import STALL_S
from tessera.serve.tritonserver import Ports
from tessera.shared.checked import CheckedFiles
from tessera.shared.request_log import LogFormat
from tessera.shared.settings import (
    AdapterSettings,
    ControlSettings,
    EngineKind,
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
    host: o.Host = "127.0.0.1",
    http_port: o.HttpPort = Ports.http,
    grpc_port: o.GrpcPort = Ports.grpc,
    metrics_port: o.MetricsPort = Ports.metrics,
    gateway: o.Gateway = False,
    gateway_host: o.GatewayHost = GatewayOptions.host,
    gateway_port: o.GatewayPort = GatewayOptions.port,
    engine: o.Engine = ServerSettings.engine,
    threads: o.Threads = ServerSettings.threads,
    torch_compile: o.TorchCompile = ServerSettings.torch_compile,
    slots: o.Slots = ServerSettings.slots,
    max_steps: o.MaxSteps = ServerSettings.max_steps,
    max_queue: o.MaxQueue = ServerSettings.max_queue,
    adapters: o.Adapters = None,
    adapter_memory: o.AdapterMemory = AdapterSettings.memory / GB,
    lora_path: o.LoraPath = AdapterSettings.path,
    place: o.Place = None,
    pin: o.Pin = None,
    control_memory: o.ControlMemory = ControlSettings.memory / GB,
    write_models_to: o.WriteModelsTo = None,
    edit_quality: o.EditQuality = ServerSettings.edit_quality,
    templates: o.Templates = None,
    template_disk: o.TemplateDisk = TemplateSettings.disk / GB,
    template_memory: o.TemplateMemory = None,
    template_size: o.TemplateSize = None,
    template_device: o.TemplateDevice = None,
    start_timeout: o.StartTimeout = 600.0,
    drain_seconds: o.DrainSeconds = DRAIN_S,
    stall_seconds: o.StallSeconds = STALL_S,
    log_format: o.LogAs = ServerSettings.log_format,
    log_prompts: o.LogPrompts = ServerSettings.log_prompts,
    trace_to: o.TraceTo = None,
    verbose: o.Verbose = False,
) -> None:
    """Serve a bundle with tritonserver until a signal ends it."""
    sizes = (template_disk, template_memory, template_size, template_device)
    try:
        settings = ServerSettings(
            bundle.resolve(),
            *(threads, engine, torch_compile, slots, max_steps, max_queue, edit_quality),
            **_output(trace_to, log_format, log_prompts),
            templates=_templates(templates, sizes),
            adapters=AdapterSettings(_resolved(adapters), _bytes(adapter_memory), lora_path),
            controls=ControlSettings(_bytes(control_memory), tuple(dict.fromkeys(pin or ()))),
        )
        settings, manifest, files, places = _fitting(settings, bundle, place)
        if write_models_to:
            raise _models_written(write_models_to, manifest, places.controlnets, engine)
        beside = GatewayOptions(gateway_host, gateway_port) if gateway else None
        _check_ports(ports := Ports(http_port, grpc_port, metrics_port), host, beside)
        _begin_trace(trace_to)
        limits = (drain_seconds, stall_seconds)
        how = (host, places.controlnets, triton_args or [], verbose, beside, *limits)
        raise typer.Exit(Launch(settings, manifest, files, ports, *how).run(console, start_timeout))
    except (TesseraError, OSError) as error:
        console.say(f"tessera-serve: {error}", style="red")
        raise typer.Exit(1) from None


def _output(trace: Path | None, form: LogFormat, prompts: bool) -> dict[str, Any]:
    return {"trace": trace and trace.resolve(), "log_format": form, "log_prompts": prompts}


def _resolved(folders: Iterable[Path] | None) -> tuple[Path, ...]:
    return tuple(folder.resolve() for folder in folders or ())


def _templates(folder: Path | None, gigabytes: Iterable[float | None]) -> TemplateSettings:
    kept = folder or TemplateSettings().folder
    given = zip(("disk", "memory", "size", "device"), gigabytes, strict=True)
    sizes = {name: _bytes(size) for name, size in given if size is not None}
    return TemplateSettings(kept.resolve(), **sizes)


def _checked(bundle: Path) -> tuple[Manifest, CheckedFiles]:
    """The bundle's manifest, and its files, every one compared with it.

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
        files = CheckedFiles(bundle, manifest)
        files.check_all(lambda name: news(f"checking the bundle: {name}"))
    return manifest, files


def _places(manifest: Manifest, pairs: Iterable[str] | None) -> Places:
    bundled = [f"{name}={place}" for name, place in manifest.placements.items()]
    return read_places([*bundled, *(pairs or [])], manifest.controlnets)


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


def _fitting(
    settings: ServerSettings, bundle: Path, pairs: Iterable[str] | None
) -> tuple[ServerSettings, Manifest, CheckedFiles, Places]:
    """See `_checked`; the settings fit the bundle, too, can be handed on, and say the places."""
    settings.to_environment()  # says now what a variable cannot hold
    manifest, files = _checked(bundle)
    check_lora_path(settings.adapters.path, manifest)
    _check_pinned(settings.controls, manifest)
    places = _places(manifest, pairs)
    return replace(settings, places=places.networks), manifest, files, places


def _models_written(
    folder: Path, manifest: Manifest, places: Mapping[str, str], engine: EngineKind
) -> typer.Exit:
    """Write model folders for a plain tritonserver, which is all that this program does then."""
    write_models(folder, manifest.controlnets, places, half=engine_is_half(engine))
    return typer.Exit()


def _check_ports(ports: Ports, host: str, gateway: GatewayOptions | None) -> None:
    """Say which port is taken before Triton fails on it with a page of log; and which packages the
    gateway lacks.
    """
    for name, port in vars(ports).items():
        _check_port(name, port, host)
    if gateway:
        check_gateway()
        _check_port("gateway", gateway.port, gateway.host)


def _check_port(name: str, port: int, host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TesseraError(f"--{name}-port {port} cannot be used: {error.strerror}") from None


def main() -> None:
    """Entry point of the console script."""
    typer.run(serve)
