"""Triton's entry point of `render`."""

from tessera.triton.render import TritonPythonModel

__all__ = ["TritonPythonModel"]
