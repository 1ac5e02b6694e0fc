"""Triton's entry point of `adapters`."""

from tessera.triton.adapters import TritonPythonModel

__all__ = ["TritonPythonModel"]
