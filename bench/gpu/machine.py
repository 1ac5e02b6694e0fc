"""What the figures depend on: GPU, driver, versions; what the GPU can do at most; and whether
Triton's Python stub finds its library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.gpu.timing import Effort, Place, device_name, medians, options, place

PACKAGES = ("torch", "triton", "diffusers", "transformers", "numpy", "onnx", "nvidia-pytriton")


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each fact."""
    chosen = options(arguments)
    facts = {
        "GPU": device_name(),
        "driver": driver(),
        "CUDA of torch": str(torch.version.cuda),
        "CPU cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "libpython": libpython(),
        **{name: _version(name) for name in PACKAGES},
        **ceilings(place(), 256 if chosen.tiny else 8192, chosen.effort(10, 2.0)),
    }
    for name, value in facts.items():
        chosen.report.add(what=name, value=value)


def driver() -> str:
    """Version of NVIDIA's driver."""
    line = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def libpython() -> str:
    """Where the library is that Triton's Python stub links, or that it is missing."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    spec = find_spec("pytriton")
    carried = (
        [Path(spec.origin).parents[1] / "nvidia_pytriton.libs"] if spec and spec.origin else []
    )
    for folder in [*carried, Path(sysconfig.get_config_var("LIBDIR") or "/")]:
        if (folder / name).exists():
            return f"{name} in {'the carry' if folder in carried else 'LIBDIR'}"
    try:
        ctypes.CDLL(name)
    except OSError:
        return f"{name} is missing: carry it with pack.sh --libpython"
    return f"{name} in the loader's path"


def ceilings(where: Place, side: int, effort: Effort) -> dict[str, str]:
    """Measured: bytes per second of a large copy, operations per second of a large product."""
    a, b = (torch.randn(side, side, device=where.device, dtype=where.dtype) for _ in range(2))
    source = torch.randn(side, 16 * side, device=where.device, dtype=where.dtype)
    target = torch.empty_like(source)
    found = medians({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, effort)
    copied = 2 * source.nbytes / found["copy"] / 1e9
    return {
        "copy": f"{copied:.2f} TB/s, read and written",
        "product": f"{2 * side**3 / found['product'] / 1e9:.1f} TFLOP/s, {where.dtype}",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    main()
