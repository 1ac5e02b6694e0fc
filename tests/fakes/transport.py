"""Stands in for a connection to a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tessera import contract
from tessera.errors import InvalidInput, UnknownJob
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
    "place": None,
    "seconds_left": 0.1,
}
BUNDLE: dict[str, Any] = {
    "name": "demo",
    "digest": "0123456789abcdef",
    "variant": "sd15",
    "defaults": {
        "steps": 20,
        "guidance": 4.0,
        "width": 8,
        "height": 4,
        "scheduler": "euler",
        "lora_bound": 0.2,
    },
    "min_size": 4,
    "max_size": 64,
    "controlnets": ["edges"],
    "sparse": True,
    "schedulers": {n: spec.max_steps for n, spec in contract.SCHEDULERS.items() if not spec.edm},
    "limits": contract.LIMITS,
}
LOAD = {"slots": 8, "running": [{"job": "a"}], "waiting": [{"job": "b"}, {"job": "c"}]}


class FakeTransport:
    """Answers like a server; `failures` are raised first, one per call of `generate`; the first
    `unknown` questions about a job do not find it.
    """

    def __init__(
        self,
        *failures: BaseException,
        during: Callable[[], object] | None = None,
        unknown: int = 0,
    ) -> None:
        self.failures = list(failures)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.parameters: list[dict[str, str]] = []
        self.closed = False
        self.refuses_previews = False
        self.preview_steps: Iterator[int | None] = iter((None, 1, 1))
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
            return self._job(inputs)
        if model == "adapters" and b"bundle" in inputs["ACTION"]:
            return {"RESULT": np.array([[json.dumps(BUNDLE).encode()]], object)}
        if model == "adapters":
            return {"RESULT": np.array([[json.dumps({"adapters": ADAPTERS}).encode()]], object)}
        if model == "templates":
            answer = RECORDED if b"register" in inputs["ACTION"] else TEMPLATES
            return {"RESULT": np.array([[json.dumps(answer).encode()]], object)}
        if self.failures:
            raise self.failures.pop(0)
        if self._during:
            self._during()
        image = inputs.get("IMAGE", np.zeros((1, 4, 8, 3), np.uint8))  # of a template, too
        return {"IMAGE": image, "INFO": np.array([[json.dumps(INFO).encode()]], object)}

    def _job(self, inputs: Any) -> dict[str, Array]:
        if b"load" in inputs["ACTION"]:
            return {"RESULT": np.array([[json.dumps(LOAD).encode()]], object)}
        if b"preview" not in inputs["ACTION"]:
            return {"RESULT": np.array([[json.dumps(STATUS).encode()]], object)}
        if self.refuses_previews:
            raise InvalidInput("ACTION", "preview", "status, cancel")
        step = next(self.preview_steps, 2)
        picture = {"picture_step": step, "decoder": "linear", "width": 16, "height": 8}
        answer = json.dumps({**STATUS, **picture}).encode()
        image = np.full((1, 1, 2, 3) if step else (1, 0, 0, 3), step or 0, np.uint8)
        return {"RESULT": np.array([[answer]], object), "IMAGE": image}

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
