"""What a fleet's front needs of memory while many requests wait.

    python -m bench fleet-memory [--requests 1000] [--side 128]

Starts `tessera-fleet` in front of a stand-in for a worker, which keeps every request until all are
there. Each request is an edit with a picture and a mask. Fails if a request is not answered. Needs
no bundle. Writes `bench/results/fleet_memory.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
from aiohttp import web
from rich.console import Console

from bench import report
from bench.fleet_front import Front, fronted
from bench.server import free_ports
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.peek import peek_grpc
from tessera_gateway.fleet.pool import SERVICE, UNLIMITED
from tessera_gateway.kserve.framing import HEAD_LENGTH

Call = Callable[[], Coroutine[Any, Any, None]]
AT_ONCE = 20
"""Requests that are on their way: more would keep the stand-in, in this process, from telling."""
console = Console(highlight=False)


class Keeper:
    """A stand-in for a worker, which keeps requests until `release`."""

    def __init__(self) -> None:
        self.kept = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        """Answer all."""
        self._released.set()

    async def start(self, grpc_port: int, http_port: int) -> None:
        """Listen on both."""
        server = grpc.aio.server(options=UNLIMITED)
        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        await server.start()
        self._server = server
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v2/models/edit/infer", self._post)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", http_port, backlog=4096).start()

    async def stop(self) -> None:
        """End."""
        await self._server.stop(None)
        await self._runner.cleanup()

    async def _keep(self) -> None:
        self.kept += 1
        await self._released.wait()

    async def _infer(self, request: bytes, context: Any) -> bytes:
        if peek_grpc(request).action == "load":
            return wire.response_of("jobs", "RESULT", json.dumps({"worker": "w", "slots": 8}))
        await self._keep()
        return wire.response_of("edit", "INFO", "{}")

    async def _post(self, request: web.Request) -> web.Response:
        await request.read()
        await self._keep()
        return web.json_response({"outputs": []})


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="what a fleet's front needs of memory")
    parser.add_argument("--requests", type=int, default=1000, help="that wait at a time")
    parser.add_argument("--side", type=int, default=128, help="of pictures, in pixels")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    rows = [asyncio.run(_measured(protocol, options)) for protocol in SENDERS]
    settings = report.settings_of(options) | {"request_mb": 4 * options.side**2 / 1e6}
    file = report.write("fleet_memory", settings, rows, machine=machine, out=options.out)
    console.print(f"written: {file}")


async def _measured(protocol: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the report."""
    grpc_port, http_port = free_ports(2)
    keeper = Keeper()
    await keeper.start(grpc_port, http_port)
    with contextlib.ExitStack() as stack:
        known = {"grpc": f"127.0.0.1:{grpc_port}", "http": f"127.0.0.1:{http_port}"}
        front = await asyncio.to_thread(stack.enter_context, fronted([known]))
        row = {"protocol": protocol, **await _waited(protocol, keeper, front, options)}
        console.print(row)
    await keeper.stop()
    return row


async def _waited(
    protocol: str, keeper: Keeper, front: Front, options: argparse.Namespace
) -> dict[str, float]:
    """The front's memory in MB before all requests, while they wait, and after their answers."""
    before = front.memory_mb()
    async with SENDERS[protocol](front, _tensors(options.side)) as call:
        calls: list[asyncio.Future[None]] = []
        while keeper.kept < options.requests:
            if len(calls) < min(options.requests, keeper.kept + AT_ONCE):
                calls.append(asyncio.ensure_future(call()))
            for each in (each for each in calls if each.done()):
                each.result()  # none should be answered yet
            await asyncio.sleep(0.001)
        waiting = front.memory_mb()
        keeper.release()
        await asyncio.gather(*calls)
    return {"before_mb": before, "waiting_mb": waiting, "after_mb": front.memory_mb()}


def _tensors(side: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    return {
        "IMAGE": np.zeros((1, side, side, 3), np.uint8),
        "MASK": np.zeros((1, side, side), np.uint8),
    }


@asynccontextmanager
async def _grpc(front: Front, tensors: dict[str, Any]) -> AsyncIterator[Call]:
    data = wire.request_of("edit", {"PROMPT": "a red circle"})
    for name, array in tensors.items():
        shape = b"".join(wire.number(3, n) for n in array.shape)
        head = wire.field(1, name.encode()) + wire.field(2, b"UINT8") + shape
        data += wire.field(5, head) + wire.field(7, array.tobytes())
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{front.grpc_port}", options=UNLIMITED
    ) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        async def call() -> None:
            await infer(data)

        yield call


@asynccontextmanager
async def _http(front: Front, tensors: dict[str, Any]) -> AsyncIterator[Call]:
    inputs = [{"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a circle"]}]
    for name, array in tensors.items():
        parameters = {"binary_data_size": array.nbytes}
        shape = list(array.shape)
        described = {"name": name, "datatype": "UINT8", "shape": shape, "parameters": parameters}
        inputs.append(described)  # type: ignore[arg-type]
    head = json.dumps({"inputs": inputs}).encode()
    body = head + b"".join(array.tobytes() for array in tensors.values())
    headers = {HEAD_LENGTH: str(len(head))}
    url = f"http://127.0.0.1:{front.http_port}/v2/models/edit/infer"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call() -> None:
            async with session.post(url, data=body, headers=headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")

        yield call


SENDERS: dict[str, Callable[..., AbstractAsyncContextManager[Call]]] = {
    "gRPC": _grpc,
    "HTTP": _http,
}
"""By the protocol: opens what sends a request to a front."""


if __name__ == "__main__":
    main()
