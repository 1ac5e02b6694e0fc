"""The steps of the TensorRT check, and its report: one file to send back.

    python -m bench.tensorrt.run [--only STEP,...] [--seconds S] [--tiny]

`deploy/verify-tensorrt.sh` runs it inside the image. A step that fails or hangs does not stop the
next one. `OUT` names the folder of the results, `VERIFY_WORK` that of the bundles.
"""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

from bench.gpu.runner import Step, main, module_step

NAME = "verify"
REPORT = "tessera-tensorrt-report.tar.gz"
SECONDS = 4 * 3600.0
MINUTE = 60.0
LIMITS = {
    "demo": (10, 15, 5, 10, 15),
    "sd15": (20, 60, 10, 30, 30),
    "sdxl": (40, 120, 20, 60, 60),
}
"""By bundle, minutes for making it, compiling it, refits, parity, and serving it."""


def steps() -> list[Step]:
    """All of them, in their order: the demo's first, since they show most in the least time."""
    found = [_step("versions", 2, "versions", title="Machine and versions")]
    for bundle, (made, compiled, refits, parity, served) in LIMITS.items():
        option = f"--bundle={bundle}"
        found += [
            _step(f"bundle-{bundle}", made, "bundles", option, title=f"{bundle}: the bundle"),
            _step(
                f"compile-{bundle}",
                compiled,
                "compiled",
                option,
                title=f"{bundle}: compiled engines and their canaries",
            ),
            _step(f"refit-{bundle}", refits, "refits", option, title=f"{bundle}: refits"),
            _step(f"parity-{bundle}", parity, "parity", option, title=f"{bundle}: against torch"),
            _step(f"serve-{bundle}", served, "served", option, title=f"{bundle}: the server"),
        ]
    return found


def pack(out: Path, work: Path) -> Path:
    """Put report, details, log and pictures into one file; returns its path."""
    path = out / REPORT
    with tarfile.open(path, "w:gz") as tar:
        for ending in ("txt", "json", "log"):
            tar.add(out / f"{NAME}.{ending}", f"{NAME}.{ending}")
        for picture in sorted((work / "pictures").glob("*.png")):
            tar.add(picture, f"pictures/{picture.name}")
    return path


def _step(name: str, minutes: float, module: str, *arguments: str, title: str) -> Step:
    package = "bench.tensorrt"
    return module_step(name, minutes * MINUTE, module, *arguments, title=title, package=package)


if __name__ == "__main__":
    out = Path(os.environ.setdefault("OUT", "out/verify"))
    work = Path(os.environ.setdefault("VERIFY_WORK", "out/verify"))
    code = main(NAME, steps(), SECONDS, sys.argv[1:], program="deploy/verify-tensorrt.sh")
    print(f"\nthe report to send back: {pack(out, work)}")
    sys.exit(code)
