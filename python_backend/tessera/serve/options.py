"""The options of `tessera-serve`, as typer shows them.

Their defaults are those of `ServerSettings`, in gigabytes where that has bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.shared.settings import EngineKind
from tessera.shared.settings import LoraPath as LoraPaths


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


def _gigabytes(panel: str, what: str) -> Any:
    return _option(panel, min=0, metavar="GB", help=what)


_LISTEN = "Addresses"
_ENGINES = "Engines"
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
        _CONTROLS,
        metavar="NAME=PLACE",
        help="Run a ControlNet elsewhere than the bundle says: cpu, gpu:0, gpu:1 ... (repeatable).",
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
TemplateMemory = Annotated[float, _gigabytes(_TEMPLATES, "Host memory for recorded steps.")]
TemplateSize = Annotated[float, _gigabytes(_TEMPLATES, "Largest recording.")]
TemplateDevice = Annotated[float, _gigabytes(_TEMPLATES, "GPU memory for recorded steps.")]

StartTimeout = Annotated[
    float, _option(_RUN, metavar="SECONDS", help="Longest wait until the server is ready.")
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
Verbose = Annotated[bool, _option(_RUN, "--verbose", "-v", help="Show tritonserver's own log.")]
