"""Starts the steps of `first.sh` or `second.sh` in an environment of their own.

    python -m bench.gpu.start first [CARRY] [--tiny] ...

Standard library only: it runs before anything has been unpacked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from bench.gpu.environment import HERE, Missing, make, pinned


def main(arguments: list[str]) -> int:
    """Make the environment, run the steps, remove it; returns their exit status."""
    name, *rest = arguments
    carry = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    if carry and not carry.is_dir():
        print(f"{carry} is no folder; bench/gpu/pack.sh makes it", file=sys.stderr)
        return 2
    deadline = time.monotonic() + import_module(f"bench.gpu.{name}").SECONDS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tessera-gpu-") as folder:
        try:
            python = make(Path(folder), pinned(HERE / f"{name}-wheels.txt"), carry)
        except Missing as error:
            print(f"bench/gpu/{name}.sh: {error}", file=sys.stderr)
            return 2
        line = [str(python), "-m", f"bench.gpu.{name}", f"--deadline={deadline}", *rest]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with subprocess.Popen(line, env={**variables, "PYTHONUNBUFFERED": "1"}) as steps:
            try:
                return steps.wait()
            finally:
                steps.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
