"""`tessera-serve BUNDLE`."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import typer
from rich.console import Console
from rich.status import Status

from tessera import trace
from tessera.adapters.settings import PATHS, AdapterSettings
from tessera.controls.models import engine_is_half, read_placements, write_models
from tessera.controls.settings import ControlSettings
from tessera.errors import BundleError, TesseraError, brief, listing
from tessera.manifest import Manifest, check_files, read_manifest
from tessera.serve import options as o
from tessera.serve.launch import Launch
from tessera.serve.tritonserver import Ports
from tessera.templates.settings import TemplateSettings, default_folder
from tessera.variants import VARIANTS

console = Console(stderr=True, highlight=False)
ENGINES = ("auto", "onnxruntime", "torch", "tensorrt")
DEFAULTS = Ports()
TEMPLATES = TemplateSettings(default_folder())


def serve(
    bundle: o.Bundle,
    http_port: o.HttpPort = DEFAULTS.http,
    grpc_port: o.GrpcPort = DEFAULTS.grpc,
    metrics_port: o.MetricsPort = DEFAULTS.metrics,
    host: o.Host = "0.0.0.0",
    threads: o.Threads = 0,
    engine: o.Engine = "auto",
    adapters: o.Adapters = None,
    adapter_memory: o.AdapterMemory = AdapterSettings.memory / 1e9,
    lora_path: o.LoraPath = AdapterSettings.path,
    place: o.Place = None,
    pin: o.Pin = None,
    control_memory: o.ControlMemory = ControlSettings.memory / 1e9,
    write_models_to: o.WriteModelsTo = None,
    templates: o.Templates = None,
    template_disk: o.TemplateDisk = TEMPLATES.disk / 1e9,
    template_memory: o.TemplateMemory = TEMPLATES.memory / 1e9,
    template_size: o.TemplateSize = TEMPLATES.size / 1e9,
    template_device: o.TemplateDevice = TEMPLATES.device / 1e9,
    start_timeout: o.StartTimeout = 600.0,
    trace_to: o.TraceTo = None,
    verbose: o.Verbose = False,
    triton_args: o.TritonArgs = None,
) -> None:
    """Serve a bundle with tritonserver until a signal ends it."""
    ports = Ports(http_port, grpc_port, metrics_port)
    log_flags = [] if verbose else ["--log-info=false"]
    try:
        sizes = (template_disk, template_memory, template_size, template_device)
        kept = TemplateSettings((templates or TEMPLATES.folder).resolve(), *map(_bytes, sizes))
        loras = AdapterSettings(tuple(adapters or ()), _bytes(adapter_memory), lora_path)
        manifest = _checked(bundle)
        _check_engine(engine)
        check_lora_path(lora_path, manifest)
        bundled = [f"{name}={text}" for name, text in manifest.placements.items()]
        placements = read_placements([*bundled, *(place or [])], manifest.controlnets)
        pinned = _pinned(pin or [], manifest, control_memory)
        if write_models_to:
            half = engine_is_half(engine)
            write_models(write_models_to, manifest.controlnets, placements, half=half)
            raise typer.Exit
        _check_ports(ports, host)
        variables = {"TESSERA_THREADS": str(threads), "TESSERA_ENGINE": engine}
        variables |= _trace(trace_to)
        for settings in (kept, loras, ControlSettings(_bytes(control_memory), pinned)):
            variables |= settings.to_environment()
        flags = [*log_flags, *(triton_args or [])]
        launch = Launch(bundle, manifest, ports, host, variables, placements, flags)
        code = launch.run(console, pinned=pinned, timeout=start_timeout)
    except TesseraError as error:
        console.print(f"tessera-serve: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


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
    with Status("checking the bundle ...", console=console) as status:
        check_files(bundle, manifest, lambda name: status.update(f"checking the bundle: {name}"))
    return manifest


def _bytes(gigabytes: float) -> int:
    """An option's value in bytes.

    Raises:
        TesseraError: it is infinite.
    """
    if not math.isfinite(gigabytes):
        raise TesseraError(f"{gigabytes} GB is no size; accepted: numbers from 0")
    return int(1e9 * gigabytes)


def _trace(file: Path | None) -> dict[str, str]:
    """The environment that has a trace written, to a file that is empty now.

    Raises:
        TesseraError: it cannot be written.
    """
    if file is None:
        return {}
    try:
        file.write_text("")
    except OSError as error:
        raise TesseraError(f"--trace {file} cannot be written: {error}") from None
    return {trace.VARIABLE: str(file.resolve())}


def _pinned(names: list[str], manifest: Manifest, memory: float) -> tuple[str, ...]:
    for name in names:
        if name not in manifest.controlnets:
            accepted = listing(manifest.controlnets)
            raise TesseraError(f"--pin names the ControlNet {brief(name)}; accepted: {accepted}")
    together = sum(manifest.controlnet_bytes(name) for name in set(names)) / 1e9
    if together > memory:
        raise TesseraError(
            f"--control-memory is {memory:g} GB; accepted: at least {together:.2g} GB for what "
            f"--pin names, {listing(set(names))}"
        )
    return tuple(dict.fromkeys(names))


def _check_engine(kind: str) -> None:
    if kind not in ENGINES:
        raise TesseraError(f"--engine {kind} is unknown; accepted: {listing(ENGINES)}")


def check_lora_path(path: str, manifest: Manifest) -> None:
    """Refuse a way of LoRAs that is unknown, or that the bundle was not built for.

    Raises:
        TesseraError: it is one of these.
    """
    if path not in PATHS:
        raise TesseraError(f"--lora-path {path} is unknown; accepted: {', '.join(PATHS)}")
    if path == "side" and not manifest.limits.lora_rank:
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
