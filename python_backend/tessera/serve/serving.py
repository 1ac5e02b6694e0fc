"""The model `serving`, which is ready as long as the server takes requests: from the first pictures
that `tessera-serve` makes until it is asked to stop.

It is a light Python model of its own. An ensemble would need no process, but when Triton (2.51)
loads one, it loads all of its members again. Standard library only.
"""

from __future__ import annotations

from pathlib import Path

SERVING = "serving"
_CODE = '''"""Triton's entry point of `serving`."""

from tessera.triton.serving import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_CONFIG = """backend: "python"
max_batch_size: 1

input [ { name: "ASK", data_type: TYPE_BOOL, dims: [ 1 ] } ]
output [ { name: "SERVING", data_type: TYPE_BOOL, dims: [ 1 ] } ]

instance_group [ { count: 1, kind: KIND_CPU } ]
"""


def write_serving(folder: Path) -> None:
    """Write the model into a folder of models, which is made if it is missing."""
    model = folder / SERVING
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(_CODE)
    (model / "config.pbtxt").write_text(_CONFIG)
