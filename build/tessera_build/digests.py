"""What the contents of a bundle's graphs depend on, apart from the checkpoint."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import tessera.networks
from tessera.manifest import file_digest


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code that determines the contents of a bundle's graphs."""
    here = Path(__file__).parent
    networks = Path(tessera.networks.__file__).parent
    builder = (
        "addons audit bundle captured checkpoint control_files controlnets digests examples export"
    )
    builder += (
        " exporter graphs markers parts precision previews samplers sampling_audit sparse stored"
    )
    builder += " trace unet_files"
    code = [
        *(here / f"{n}.py" for n in builder.split()),
        *sorted(networks.glob("*.py")),
    ]
    return hashlib.sha256("".join(file_digest(p) for p in code).encode()).hexdigest()
