"""`tessera-serve BUNDLE`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from tessera import trace
from tessera.adapters.settings import AdapterSettings
from tessera.controls.models import engine_is_half, read_placements, write_models
from tessera.controls.settings import ControlSettings
from tessera.errors import BundleError, TesseraError, brief, listing
from tessera.manifest import Manifest, check_files, read_manifest
from tessera.serve.launch import Launch
from tessera.serve.tritonserver import Ports
from tessera.templates.settings import TemplateSettings, default_folder
from tessera.variants import VARIANTS

console = Console(stderr=True, highlight=False)
DEFAULTS = Ports()
TEMPLATES = TemplateSettings(default_folder())
ENGINES = ("auto", "onnxruntime", "tensorrt", "torch")


def serve(
    bundle: Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")],
    http_port: Annotated[int, typer.Option(help="HTTP endpoint.")] = DEFAULTS.http,
    grpc_port: Annotated[int, typer.Option(help="gRPC endpoint.")] = DEFAULTS.grpc,
    metrics_port: Annotated[int, typer.Option(help="Prometheus endpoint.")] = DEFAULTS.metrics,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads per engine call; 0 is one per core.")
    ] = 0,
    engine: Annotated[str, typer.Option(help="auto, onnxruntime, tensorrt or torch.")] = "auto",
    adapters: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of LoRAs beside the bundle's own; may be given several times."),
    ] = None,
    adapter_memory: Annotated[
        float,
        typer.Option(min=0, help="GB of LoRAs in memory, and again of weights merged with them."),
    ] = AdapterSettings.memory / 1e9,
    place: Annotated[
        list[str] | None,
        typer.Option(help="Where a ControlNet runs: NAME=cpu, NAME=gpu:1, NAME=gpu:0,gpu:1."),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(help="A ControlNet that is loaded at once and stays; may be given again."),
    ] = None,
    control_memory: Annotated[
        float, typer.Option(min=0, help="GB of loaded ControlNets.")
    ] = ControlSettings.memory / 1e9,
    write_models_to: Annotated[
        Path | None,
        typer.Option(
            "--write-models",
            help="Write the ControlNets' models there and end: for a plain tritonserver.",
        ),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Folder of templates; by default in the user's cache.")
    ] = None,
    template_disk: Annotated[
        float, typer.Option(min=0, help="GB of all recorded templates.")
    ] = TEMPLATES.disk / 1e9,
    template_memory: Annotated[
        float, typer.Option(min=0, help="GB of recorded steps held in memory.")
    ] = TEMPLATES.memory / 1e9,
    template_size: Annotated[
        float, typer.Option(min=0, help="GB of one recorded template.")
    ] = TEMPLATES.size / 1e9,
    template_device: Annotated[
        float, typer.Option(min=0, help="GB of recorded steps held on a GPU, where there is one.")
    ] = TEMPLATES.device / 1e9,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for readiness.")] = 600.0,
    trace_to: Annotated[
        Path | None,
        typer.Option("--trace", help="Write where the time goes to this file, for Perfetto."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show tritonserver's own log.")
    ] = False,
    triton_args: Annotated[
        list[str] | None, typer.Argument(help="After --: further tritonserver flags.")
    ] = None,
) -> None:
    """Serve a bundle with tritonserver until a signal ends it."""
    ports = Ports(http_port, grpc_port, metrics_port)
    sizes = (template_disk, template_memory, template_size, template_device)
    budgets = [int(1e9 * gb) for gb in sizes]
    loras = AdapterSettings(tuple(adapters or ()), int(1e9 * adapter_memory))
    kept = TemplateSettings((templates or TEMPLATES.folder).resolve(), *budgets)
    log_flags = [] if verbose else ["--log-info=false"]
    try:
        manifest = _checked(bundle)
        _check_engine(engine)
        placements = read_placements(place or [], manifest.controlnets)
        controls = ControlSettings(int(1e9 * control_memory), _pinned(pin or [], manifest))
        if write_models_to:
            half = engine_is_half(engine)
            write_models(write_models_to, manifest.controlnets, placements, half=half)
            raise typer.Exit
        _check_ports(ports, host)
        settings = {"TESSERA_THREADS": str(threads), "TESSERA_ENGINE": engine}
        if trace_to:
            settings[trace.VARIABLE] = str(trace_to.resolve())
        for chosen in (kept, loras, controls):
            settings |= chosen.to_environment()
        launch = Launch(
            bundle,
            manifest,
            ports,
            host,
            settings,
            placements=placements,
            pinned=controls.pinned,
            timeout=start_timeout,
            flags=[*log_flags, *(triton_args or [])],
        )
        code = launch.run(console)
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


def _pinned(names: list[str], manifest: Manifest) -> tuple[str, ...]:
    for name in names:
        if name not in manifest.controlnets:
            accepted = listing(manifest.controlnets)
            raise TesseraError(f"--pin names the ControlNet {brief(name)}; accepted: {accepted}")
    return tuple(dict.fromkeys(names))


def _check_engine(kind: str) -> None:
    if kind not in ENGINES:
        raise TesseraError(f"--engine {kind} is unknown; accepted: {', '.join(ENGINES)}")


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
