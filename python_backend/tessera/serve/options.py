"""The options of `tessera-serve`, as typer shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")]
HttpPort = Annotated[int, typer.Option(help="HTTP endpoint.")]
GrpcPort = Annotated[int, typer.Option(help="gRPC endpoint.")]
MetricsPort = Annotated[int, typer.Option(help="Prometheus endpoint.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads per engine call; 0 is one per core.")]
Engine = Annotated[str, typer.Option(help="auto, onnxruntime, tensorrt or torch.")]
Adapters = Annotated[
    list[Path] | None,
    typer.Option(help="A folder of LoRAs beside the bundle's own; may be given several times."),
]
AdapterMemory = Annotated[
    float,
    typer.Option(min=0, help="GB of LoRAs in memory, and again of weights merged with them."),
]
LoraPath = Annotated[
    str,
    typer.Option(
        help="How LoRAs get into the UNet: refit (sets take turns), side (in one batch, where the "
        "low-rank side path takes them), auto (what costs less)."
    ),
]
Place = Annotated[
    list[str] | None,
    typer.Option(
        help="Where a ControlNet runs, instead of where the bundle says: NAME=cpu or NAME=gpu:1."
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(help="A ControlNet that is loaded at once and stays; may be given again."),
]
ControlMemory = Annotated[float, typer.Option(min=0, help="GB of loaded ControlNets.")]
WriteModelsTo = Annotated[
    Path | None,
    typer.Option(
        "--write-models",
        help="Write the ControlNets' models there and end: for a plain tritonserver.",
    ),
]
Templates = Annotated[
    Path | None, typer.Option(help="Folder of templates; by default in the user's cache.")
]
TemplateDisk = Annotated[float, typer.Option(min=0, help="GB of all recorded templates.")]
TemplateMemory = Annotated[float, typer.Option(min=0, help="GB of recorded steps held in memory.")]
TemplateSize = Annotated[float, typer.Option(min=0, help="GB of one recorded template.")]
TemplateDevice = Annotated[
    float, typer.Option(min=0, help="GB of recorded steps held on a GPU, where there is one.")
]
StartTimeout = Annotated[float, typer.Option(help="Seconds to wait for readiness.")]
TraceTo = Annotated[
    Path | None,
    typer.Option("--trace", help="Write where the time goes to this file, for Perfetto."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tritonserver's own log.")]
TritonArgs = Annotated[
    list[str] | None, typer.Argument(help="After --: further tritonserver flags.")
]
