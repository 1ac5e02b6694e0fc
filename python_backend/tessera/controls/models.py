"""Writes a bundle's ControlNets as Triton models: one folder each, with a configuration and a
`model.py` that imports the class.

Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tessera.manifest import CONTROLNET
from tessera.shared.settings import AUTO, CPU, GPU

_CONFIG = """\
# Written by tessera-serve. One ControlNet: denoise calls it in the steps in which it applies.
name: "{name}"
backend: "python"
max_batch_size: 1

input [
  {{ name: "KEYS", data_type: TYPE_INT64, dims: [ -1 ] }},
  {{ name: "IMAGE", data_type: TYPE_UINT8, dims: [ -1, -1, -1 ], optional: true }},
  {{ name: "TEXT", data_type: TYPE_FP32, dims: [ -1, -1, -1 ], optional: true }},
  {{ name: "POOLED", data_type: TYPE_FP32, dims: [ -1, -1 ], optional: true }},
  {{ name: "SIZES", data_type: TYPE_FP32, dims: [ -1, 6 ], optional: true }},
  {{ name: "MODE", data_type: TYPE_INT64, dims: [ 1 ], optional: true }},
  {{ name: "SAMPLE", data_type: TYPE_FP32, dims: [ -1, -1, -1, -1 ], optional: true }},
  {{ name: "TIMESTEP", data_type: TYPE_FP32, dims: [ -1 ], optional: true }}
]
output [
  {{ name: "RESIDUALS", data_type: {residuals}, dims: [ -1 ] }}
]

instance_group [ {instance} ]
parameters {{ key: "placement" value {{ string_value: "{placement}" }} }}
"""
_CODE = """\
from tessera.triton.controlnet import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


def _instance(place: str) -> str:
    """The entry of Triton's `instance_group` for a place.

    A ControlNet always has exactly one process, since the process remembers the requests that use
    it.
    """
    if not place.startswith(GPU):
        return "{ count: 1, kind: KIND_CPU }"
    return f"{{ count: 1, kind: KIND_GPU, gpus: [ {place.removeprefix(GPU)} ] }}"


def engine_is_half(engine: str) -> bool:
    """Whether an engine setting means half precision: true for GPU engines if torch finds a GPU.

    A separate process asks torch, since importing it takes seconds and much memory.
    """
    if engine == "onnxruntime" or not Path("/dev/nvidiactl").exists():
        return False
    question = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], check=False).returncode == 0


def write_models(
    folder: Path,
    controlnets: Iterable[str],
    places: Mapping[str, str],
    *,
    half: bool = False,
) -> None:
    """Write a model repository of ControlNets.

    Args:
        folder: the repository, created if it is missing.
        controlnets: names of the ControlNets.
        places: where they run, by name; `auto` for the others.
        half: whether ControlNets that are not placed on a CPU send residuals in half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for controlnet in controlnets:
        name = f"{CONTROLNET}{controlnet}"
        place = places.get(controlnet, AUTO)
        code = folder / name / "1" / "model.py"
        code.parent.mkdir(parents=True, exist_ok=True)
        code.write_text(_CODE)
        config = _CONFIG.format(
            name=name,
            residuals="TYPE_FP16" if half and place != CPU else "TYPE_FP32",
            instance=_instance(place),
            placement=place,
        )
        (folder / name / "config.pbtxt").write_text(config)
