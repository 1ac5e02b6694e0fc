"""Edits on a small UNet."""

from tests.samples.edits import world

__all__ = ["world"]
