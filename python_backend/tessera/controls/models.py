"""Writes a bundle's ControlNets as Triton models: one folder each, with a configuration and a
`model.py` that imports the class.

Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import TesseraError, brief, listing
from tessera.manifest import CONTROLNET

_CONFIG = """\
# Written by tessera-serve. One ControlNet: denoise calls it in the steps in which it applies.
name: "{name}"
backend: "python"
max_batch_size: 1

input [
  {{ name: "KEYS", data_type: TYPE_INT64, dims: [ -1 ] }},
  {{ name: "IMAGE", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ], optional: true }},
  {{ name: "TEXT", data_type: TYPE_FP32, dims: [ -1, -1, -1 ], optional: true }},
  {{ name: "POOLED", data_type: TYPE_FP32, dims: [ -1, -1 ], optional: true }},
  {{ name: "SIZES", data_type: TYPE_FP32, dims: [ -1, 6 ], optional: true }},
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
_PLACE = re.compile(r"cpu|gpu:\d+")


@dataclass(frozen=True)
class Placement:
    """Where a ControlNet runs.

    It always has exactly one process, since the process remembers the requests that use it.

    Attributes:
        text: `auto` (like the other models), `cpu`, or a GPU such as `gpu:1`.
    """

    text: str = "auto"

    @property
    def instance(self) -> str:
        """The entry of Triton's `instance_group`."""
        if not self.text.startswith("gpu:"):
            return "{ count: 1, kind: KIND_CPU }"
        return f"{{ count: 1, kind: KIND_GPU, gpus: [ {self.text.removeprefix('gpu:')} ] }}"


def engine_is_half(engine: str) -> bool:
    """Whether an engine setting means half precision: true for GPU engines if torch finds a GPU.

    A separate process asks torch, since importing it takes seconds and much memory.
    """
    if engine == "onnxruntime" or not Path("/dev/nvidiactl").exists():
        return False
    question = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], check=False).returncode == 0


def read_placements(pairs: Iterable[str], controlnets: Iterable[str]) -> dict[str, Placement]:
    """Parse `NAME=PLACE` arguments of the command line.

    Raises:
        TesseraError: an argument has another form, or the bundle has no such ControlNet.
    """
    known, placements = set(controlnets), dict[str, Placement]()
    for pair in pairs:
        name, equals, place = pair.partition("=")
        if not equals or not _PLACE.fullmatch(place):
            raise TesseraError(
                f"--place is {brief(pair)}; accepted: NAME=cpu or NAME=gpu:N, N from 0"
            )
        if name not in known:
            raise TesseraError(
                f"--place names the ControlNet {brief(name)}; accepted: {listing(known)}"
            )
        placements[name] = Placement(place)
    return placements


def write_models(
    folder: Path,
    controlnets: Iterable[str],
    placements: Mapping[str, Placement],
    *,
    half: bool = False,
) -> None:
    """Write a model repository of ControlNets.

    Args:
        folder: the repository, created if it is missing.
        controlnets: names of the ControlNets.
        placements: where they run, by name; `auto` for the others.
        half: whether ControlNets that are not placed on a CPU send residuals in half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for controlnet in controlnets:
        name = f"{CONTROLNET}{controlnet}"
        place = placements.get(controlnet, Placement())
        code = folder / name / "1" / "model.py"
        code.parent.mkdir(parents=True, exist_ok=True)
        code.write_text(_CODE)
        config = _CONFIG.format(
            name=name,
            residuals="TYPE_FP16" if half and place.text != "cpu" else "TYPE_FP32",
            instance=place.instance,
            placement=place.text,
        )
        (folder / name / "config.pbtxt").write_text(config)
