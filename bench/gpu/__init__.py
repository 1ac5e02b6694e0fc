"""Measurements on a borrowed NVIDIA GPU without a network (docs/internals/gpu.md)."""
