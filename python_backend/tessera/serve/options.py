"""The options of `tessera-serve`, as typer shows them.

Their defaults are those of `ServerSettings`, in gigabytes where that has bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.contract import EditQuality as EditQualities
from tessera.contract.limits import CPU_SLOTS, MAX_SLOTS
from tessera.shared.request_log import LogFormat
from tessera.shared.settings import EngineKind
from tessera.shared.settings import LoraPath as LoraPaths


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


def _gigabytes(panel: str, what: str) -> Any:
    return _option(panel, min=0, metavar="GB", help=what)


def _seconds(what: str, least: float = 0) -> Any:
    details = {"metavar": "SECONDS", "callback": _finite, "help": what}
    return _option(_RUN, min=least, **details)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"it is {seconds}; accepted: finite numbers of seconds")
    return seconds


_LISTEN = "Addresses"
_ENGINES = "Engines"
_REQUESTS = "Requests"
_LORAS = "LoRAs"
_CONTROLS = "ControlNets"
_TEMPLATES = "Templates of edits"
_RUN = "Start and log"

Bundle = Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")]
TritonArgs = Annotated[
    list[str] | None, typer.Argument(help="Further tritonserver flags, after --.")
]

Host = Annotated[str, _option(_LISTEN, help="Address to listen on.")]
HttpPort = Annotated[int, _option(_LISTEN, help="Port for HTTP.")]
GrpcPort = Annotated[int, _option(_LISTEN, help="Port for gRPC.")]
MetricsPort = Annotated[int, _option(_LISTEN, help="Port for Prometheus metrics.")]

Gateway = Annotated[
    bool,
    _option(_LISTEN, "--gateway", help="Start the gateway, too: image APIs for everybody."),
]
GatewayHost = Annotated[str, _option(_LISTEN, help="Address that the gateway listens on.")]
GatewayPort = Annotated[int, _option(_LISTEN, help="Port of the gateway.")]

Engine = Annotated[
    EngineKind,
    _option(
        _ENGINES,
        metavar="KIND",
        help="What runs the graphs: onnxruntime, tensorrt, torch, or auto for what this machine "
        "has.",
    ),
]
Threads = Annotated[
    int, _option(_ENGINES, min=0, help="Threads of one engine call; 0 is one per core.")
]
TorchCompile = Annotated[
    bool,
    _option(
        _ENGINES,
        "--torch-compile",
        envvar="TESSERA_TORCH_COMPILE",
        help="Compile the UNet of torch engines; minutes for each new set of shapes.",
    ),
]

Slots = Annotated[
    int,
    _option(
        _REQUESTS,
        min=0,
        max=MAX_SLOTS,
        envvar="TESSERA_SLOTS",
        help=f"Requests that take part in a step; 0 is {MAX_SLOTS} with the UNet on a GPU, "
        f"{CPU_SLOTS} on the CPU.",
    ),
]
MaxSteps = Annotated[
    int,
    _option(_REQUESTS, min=0, help="Most steps of a request; 0 is as many as its sampler takes."),
]
MaxQueue = Annotated[
    int, _option(_REQUESTS, min=0, help="Requests that may wait; others are refused at once.")
]

EditQuality = Annotated[
    EditQualities,
    _option(
        _TEMPLATES,
        metavar="QUALITY",
        help="Of edits that name none: fast, balanced or best.",
    ),
]

Adapters = Annotated[
    list[Path] | None,
    _option(_LORAS, help="Folder of LoRAs beside the bundle's own (repeatable)."),
]
AdapterMemory = Annotated[
    float, _gigabytes(_LORAS, "Memory for LoRAs, and again for weights merged with them.")
]
LoraPath = Annotated[
    LoraPaths,
    _option(
        _LORAS,
        metavar="PATH",
        help="How requests with different LoRAs share the UNet: in turns (refit), in one batch "
        "where that can be (side), or as costs less (auto).",
    ),
]

Place = Annotated[
    list[str] | None,
    _option(
        _ENGINES,
        metavar="NAME=PLACE",
        help="Where a network runs: unet, vae, text_encoders or a ControlNet, on cpu, gpu:0, "
        "gpu:1 ... or auto. unet=gpu:0,gpu:1 shares its work between two (repeatable).",
    ),
]
Pin = Annotated[
    list[str] | None,
    _option(
        _CONTROLS,
        metavar="NAME",
        help="Load a ControlNet at startup and never unload it (repeatable).",
    ),
]
ControlMemory = Annotated[float, _gigabytes(_CONTROLS, "Memory for loaded ControlNets.")]
WriteModelsTo = Annotated[
    Path | None,
    _option(
        _CONTROLS,
        "--write-models",
        help="Write the ControlNets' Triton models to a folder and exit, for a plain tritonserver.",
    ),
]

Templates = Annotated[
    Path | None, _option(_TEMPLATES, help="Folder of templates; the user's cache if left out.")
]
TemplateDisk = Annotated[float, _gigabytes(_TEMPLATES, "Disk for all recordings.")]
TemplateMemory = Annotated[
    float | None,
    _gigabytes(_TEMPLATES, "Host memory for recorded steps; a quarter of it if left out."),
]
TemplateSize = Annotated[
    float | None,
    _gigabytes(_TEMPLATES, "Largest recording; what memory holds, up to 10, if left out."),
]
TemplateDevice = Annotated[
    float | None,
    _gigabytes(_TEMPLATES, "GPU memory for recorded steps; a quarter of it if left out."),
]

StartTimeout = Annotated[float, _seconds("Longest wait until the server is ready.")]
DrainSeconds = Annotated[
    float,
    _seconds(
        "How long requests may go on after a signal has asked for the end; those that take longer "
        "are cancelled."
    ),
]
StallSeconds = Annotated[
    float,
    _seconds(
        "How long a model's process may do nothing at all while it starts or has work, or be "
        "stopped; then it is ended. So is a tritonserver that does not answer either.",
        1,
    ),
]
TraceTo = Annotated[
    Path | None,
    _option(
        _RUN,
        "--trace",
        envvar="TESSERA_TRACE",
        help="Write where the time goes to a file that Perfetto opens.",
    ),
]
LogAs = Annotated[
    LogFormat,
    _option(
        _RUN,
        "--log-format",
        help="json writes a line about each request to standard error, text none.",
    ),
]
LogPrompts = Annotated[
    bool,
    _option(
        _RUN,
        "--log-prompts",
        help="Have these lines tell prompts and sentences of errors, too.",
    ),
]
Verbose = Annotated[bool, _option(_RUN, "--verbose", "-v", help="Show tritonserver's own log.")]
