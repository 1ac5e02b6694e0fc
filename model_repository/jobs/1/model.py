"""Triton's entry point of `jobs`."""

from tessera.triton.jobs import TritonPythonModel

__all__ = ["TritonPythonModel"]
