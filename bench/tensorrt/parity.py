"""Compares every graph in ONNX Runtime, and in the engine that is checked, with torch on the CPU:
`tessera-build verify`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from bench.tensorrt.options import Options, options
from tessera.manifest import read_manifest
from tessera_build.verify import tolerance_of, verify_bundle

REFERENCE = "onnxruntime"


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each graph; an engine that fails does not stop the next."""
    chosen = options(arguments)
    for kind in dict.fromkeys((REFERENCE, chosen.engine)):
        chosen.attempt(f"engine {kind}", partial(_compare, chosen, kind))
    return chosen.status()


def _compare(chosen: Options, kind: str) -> None:
    found = verify_bundle(chosen.folder, kinds=(kind,), progress=print)
    precision, beyond = read_manifest(chosen.folder).precision, []
    for name, result in found.items():
        accepted = tolerance_of(name, precision)
        row = {"engine": kind, "difference": result.difference, "accepted": accepted}
        chosen.report.add(what=name.partition("@")[0], **row)
        if not result.difference <= accepted:
            beyond.append(name)
    if beyond:
        raise RuntimeError(f"beyond what is accepted: {', '.join(beyond)}")


if __name__ == "__main__":
    sys.exit(main())
