"""Triton's entry point of `edit`."""

from tessera.triton.edit import TritonPythonModel

__all__ = ["TritonPythonModel"]
