"""Keeps captured graphs from build to build.

A captured graph has no weights. So the fine-tunes of a model, in any precision, have the same
graphs, and only the first build has to trace them. A graph is found by a digest of all that its
capture can see. What is kept is checked when it is read. A folder that cannot be read or written is
as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tessera_build.digests import code_digest
from tessera_build.export import OPSET, Layout, Signature

Captured = tuple[bytes, Layout]

LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
_MOST_BYTES = 1 << 30
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes of every module, which are gone through by other means."""

_OF_LOADING = {"_is_hf_initialized", "_use_kernels", "_weight_conversions", "name_or_path"}
"""What transformers leaves on modules that it has read from files."""

_SAYS_WHERE_FROM = {
    *("_class_name", "_commit_hash", "_diffusers_version", "_name_or_path", "_use_default_values"),
    *("architectures", "device", "dtype", "model_type", "torch_dtype", "transformers_version"),
}
"""Entries of configurations that no module reads when it runs."""


class CapturedGraphs:
    """Captured graphs in a folder; those used longest ago go first.

    Args:
        folder: by default `tessera/graphs` in the user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._folder = folder or Path(cache) / "tessera" / "graphs"

    def get(self, key: str) -> Captured | None:
        """A graph and its layout, if they are there and whole."""
        path = self._folder / key
        try:
            digest, layout, graph = path.read_bytes().split(b"\n", 2)
            path.touch()
        except (OSError, ValueError):
            return None
        if digest.decode("ascii", "replace") != _digest(layout, graph):
            return None
        return graph, json.loads(layout)

    def put(self, key: str, captured: Captured) -> None:
        """Keep a graph and its layout."""
        graph, layout = captured
        head = json.dumps(layout).encode()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(b"\n".join((_digest(head, graph).encode(), head, graph)))
            os.replace(file.name, self._folder / key)
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        files = [(path.stat(), path) for path in self._folder.iterdir()]
        room = _MOST_BYTES
        for status, path in sorted(files, key=lambda each: each[0].st_mtime, reverse=True):
            room -= status.st_size
            if room < 0:
                path.unlink(missing_ok=True)


def fingerprint(module: nn.Module, signature: Signature) -> str:
    """Digest of everything that a module's graph depends on: structure, attributes, shapes of
    parameters, values of buffers, inputs and outputs, and the code that makes graphs.
    """
    digest = hashlib.sha256()
    found = [code_digest(), OPSET, *(version(name) for name in LIBRARIES)]
    example = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in signature.example]
    wanted = [signature.inputs, signature.outputs, example, repr(signature.dynamic)]
    for line in (found, wanted, repr(signature.axes), *_lines(module, set())):
        digest.update(f"{line!r}\n".encode())
    return digest.hexdigest()


def _lines(module: nn.Module, seen: set[int]) -> Iterator[Any]:
    """Of each module in a tree what its graph may depend on."""
    for name, each in module.named_modules():
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield name, _name(type(each)), each.training
        yield [(n, tuple(p.shape)) for n, p in each.named_parameters(recurse=False)]
        yield [(n, _value(b, seen)) for n, b in each.named_buffers(recurse=False)]
        for key, value in sorted(vars(each).items()):
            if key not in _OF_MODULES | _OF_LOADING:
                yield key, _value(value, seen)


def _value(value: Any, seen: set[int]) -> Any:
    """Something whose `repr` differs if a graph may differ by it."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, torch.Tensor):
        content = np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return [(str(k), _value(v, seen)) for k, v in items if k not in _SAYS_WHERE_FROM]
    if isinstance(value, list | tuple | set | frozenset):
        values = [_value(each, seen) for each in value]
        return sorted(map(repr, values)) if isinstance(value, set | frozenset) else values
    if isinstance(value, nn.Module):  # a network that is not registered as a child
        return list(_lines(value, seen))
    if hasattr(value, "__qualname__"):  # a class or a function
        return _name(value)
    if id(value) in seen:
        return None
    seen.add(id(value))
    return _name(type(value)), _value(getattr(value, "__dict__", {}), seen)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _digest(head: bytes, graph: bytes) -> str:
    return hashlib.sha256(head + b"\n" + graph).hexdigest()
