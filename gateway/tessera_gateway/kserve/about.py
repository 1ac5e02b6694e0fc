"""What Triton says of itself and its models, without what clients cannot reach."""

from __future__ import annotations

import json

from tessera_gateway.kserve.paths import Kind

EXTENSIONS = (
    "sequence",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Of Triton's, those that work through the gateway."""


def public(kind: Kind, content: bytes) -> bytes:
    """An answer to GET as clients get it.

    The configuration of an ensemble names its members. perf_analyzer would ask for these, too, and
    they are not there; and of an ensemble without members it dies. So it is a model like others.
    """
    if kind not in ("server", "config"):
        return content
    about = json.loads(content)
    if kind == "server":
        about["extensions"] = [name for name in about["extensions"] if name in EXTENSIONS]
    elif about.pop("ensemble_scheduling", None) is not None:
        about["platform"] = ""
    return json.dumps(about).encode()
