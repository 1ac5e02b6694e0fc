"""`tessera-serve BUNDLE`."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from tessera.adapters.settings import PATHS, AdapterSettings
from tessera.errors import BundleError, TesseraError
from tessera.manifest import Manifest, check_files, read_manifest
from tessera.serve.supervisor import Supervisor
from tessera.serve.tritonserver import Ports, command, environment, find_server, model_repository
from tessera.serve.warmup import warm_up
from tessera.templates.settings import TemplateSettings, default_folder
from tessera.variants import VARIANTS

console = Console(stderr=True, highlight=False)
DEFAULTS = Ports()
TEMPLATES = TemplateSettings(default_folder())
AdapterFolders = Annotated[
    list[Path] | None,
    typer.Option(help="A folder of LoRAs beside the bundle's own; may be given several times."),
]
LoraPath = Annotated[
    str,
    typer.Option(
        help="How LoRAs get into the UNet: refit (sets take turns), side (in one batch, where the "
        "low-rank side path takes them), auto (what costs less)."
    ),
]
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
    adapters: AdapterFolders = None,
    adapter_memory: Annotated[
        float,
        typer.Option(min=0, help="GB of LoRAs in memory, and again of weights merged with them."),
    ] = AdapterSettings.memory / 1e9,
    lora_path: LoraPath = AdapterSettings.path,
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
    loras = AdapterSettings(tuple(adapters or ()), int(1e9 * adapter_memory), lora_path)
    kept = TemplateSettings((templates or TEMPLATES.folder).resolve(), *budgets)
    log_flags = [] if verbose else ["--log-info=false"]
    try:
        manifest = _checked(bundle)
        _check_ports(ports, host)
        _check_engine(engine)
        check_lora_path(lora_path, manifest)
        settings = {"TESSERA_THREADS": str(threads), "TESSERA_ENGINE": engine}
        settings |= {**kept.to_environment(), **loras.to_environment()}
        flags = [*log_flags, *(triton_args or [])]
        code = _serve(bundle, manifest, ports, host, settings, start_timeout, flags)
    except TesseraError as error:
        console.print(f"tessera-serve: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _serve(
    bundle: Path,
    manifest: Manifest,
    ports: Ports,
    host: str,
    settings: dict[str, str],
    timeout: float,
    extra: list[str],
) -> int:
    run_folder = Path(tempfile.mkdtemp(prefix="tessera-", dir=_memory_folder()))
    try:
        server = find_server(run_folder)
        variables = {
            "TESSERA_BUNDLE": str(bundle.resolve()),
            "TESSERA_BOARD": str(run_folder / "board"),
            **settings,
        }
        supervisor = Supervisor(
            command(server, [model_repository()], ports, host=host, extra=extra),
            environment(server, **variables),
            ports.http,
            lambda line: console.print(f"tessera-serve: {line}", soft_wrap=True),
        )
        try:
            return _run(supervisor, manifest, ports, timeout)
        finally:
            supervisor.stop()
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)


def _run(supervisor: Supervisor, manifest: Manifest, ports: Ports, timeout: float) -> int:
    began = time.monotonic()
    supervisor.start()
    with Status(f"starting tritonserver on bundle {manifest.name} ...", console=console) as status:
        ready = supervisor.wait_ready(
            timeout,
            lambda s: status.update(f"loading the models of bundle {manifest.name} ... {s:.0f} s"),
        )
    if supervisor.interrupted:
        return supervisor.watch()  # until it has ended
    if not ready:
        raise TesseraError(
            "tritonserver did not become ready; its log above says why (-v shows all of it)"
        )
    with Status("making the first pictures ...", console=console):
        warm_up(ports.http, manifest.limits.min_size)
    console.print(
        f"tessera-serve: bundle {manifest.name} ({manifest.digest[:12]}) is ready after "
        f"{time.monotonic() - began:.1f} s: HTTP {ports.http}, gRPC {ports.grpc}, "
        f"metrics {ports.metrics}",
        soft_wrap=True,
    )
    return supervisor.watch()


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


def _check_engine(kind: str) -> None:
    if kind not in ENGINES:
        raise TesseraError(f"--engine {kind} is unknown; accepted: {', '.join(ENGINES)}")


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


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    """Entry point of the console script."""
    typer.run(serve)
