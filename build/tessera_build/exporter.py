"""Exports a bundle's graphs, several at a time where there are cores for it.

An export is one thread of Python. The processes are forked, and what they find wrong is raised
here. They capture graphs without weights. The weights are written here, one at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from tessera.manifest import network_of
from tessera_build.captured import Captured, CapturedGraphs, fingerprint
from tessera_build.export import Layout, capture_graph, hollow
from tessera_build.graphs import GraphSpec
from tessera_build.stored import Stored, write_graph

_MOST = 4
"""Processes: more would wait for the largest graph alone."""

_PR_SET_PDEATHSIG = 1
_specs: Mapping[str, GraphSpec] = {}
"""What the forked processes inherit."""


@dataclass(frozen=True)
class Exported:
    """A graph that has been written.

    Attributes:
        layout: how its weights differ from the checkpoint's.
        shares: the graphs in whose external data its weights are.
    """

    layout: Layout
    shares: tuple[str, ...]


@contextlib.contextmanager
def exporting(
    specs: Sequence[GraphSpec],
    folder: Path,
    processes: int | None = None,
    graphs: Path | None = None,
) -> Iterator[Callable[[str], Exported]]:
    """Export graphs into files of a folder; gives a function that waits for the graph of a name,
    writes it and says what it has written. It has to be called for all of them, in their order.

    Only graphs of the UNet share weights. Their weights are in files beside them.

    Args:
        specs: of the graphs.
        folder: for the files.
        processes: how many; by default as many as torch may use threads.
        graphs: where graphs are kept that need not be traced again, see `CapturedGraphs`.
    """
    global _specs
    kept = CapturedGraphs(graphs)
    keys = {spec.name: fingerprint(spec.module, spec.signature) for spec in specs}
    captured = {key: found for key in keys.values() if (found := kept.get(key))}
    missing: dict[str, str] = {}
    for name, key in keys.items():
        if key not in captured:
            missing.setdefault(key, name)
    stored: dict[str, Stored] = {}
    inherited = _specs
    _specs = {spec.name: spec for spec in specs}
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, inherited)
        count = processes or min(torch.get_num_threads(), _MOST)
        start = _pool(stack, count) if count > 1 else _at_once
        waiting = {key: start(name) for key, name in missing.items()}

        def wait(name: str) -> Exported:
            """Write a graph."""
            key = keys[name]
            if key in waiting:
                captured[key] = waiting.pop(key)()
                kept.put(key, captured[key])
            graph, layout = captured[key]
            spec, model = _specs[name], onnx.ModelProto.FromString(graph)
            of_unet = network_of(name) == "unet"
            shares = write_graph(
                model,
                dict(spec.module.named_parameters()),
                layout,
                folder / f"{name}.onnx",
                dtype=spec.stored,
                external=of_unet,
                shared=stored.setdefault(network_of(name), Stored()) if of_unet else None,
            )
            return Exported(layout, tuple(shares))

        yield wait


def _pool(stack: contextlib.ExitStack, processes: int) -> Callable[[str], Callable[[], Captured]]:
    """Starts exports in processes that end with the stack."""
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
    )
    stack.callback(pool.shutdown, cancel_futures=True)

    def start(name: str) -> Callable[[], Captured]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forks
            return pool.submit(_capture, name).result

    return start


def _begin() -> None:
    """Begin a forked process: without the parent's threads; it ends with the parent, since it holds
    the parent's lock.
    """
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _at_once(name: str) -> Callable[[], Captured]:
    """Exports when it is waited for."""
    return lambda: _capture(name)


def _capture(name: str) -> Captured:
    """A graph as bytes, without weights, and its layout. None of its weights is read."""
    spec = _specs[name]
    with hollow(spec.module):
        graph, layout = capture_graph(spec.module, spec.signature)
    return graph.SerializeToString(), layout


def _restore(inherited: Mapping[str, GraphSpec]) -> None:
    global _specs
    _specs = inherited
