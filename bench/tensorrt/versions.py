"""What the results depend on: machine, driver, versions, and under which rights the check runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.gpu.machine import driver
from bench.gpu.timing import device_name
from bench.tensorrt.options import Options, options
from tessera.serve.tritonserver import find_server
from tessera.serve.versions import check_version, known_flags, stated_version
from tessera_build.compile import Compiler

PACKAGES = (
    "tessera",
    "torch",
    "tensorrt-cu13",
    "polygraphy",
    "onnx",
    "onnxruntime",
    "diffusers",
    "numpy",
    "nvidia-pytriton",
)
HOST = "host.txt"
"""What the host says of itself, beside the bundles: lines of `name: value`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each fact; 1 if one that is needed is missing."""
    chosen = options(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    host = chosen.work / HOST
    for line in host.read_text().splitlines() if host.exists() else ():
        name, _, value = line.partition(": ")
        chosen.report.add(what=f"host: {name}", value=value)
    facts: dict[str, Callable[[], str]] = {
        "GPU": device_name,
        "driver": driver,
        "CUDA of torch": lambda: str(torch.version.cuda),
        "Python": lambda: sys.version.split()[0],
        "user": lambda: f"{os.getuid()}:{os.getgid()}",
        "root folder": lambda: "writable" if os.access("/", os.W_OK) else "read-only",
        "free for bundles": lambda: f"{shutil.disk_usage(chosen.work).free / 1e9:.0f} GB",
        "free in /dev/shm": lambda: f"{shutil.disk_usage('/dev/shm').free / 1e9:.1f} GB",
        **{name: partial(_installed, name) for name in PACKAGES},
        "tritonserver": triton,
        "compiler": lambda: _compiler(chosen.new_compiler()),
    }
    for name, fact in facts.items():
        chosen.attempt(name, partial(_add, chosen, name, fact))
    return chosen.status()


def _add(chosen: Options, name: str, fact: Callable[[], str]) -> None:
    chosen.report.add(what=name, value=fact())


def triton() -> str:
    """Version of tritonserver, whether it was tested, and how many flags it has."""
    with tempfile.TemporaryDirectory() as folder:
        server = find_server(Path(folder))
        stated = stated_version(server)
        flags = f"{len(known_flags(server))} flags"
    if stated is None:
        return f"states no version, {flags}"
    return f"{stated}, {check_version(stated) or 'tested'}, {flags}"


def _compiler(compiler: Compiler) -> str:
    return f"{compiler.architecture}, TensorRT {compiler.version}"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
