"""The image's entry point in an environment that has what the image installs and nothing else.

Installed packages are linked, with the extras that the Dockerfile names, into a fresh environment;
nvidia-pytriton stands in for the container's tritonserver, and no TensorRT is there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import venv
from pathlib import Path

from bench.gpu.environment import ROOT, link
from bench.server import free_ports
from tests.samples.installed import needed

SOURCES = ("python_backend", "build", "client")
SERVE = "from tessera.serve.cli import main; main()"


def test_the_entry_point_serves_with_what_the_image_installs(bundle: Path, tmp_path: Path) -> None:
    extras, _ = re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text())
    packages = needed(f"tessera[{extras}]", "nvidia-pytriton")
    assert "tritonclient" in packages
    assert not {"pytest", "tensorrt-cu13", "ruff"} & packages.keys()
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for name, package in packages.items():
        if name != "tessera":
            link(package, site)
    (site / "tessera.pth").write_text("".join(f"{ROOT / s}\n" for s in SOURCES))
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    line = [str(tmp_path / "env" / "bin" / "python"), "-c", SERVE, str(bundle), *ports]
    variables = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            line, env=os.environ | variables, cwd=tmp_path, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(150)
    assert code == 0, log.read_text()
    assert "was not tested" not in log.read_text(), "of the tested version nothing is said"


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it has made its first pictures."""
    end = time.monotonic() + 300
    while "is ready after" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
