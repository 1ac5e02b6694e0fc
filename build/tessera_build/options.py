"""The options of `tessera-build`, as typer shows them. Imports no heavy library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera import contract

_ADDONS = "ControlNets and LoRAs"
_DEFAULTS = "Defaults of requests"
_LIMITS = "Limits"


class Precision(StrEnum):
    """In which TensorRT runs what it compiles."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


Folder = Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the bundle to.")]
Force = Annotated[bool, typer.Option("--force", help="Build even if the bundle is up to date.")]
Checkpoint = Annotated[
    str,
    typer.Argument(help='A diffusers folder, a .safetensors file, or a hub\'s "owner/name".'),
]
Config = Annotated[
    Path | None,
    typer.Option(help="Folder with the configs of a single file, where no hub can be reached."),
]

ControlNets = Annotated[
    list[str] | None,
    _option(
        _ADDONS, "--controlnet", metavar="NAME=PATH", help="Build in a ControlNet (repeatable)."
    ),
]
Places = Annotated[
    list[str] | None,
    _option(
        _ADDONS,
        "--place",
        metavar="NAME=PLACE",
        help="Run a ControlNet on the CPU (cpu) or one GPU (gpu:0, gpu:1 ...) (repeatable).",
    ),
]
Loras = Annotated[
    list[Path] | None,
    _option(_ADDONS, "--lora", help="Copy in a LoRA, a .safetensors file (repeatable)."),
]

Steps = Annotated[int | None, _option(_DEFAULTS, min=1, help="Default of STEPS.")]
Guidance = Annotated[float | None, _option(_DEFAULTS, min=0, help="Default of GUIDANCE.")]
Scheduler = Annotated[
    contract.Scheduler | None,
    _option(
        _DEFAULTS,
        metavar="NAME",
        help=f"Default of SCHEDULER: {', '.join(contract.SCHEDULERS)}.",
    ),
]
Size = Annotated[
    int | None, _option(_DEFAULTS, metavar="PIXELS", help="Default of WIDTH and HEIGHT.")
]
LoraBound = Annotated[
    float,
    _option(
        _DEFAULTS,
        min=0,
        max=1,
        help="Share of the steps that lora_policy bounded may do without LoRAs.",
    ),
]

MinSize = Annotated[
    int | None, _option(_LIMITS, metavar="PIXELS", help="Smallest width and height.")
]
MaxSize = Annotated[
    int | None, _option(_LIMITS, metavar="PIXELS", help="Largest width and height.")
]
MaxRows = Annotated[
    int,
    _option(_LIMITS, min=1, help="Largest batch of one UNet call; a guided request has 2 rows."),
]
LoraRank = Annotated[
    int,
    _option(
        _LIMITS,
        min=0,
        help="Largest rank of a request's LoRAs together for the side path; 0 builds no graphs "
        "for it.",
    ),
]
