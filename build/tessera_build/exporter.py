"""Exports a bundle's graphs, several at a time where there are cores for it.

An export is one thread of Python. The processes are forked: they share the weights, and what they
find wrong is raised here.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tessera.manifest import CONTROLNET, LOWRANK
from tessera_build.export import Layout, export_graph, reweight_graph
from tessera_build.graphs import GraphSpec

_MOST = 4
"""Processes: more would wait for the largest graph alone."""

_PR_SET_PDEATHSIG = 1
_specs: Mapping[str, GraphSpec] = {}
"""What the forked processes inherit."""


@contextlib.contextmanager
def exporting(
    specs: Sequence[GraphSpec], folder: Path, processes: int | None = None
) -> Iterator[Callable[[str], Layout]]:
    """Export graphs into files of a folder; gives a function that waits for the graph of a name and
    returns its layout. It has to be called for all of them, in their order.

    Args:
        specs: of the graphs.
        folder: for the files.
        processes: how many; by default as many as torch may use threads.
    """
    global _specs
    names, alike = {spec.name for spec in specs}, first_alike(specs)
    layouts: dict[str, Layout] = {}
    inherited = _specs
    _specs = {spec.name: spec for spec in specs}

    def external(name: str) -> bool:
        return name + LOWRANK in names

    with contextlib.ExitStack() as stack:
        stack.callback(_restore, inherited)
        count = processes or min(torch.get_num_threads(), _MOST)
        start = _pool(stack, count) if count > 1 else _at_once
        waiting = {
            name: start(name, folder, external(name)) for name in _specs if name not in alike
        }

        def wait(name: str) -> Layout:
            """The layout of a graph, once its file is there."""
            if name in alike:
                first, module = alike[name], _specs[name].module
                layout = layouts[first]
                reweight_graph(folder / f"{first}.onnx", module, layout, folder / f"{name}.onnx")
            else:
                layout = waiting[name]()
            return layouts.setdefault(name, layout)

        yield wait


def first_alike(specs: Iterable[GraphSpec]) -> dict[str, str]:
    """Graphs of ControlNets that differ from an earlier one in nothing but weights -> that one."""
    first: dict[str, str] = {}
    alike: dict[str, str] = {}
    for spec in specs:
        if spec.name.startswith(CONTROLNET):
            config: dict[str, Any] = dict(spec.module.source.config)  # type: ignore[arg-type]
            # Names with an underscore say where it came from, and which values were defaults.
            own = sorted((k, v) for k, v in config.items() if not k.startswith("_"))
            key = f"{type(spec.module).__name__} {own}"
            if first.setdefault(key, spec.name) != spec.name:
                alike[spec.name] = first[key]
    return alike


def _pool(stack: contextlib.ExitStack, processes: int) -> Callable[..., Callable[[], Layout]]:
    """Starts exports in processes that end with the stack."""
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
    )
    stack.callback(pool.shutdown, cancel_futures=True)

    def start(name: str, folder: Path, external: bool) -> Callable[[], Layout]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forks
            return pool.submit(_export, name, folder, external).result

    return start


def _begin() -> None:
    """Begin a forked process: without the parent's threads; it ends with the parent, since it holds
    the parent's lock.
    """
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _at_once(name: str, folder: Path, external: bool) -> Callable[[], Layout]:
    """Exports when it is waited for."""
    return lambda: _export(name, folder, external)


def _export(name: str, folder: Path, external: bool) -> Layout:
    spec = _specs[name]
    return export_graph(spec.module, spec.signature, folder / f"{name}.onnx", external=external)


def _restore(inherited: Mapping[str, GraphSpec]) -> None:
    global _specs
    _specs = inherited
