"""CUDA graphs: a network's kernels captured once per set of shapes and replayed with one launch.

Inputs are copied into the buffers that a capture reads. Outputs are copied out, so that callers may
keep them. Compared to a network, these copies cost nothing.

All captures of a `Replayer` share one memory pool. That is safe because they run one after the
other, and only the copies read a capture's outputs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#graph-memory-management).

Knows torch, nothing of networks.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tessera.errors import InternalError

Positional = Sequence[torch.Tensor]
Call = Callable[[Positional], Positional]
"""Queues a network's work on the current stream. Inputs and outputs are positional tensors."""

Key = tuple[tuple[torch.Size, torch.dtype], ...]
_WARM_UPS = 2
_log = logging.getLogger(__name__)


class Capture(Protocol):
    """A network's work on fixed buffers."""

    @property
    def outputs(self) -> Positional:
        """The tensors into which a replay writes its outputs."""
        ...

    def replay(self) -> None:
        """Queue the work again, with the current contents of the input buffers."""
        ...


class Capturer(Protocol):
    """Makes captures. `CudaCapturer` is the implementation for CUDA."""

    def __call__(self, call: Call, buffers: Positional) -> Capture:
        """Capture a call on these input buffers."""
        ...


class CudaCapturer:
    """Captures into CUDA graphs on a separate stream of a device, which has to be current in calls.

    Other devices work meanwhile, in threads of their own, and may allocate memory. So only what
    this thread does may break a capture.

    Args:
        device: `cuda:0` ...
    """

    def __init__(self, device: str) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, call: Call, buffers: Positional) -> Capture:
        """See `Capturer`. The call first runs a few times, so that libraries initialise."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                call(buffers)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = tuple(call(buffers))
        return _CudaCapture(graph, outputs)


@dataclass(frozen=True)
class _CudaCapture:
    graph: torch.cuda.CUDAGraph
    outputs: Positional

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class _Entry:
    call: Call
    buffers: Positional = ()
    capture: Capture | None = None
    seen: bool = False
    refused: bool = False


class Replayer:
    """Runs a network, captured from the second call with the same shapes on.

    The first call is not captured. Shapes that occur once, such as a batch size in passing, would
    pay for a capture and never use it. A network that cannot be captured runs without, and the log
    gives the reason.

    Args:
        prepare: returns a function that queues the network's work. Called once for each set of
            shapes, since TensorRT needs an execution context for each.
        capacity: how many sets of shapes are kept; the least recently used is evicted first.
        capture: see `Capturer`.
    """

    def __init__(self, prepare: Callable[[], Call], *, capacity: int, capture: Capturer) -> None:
        self._prepare = prepare
        self._capacity = capacity
        self._capture = capture
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __call__(self, inputs: Positional) -> Positional:
        """The network's outputs. The caller may keep them."""
        entry = self._entry(tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        if entry.capture is None and entry.seen and not entry.refused:
            self._fill(entry, inputs)
        entry.seen = True
        if entry.capture is None:
            return entry.call(inputs)
        for buffer, tensor in zip(entry.buffers, inputs, strict=True):
            buffer.copy_(tensor)
        entry.capture.replay()
        return tuple(output.clone() for output in entry.capture.outputs)

    def forget(self) -> None:
        """Drop all captures. They are made again when their shapes occur again."""
        self._entries.clear()

    def _entry(self, key: Key) -> _Entry:
        if key not in self._entries:
            while len(self._entries) >= self._capacity:
                self._entries.popitem(last=False)
            self._entries[key] = _Entry(self._prepare())
        self._entries.move_to_end(key)
        return self._entries[key]

    def _fill(self, entry: _Entry, inputs: Positional) -> None:
        buffers = tuple(tensor.clone() for tensor in inputs)  # keeps channels-last
        try:
            entry.capture = self._capture(entry.call, buffers)
            entry.buffers = buffers
        except (RuntimeError, InternalError) as error:
            entry.refused = True
            _log.warning("a network runs without a CUDA graph: %s", error)
