"""Stands in for a connection to a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tessera.errors import UnknownJob
from tessera.types import Array
from tessera_client.wire import Call

INFO = {
    "job_id": "j",
    "seed": 7,
    "steps": 2,
    "width": 8,
    "height": 4,
    "scheduler": "euler",
    "mode": "dense",
    "mask_ratio": None,
    "loras": [],
    "controls": [],
    "encode_ms": 1.0,
    "queue_ms": 1.0,
    "denoise_ms": 5.0,
    "decode_ms": 1.0,
    "engine_ms": 4.0,
    "refit_ms": 0.0,
    "cache_load_ms": 0.0,
    "total_ms": 8.0,
    "ticks": 2,
    "mean_batch": 1.0,
    "news_of_a_later_server": 1,
}
RECORDED = {
    "template": "abc",
    "steps": 4,
    "scheduler": "euler",
    "storage": "float16/1",
    "bytes": 5_000_000,
    "recorded": True,
    "seconds": 0.5,
}
TEMPLATES = {
    "template": "abc",
    "bytes": 7,
    "templates": [
        {"template": "abc", "width": 8, "height": 4, "recordings": [RECORDED]},
        {"template": "def", "width": 16, "height": 4, "recordings": []},
    ],
    "disk": {"bytes": 5_000_000, "budget": 10_000_000},
    "memory": {"bytes": 1_000_000, "budget": 2_000_000, "hit_rate": 0.25},
}
ADAPTERS = [
    {
        "name": "ink",
        "bytes": 1_500_000,
        "digest": "0123456789abcdef",
        "layout": "kohya",
        "ranks": [4, 8],
        "targets": {"unet": 20, "text_encoder": 6},
        "family": "Stable Diffusion 1.x",
        "problem": None,
    },
    {
        "name": "torn",
        "bytes": 7,
        "digest": None,
        "layout": None,
        "ranks": None,
        "targets": {},
        "family": None,
        "problem": "is damaged or ends early",
    },
]
STATUS = {
    "job_id": "j",
    "phase": "denoising",
    "step": 1,
    "total": 2,
    "cancelled": False,
    "seconds": 0.1,
}


class FakeTransport:
    """Answers like a server; `failures` are raised first, one per call of `generate`; the first
    `unknown` questions about a job do not find it.
    """

    def __init__(
        self,
        *failures: BaseException,
        during: Callable[[], None] | None = None,
        unknown: int = 0,
    ) -> None:
        self.failures = list(failures)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.parameters: list[dict[str, str]] = []
        self.closed = False
        self._during = during
        self._unknown = unknown
        self._lock = threading.Lock()

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        with self._lock:
            self.calls.append((call.model, dict(call.inputs)))
            self.parameters.append(dict(call.parameters))
        model, inputs = call.model, call.inputs
        if model == "jobs":
            if self._unknown > 0:
                self._unknown -= 1
                raise UnknownJob("j")
            return {"RESULT": np.array([[json.dumps(STATUS).encode()]], object)}
        if model == "adapters":
            return {"RESULT": np.array([[json.dumps({"adapters": ADAPTERS}).encode()]], object)}
        if model == "templates":
            answer = RECORDED if b"register" in inputs["ACTION"] else TEMPLATES
            return {"RESULT": np.array([[json.dumps(answer).encode()]], object)}
        if self.failures:
            raise self.failures.pop(0)
        if self._during:
            self._during()
        image = np.zeros((1, 4, 8, 3), np.uint8) if model == "generate" else inputs["IMAGE"]
        return {"IMAGE": image, "INFO": np.array([[json.dumps(INFO).encode()]], object)}

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        return model != "templates"

    def close(self) -> None:
        self.closed = True

    def sent(self, model: str) -> list[dict[str, Any]]:
        """Inputs of the calls to one model, single values unwrapped."""
        return [
            {k: v.reshape(-1)[0] if v.size == 1 else v for k, v in inputs.items()}
            for name, inputs in self.calls
            if name == model
        ]


class AsyncFakeTransport:
    """`FakeTransport` with `await`."""

    def __init__(self, *failures: BaseException, unknown: int = 0) -> None:
        self.inner = FakeTransport(*failures, unknown=unknown)

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        return self.inner.infer(call, timeout)

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        return self.inner.ready(model)

    async def close(self) -> None:
        self.inner.close()
