"""A fleet as a Ray cluster's own configuration names it, which KubeRay's RayService hands to Serve:

    applications:
      - name: tessera
        import_path: tessera_gateway.fleet.kuberay:fleet
        args: {bundle: /bundles/demo, replicas: 2, host: 0.0.0.0}

Each worker has a pod of its own there. The front is on the head's pod, whose Service KubeRay keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tessera_gateway.fleet.ray_serve import application
from tessera_gateway.fleet.settings import FleetError, settings_of


def fleet(args: dict[str, Any]) -> Any:
    """The application of a fleet in a cluster.

    Args:
        args: what `fleet.yaml` holds. Relative paths are relative to the pods' working directory.

    Raises:
        FleetError: the arguments cannot be used.
    """
    settings = settings_of(args, "args", Path.cwd())
    if settings.servers:
        raise FleetError("args has servers, which run without Ray; accepted: a bundle")
    there = msgspec.structs.replace(
        settings, ray="auto"
    )  # workers listen on their nodes' addresses
    return application(there, on_head=True)
