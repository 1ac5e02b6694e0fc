"""Builds the bundles that tests need, a process for each core: `python -m tests.samples.ready`.

A build is one thread's work for most of its time. A bundle that is current stays as it is.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from typer.testing import CliRunner

from bench.server import DEMO_BUNDLE
from tessera_build.cli import _quiet, app
from tests.samples.bundles import IN_HALF, INPAINTING, make_small
from tests.samples.forms import make_form

SMALL = ("sdxl", "sd15", "sd21", INPAINTING, *IN_HALF)
"""The longest first. Those in half precision are of graphs that `sd15` has captured."""
FORMS = ("playground", "lcm", "small-sd")


def demo() -> None:
    """Have the demo bundle."""
    built = CliRunner().invoke(app, ["demo", "--out", str(DEMO_BUNDLE)], catch_exceptions=False)
    assert built.exit_code == 0, built.output


def ready(name: str) -> str:
    """Have a bundle, in this process; what it was and how long it took."""
    began = time.monotonic()
    _quiet()
    torch.set_num_threads(1)
    if name == "demo":
        demo()
    elif name in FORMS:
        make_form(name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_small(name, Path(folder))
    return f"{name}: {time.monotonic() - began:.0f} s"


def main() -> None:
    """Have all of them."""
    names = (*SMALL[:2], *FORMS[:1], "demo", *SMALL[2:4], *FORMS[1:], *SMALL[4:])
    tell = partial(print, file=sys.stderr, flush=True)
    with ProcessPoolExecutor(
        min(4, os.cpu_count() or 1), multiprocessing.get_context("spawn")
    ) as pool:
        for line in pool.map(ready, names):
            tell(line)


if __name__ == "__main__":
    main()
