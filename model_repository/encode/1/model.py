"""Triton's entry point of `encode`."""

from tessera.triton.encode import TritonPythonModel

__all__ = ["TritonPythonModel"]
