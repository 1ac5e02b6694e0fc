"""Opens engines by kind; a kind's library is imported only when one is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tessera.engines.base import Engine
from tessera.errors import BundleError, listing


def _onnxruntime(graph: Path, threads: int) -> Engine:
    from tessera.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, threads=threads)


_KINDS: dict[str, Callable[[Path, int], Engine]] = {"onnxruntime": _onnxruntime}


def open_engine(kind: str, graph: Path, *, threads: int = 0) -> Engine:
    """An engine of that kind on a graph.

    Raises:
        BundleError: there is no such kind.
    """
    if kind not in _KINDS:
        raise BundleError(f"engine kind {kind!r} is not one of {listing(_KINDS)}")
    return _KINDS[kind](graph, threads)
