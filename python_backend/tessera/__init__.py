"""Tessera's runtime: what runs inside Triton's Python backend, and the launcher beside it.

Importing this package imports neither torch nor tensorrt nor Triton's own module.
"""

__version__ = "0.1.0"
