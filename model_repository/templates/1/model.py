"""Triton's entry point of `templates`."""

from tessera.triton.templates import TritonPythonModel

__all__ = ["TritonPythonModel"]
