"""The options of `tessera-build`, as typer shows them. Imports no heavy library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera import contract

_CHECKPOINT = "Checkpoint"
_ADDONS = "ControlNets and LoRAs"
_DEFAULTS = "Defaults of requests"
_LIMITS = "Limits"


class Precision(StrEnum):
    """In which weights are stored, and in which TensorRT runs what it compiles."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class Prediction(StrEnum):
    """What a network predicts."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


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
    typer.Option(help="Folder with the configs of a single file, and with parts that it lacks."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a checkpoint on a hub.")
]
Files = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="Weights to read where a folder has several, such as fp16 for *.fp16.safetensors.",
    ),
]
Vae = Annotated[
    Path | None, typer.Option(help="Folder of a VAE that takes the place of the checkpoint's.")
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="Checkpoint of which all but the UNet is taken, for a file with a UNet alone.",
    ),
]

StoredPrecision = Annotated[
    Precision | None,
    typer.Option("--precision", help="Number format of the stored weights."),
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
        help="Where a network runs unless the server says otherwise: unet, vae, text_encoders or a "
        "ControlNet, on cpu, gpu:0, gpu:1 ... or auto; unet=gpu:0,gpu:1 for two (repeatable).",
    ),
]
Loras = Annotated[
    list[Path] | None,
    _option(_ADDONS, "--lora", help="Copy in a LoRA, a .safetensors file (repeatable)."),
]

PredictionType = Annotated[
    Prediction | None,
    _option(
        _CHECKPOINT,
        metavar="TYPE",
        help="What the network predicts, if its scheduler config does not say it: "
        f"{', '.join(Prediction)}.",
    ),
]
ZeroSnr = Annotated[
    bool | None,
    _option(
        _CHECKPOINT,
        "--zero-snr/--no-zero-snr",
        help="Whether the network was trained with zero terminal SNR.",
    ),
]

Steps = Annotated[int | None, _option(_DEFAULTS, min=1, help="Default of STEPS.")]
Guidance = Annotated[float | None, _option(_DEFAULTS, min=0, help="Default of GUIDANCE.")]
Scheduler = Annotated[
    contract.Scheduler | None,
    _option(
        _DEFAULTS,
        metavar="NAME",
        help=f"Default of SCHEDULER: {contract.scheduler_list(contract.SCHEDULERS)}.",
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
