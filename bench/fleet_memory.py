"""What a fleet's front needs of memory while many requests wait.

    python -m bench.fleet_memory [--requests 1000] [--side 128]

Starts `tessera-fleet` in front of a stand-in for a worker, which keeps every request until all are
there. Each request is an edit with a picture and a mask. Prints a table, and fails if a request is
not answered. Needs no bundle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import psutil
from aiohttp import web

from bench.server import free_ports
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.peek import peek_grpc
from tessera_gateway.fleet.pool import SERVICE, UNLIMITED
from tessera_gateway.kserve.framing import HEAD_LENGTH

Call = Callable[[], Coroutine[Any, Any, None]]
STARTS_WITHIN_S = 60.0
AT_ONCE = 20
"""Requests that are on their way: more would keep the stand-in, in this process, from telling."""


class Keeper:
    """A stand-in for a worker, which keeps requests until `release`."""

    def __init__(self) -> None:
        self.kept = 0
        self._released = asyncio.Event()

    def again(self) -> None:
        """Keep what comes from now on."""
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
    """Print the table."""
    parser = argparse.ArgumentParser(description="what a fleet's front needs of memory")
    parser.add_argument("--requests", type=int, default=1000, help="that wait at a time")
    parser.add_argument("--side", type=int, default=128, help="of pictures, in pixels")
    asyncio.run(_measure(parser.parse_args()))


async def _measure(options: argparse.Namespace) -> None:
    print(f"{options.requests} edits of {4 * options.side**2 / 1e6:.2f} MB")
    print("| protocol | before, MB | all wait, MB | kB a request | after, MB |")
    print("|---|---|---|---|---|")
    for name, send in (("gRPC", _grpc), ("HTTP", _http)):
        ports = free_ports(4)
        keeper = Keeper()
        await keeper.start(*ports[:2])
        with tempfile.TemporaryDirectory() as folder:
            servers = [{"grpc": f"127.0.0.1:{ports[0]}", "http": f"127.0.0.1:{ports[1]}"}]
            content = {"servers": servers, "grpc_port": ports[2], "http_port": ports[3]}
            path = Path(folder) / "fleet.yaml"
            path.write_text(json.dumps(content))
            front = subprocess.Popen([Path(sys.executable).with_name("tessera-fleet"), path])
            try:
                await _ready(ports[3])
                print(await _row(name, send, keeper, front.pid, ports[2:], options), flush=True)
            finally:
                front.terminate()
                front.wait()
                await keeper.stop()


async def _row(
    name: str, send: Any, keeper: Keeper, pid: int, ports: list[int], options: argparse.Namespace
) -> str:
    keeper.again()
    memory = psutil.Process(pid).memory_info
    before = memory().rss
    async with send(ports, _tensors(options.side)) as call:
        calls: list[asyncio.Future[None]] = []
        while keeper.kept < options.requests:
            if len(calls) < min(options.requests, keeper.kept + AT_ONCE):
                calls.append(asyncio.ensure_future(call()))
            for each in (each for each in calls if each.done()):
                each.result()  # none should be answered yet
            await asyncio.sleep(0.001)
        wait = memory().rss
        keeper.release()
        await asyncio.gather(*calls)
    numbers = (
        f"{before / 1e6:.0f} | {wait / 1e6:.0f} | {(wait - before) / 1e3 / options.requests:.0f}"
    )
    return f"| {name} | {numbers} | {memory().rss / 1e6:.0f} |"


async def _ready(port: int) -> None:
    async with asyncio.timeout(STARTS_WITHIN_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/v1/fleet") as answer:
                    if any(worker["live"] for worker in (await answer.json())["workers"]):
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def _tensors(side: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    return {
        "IMAGE": np.zeros((1, side, side, 3), np.uint8),
        "MASK": np.zeros((1, side, side), np.uint8),
    }


@asynccontextmanager
async def _grpc(ports: list[int], tensors: dict[str, Any]) -> AsyncIterator[Call]:
    data = wire.request_of("edit", {"PROMPT": "a red circle"})
    for name, array in tensors.items():
        shape = b"".join(wire.number(3, n) for n in array.shape)
        head = wire.field(1, name.encode()) + wire.field(2, b"UINT8") + shape
        data += wire.field(5, head) + wire.field(7, array.tobytes())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", options=UNLIMITED) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        async def call() -> None:
            await infer(data)

        yield call


@asynccontextmanager
async def _http(ports: list[int], tensors: dict[str, Any]) -> AsyncIterator[Call]:
    inputs = [{"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a circle"]}]
    for name, array in tensors.items():
        parameters = {"binary_data_size": array.nbytes}
        shape = list(array.shape)
        described = {"name": name, "datatype": "UINT8", "shape": shape, "parameters": parameters}
        inputs.append(described)  # type: ignore[arg-type]
    head = json.dumps({"inputs": inputs}).encode()
    body = head + b"".join(array.tobytes() for array in tensors.values())
    headers = {HEAD_LENGTH: str(len(head))}
    url = f"http://127.0.0.1:{ports[1]}/v2/models/edit/infer"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call() -> None:
            async with session.post(url, data=body, headers=headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")

        yield call


if __name__ == "__main__":
    main()
