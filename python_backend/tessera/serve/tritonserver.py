"""Where tritonserver is and how it is called.

Standard library only. Either an installed server (NVIDIA's container, or any `tritonserver` on
PATH) or the one inside the nvidia-pytriton wheel, which runs without a GPU and without a container.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import TesseraError

CONTROL_HEADER = "tessera-control"
"""Header of requests that load and unload models; its value is the secret of `restricted`."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks the server, which is on this machine, without any proxy."""
_CONTAINER = Path("/opt/tritonserver/bin/tritonserver")


class NoServer(TesseraError):
    """No tritonserver is to be found, or its files are not as expected."""


@dataclass(frozen=True)
class TritonServer:
    """A server's executable, the folder of its backends if it is not the default, and what it needs
    in the environment.
    """

    executable: Path
    backends: Path | None
    environment: dict[str, str]


@dataclass(frozen=True)
class Ports:
    """TCP ports of the three endpoints."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def find_server(run_folder: Path) -> TritonServer:
    """An installed tritonserver, else the wheel's; `run_folder` gets the wheel's backend put
    together.

    Raises:
        NoServer: there is neither.
    """
    installed = shutil.which("tritonserver") or (str(_CONTAINER) if _CONTAINER.exists() else None)
    if installed:
        return TritonServer(Path(installed), None, {})
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise NoServer(
            "no tritonserver was found: run inside NVIDIA's Triton container, put tritonserver on "
            "PATH, or `pip install nvidia-pytriton==0.7.0` for a local one"
        )
    return _from_wheel(Path(spec.origin).parent, run_folder / "backends")


def command(
    server: TritonServer,
    repositories: Sequence[Path],
    ports: Ports,
    *,
    load: Sequence[str],
    host: str = "0.0.0.0",
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line: explicit model control, so that a model can be reloaded when its process
    has died, and ControlNets when they are needed; readiness without regard to these, or a load
    balancer would take the server away for as long as one is being loaded. `load` names the models
    to begin with.
    """
    line = [
        str(server.executable),
        *(f"--model-repository={path}" for path in repositories),
        "--model-control-mode=explicit",
        "--strict-readiness=false",
        *(f"--load-model={name}" for name in load),
        "--disable-auto-complete-config",
        f"--http-address={host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
    ]
    if server.backends:
        line.append(f"--backend-directory={server.backends}")
    return [*line, *extra]


def restricted(secret: str) -> list[str]:
    """Flags by which some of Triton's protocols are only for who knows the secret. A model may be
    any code; regions of shared memory may be the server's own; settings of logs and traces name
    files that are written.
    """
    closed = "model-repository,shared-memory,trace,logging"
    return [
        f"--http-restricted-api={closed}:{CONTROL_HEADER}={secret}",
        f"--grpc-restricted-protocol={closed}:{CONTROL_HEADER}={secret}",
    ]


def url_of(host: str, port: int) -> str:
    """How a server that listens on an address is reached from its own machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def environment(server: TritonServer, **variables: str) -> dict[str, str]:
    """The environment for the server: this Python first on PATH, so that model processes use its
    packages.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, **server.environment, **variables}


def model_repository() -> Path:
    """The folder of Tessera's models: in a checkout beside the sources, in an installation inside
    the package.

    Raises:
        NoServer: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parents[1] / "model_repository", package / "model_repository"):
        if (folder / "generate" / "config.pbtxt").exists():
            return folder
    raise NoServer(f"the model repository is not beside {package}; install tessera again")


def models_of(repository: Path) -> list[str]:
    """Names of the models in a repository."""
    return sorted(config.parent.name for config in repository.glob("*/config.pbtxt"))


def _from_wheel(package: Path, backends: Path) -> TritonServer:
    """The wheel's server; its Python backend needs the stub of this Python version beside it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    executable = root / "bin" / "tritonserver"
    if not stub.exists() or not executable.exists():
        raise NoServer(
            f"nvidia-pytriton has no Triton stub for Python {version}; accepted: 3.11, 3.12"
        )
    folder = backends / "python"
    folder.mkdir(parents=True)
    for file in [*(root / "backends" / "python").iterdir(), stub]:
        (folder / file.name).symlink_to(file)
    libraries = [package.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    search = os.pathsep.join([*(str(p) for p in libraries), os.environ.get("LD_LIBRARY_PATH", "")])
    return TritonServer(executable, backends, {"LD_LIBRARY_PATH": search.rstrip(os.pathsep)})
