"""Triton's entry point of `decode`."""

from tessera.triton.decode import TritonPythonModel

__all__ = ["TritonPythonModel"]
