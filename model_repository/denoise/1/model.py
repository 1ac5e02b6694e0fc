"""Triton's entry point of `denoise`."""

from tessera.triton.denoise import TritonPythonModel

__all__ = ["TritonPythonModel"]
