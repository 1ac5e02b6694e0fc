"""NVIDIA's perf_analyzer, the real one, against the real server."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from bench.perf_analyzer import find_perf_analyzer, measure_load
from bench.server import Server

INPUTS = {"PROMPT": "a large red circle at the left on a blue background", "STEPS": 2, "SEED": 1}
needs_perf_analyzer = pytest.mark.skipif(
    find_perf_analyzer() is None, reason="perf_analyzer is not installed (make setup unpacks it)"
)


@needs_perf_analyzer
def test_concurrency_over_grpc(server: Server) -> None:
    levels = [
        measure_load(server.grpc, INPUTS, concurrency=f"{n}:{n}:1", requests=8, stability=1000)[0]
        for n in (1, 4, 8)
    ]
    assert [load.level for load in levels] == [1, 4, 8]
    for load in levels:
        assert load.throughput > 0
        assert 0 < load.p50_ms <= load.p90_ms <= load.p95_ms <= load.p99_ms


@needs_perf_analyzer
def test_request_rate_over_http(server: Server) -> None:
    (load,) = measure_load(server.http, INPUTS, request_rate="4:4:1", requests=8, stability=1000)
    assert load.level == 4
    assert load.throughput > 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_sequence_ids_and_flags_change_nothing(server: Server, protocol: str) -> None:
    triton = tritonclient.http if protocol == "http" else tritonclient.grpc
    port = server.http_port if protocol == "http" else server.grpc_port
    prompt = triton.InferInput("PROMPT", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[b"a red circle"]], object))
    seed = triton.InferInput("SEED", [1, 1], "INT64")
    seed.set_data_from_numpy(np.array([[3]], np.int64))
    steps = triton.InferInput("STEPS", [1, 1], "INT32")
    steps.set_data_from_numpy(np.array([[2]], np.int32))
    pictures = set()
    with triton.InferenceServerClient(f"localhost:{port}") as client:
        for start, end, identity in itertools.product((False, True), (False, True), (0, 5, 5)):
            answer = client.infer(
                "generate",
                [prompt, seed, steps],
                sequence_id=identity,
                sequence_start=start,
                sequence_end=end,
            )
            pictures.add(answer.as_numpy("IMAGE").tobytes())
    assert len(pictures) == 1
