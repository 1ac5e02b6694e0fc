"""What an operator chooses for a fleet: the file `fleet.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tessera_gateway.fleet.scaling import Autoscaling
from tessera_gateway.fleet.score import Weights


class FleetError(Exception):
    """The fleet cannot be started; `str(error)` is one sentence."""


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `tessera-serve` that runs already.

    Attributes:
        grpc, http: `host:port` of each protocol.
    """

    grpc: str
    http: str


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet. It has a bundle, whose workers Ray Serve starts, or servers that run already.

    Attributes:
        bundle: folder of the bundle.
        ray: address of a Ray that runs already, on one machine or several; without it, the fleet
            starts one on this machine.
        replicas: how many workers are started; with `autoscaling`, at first.
        autoscaling: bounds and pace of a number of workers that follows the work.
        servers: servers that run already.
        host: where the fleet listens.
        http_port: of every HTTP API.
        grpc_port: of KServe over gRPC.
        templates: folder for templates, in which every worker has one of its own.
        shared_templates: whether all workers use the same folder.
        keys: file of keys; without one, everybody may use every API.
        serve: further options of each `tessera-serve`.
        cpus, gpus: what Ray reserves for a worker.
        weights: of the score.
    """

    bundle: str = ""
    ray: str = ""
    replicas: int = 1
    autoscaling: Autoscaling | None = None
    servers: tuple[Server, ...] = ()
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    templates: str = "out/fleet/templates"
    shared_templates: bool = False
    keys: str = ""
    serve: tuple[str, ...] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    weights: Weights = Weights()

    @property
    def scaling(self) -> Autoscaling:
        """`autoscaling`, or the bounds of a fixed number of workers."""
        return self.autoscaling or Autoscaling(min=self.replicas, max=self.replicas)


def read_settings(path: Path) -> FleetSettings:
    """The settings in a file. Relative paths in it are relative to its folder.

    Raises:
        FleetError: the file cannot be used.
    """
    try:
        content = msgspec.yaml.decode(path.read_bytes()) or {}
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise FleetError(f"{path} is not accepted: {error}") from None
    return settings_of(content, str(path), path.resolve().parent)


def settings_of(content: object, name: str, folder: Path) -> FleetSettings:
    """The settings that some content holds.

    Args:
        content: as read from YAML or JSON.
        name: what errors call it.
        folder: what relative paths in it are relative to.

    Raises:
        FleetError: the content cannot be used.
    """
    try:
        read = msgspec.convert(content, FleetSettings)
    except msgspec.MsgspecError as error:
        raise FleetError(f"{name} is not accepted: {error}") from None
    if bool(read.bundle) == bool(read.servers):
        raise FleetError(f"{name} has to name either a bundle or servers")
    if read.replicas < 1:
        raise FleetError(f"{name}: replicas is {read.replicas}; accepted: 1 and above")
    if fault := _scaling_fault(read):
        raise FleetError(f"{name}: {fault}")
    for port in ("http_port", "grpc_port"):
        if not 1 <= getattr(read, port) <= 65535:
            raise FleetError(f"{name}: {port} is {getattr(read, port)}; accepted: 1 to 65535")
    return msgspec.structs.replace(read, **_absolute(read, folder))


def _scaling_fault(read: FleetSettings) -> str | None:
    if read.ray and read.servers:
        return "ray needs a bundle: servers that run already are neither started nor stopped"
    if read.autoscaling is None:
        return None
    if read.servers:
        return (
            "autoscaling needs a bundle: servers that run already are neither started nor stopped"
        )
    if read.autoscaling.max > 1 and not read.shared_templates:
        return (
            "autoscaling needs shared_templates: true, since a worker that is stopped would take "
            "its own templates along"
        )
    if fault := read.autoscaling.fault():
        return f"autoscaling: {fault}"
    return None


def _absolute(read: FleetSettings, folder: Path) -> dict[str, Any]:
    named = {name: getattr(read, name) for name in ("bundle", "templates", "keys")}
    return {name: str(folder / value) for name, value in named.items() if value}
