"""Calls senders as `denoise` calls ControlNets, and adds their residuals to maps."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tessera.triton import pb


class TritonPythonModel:
    """WANTED -> TIMES.

    WANTED is JSON: `shapes`, (c, h, w) of each map; `rows`; `calls`, the number of concurrent
    senders. TIMES is JSON: milliseconds until all senders have answered, and of the additions.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Start the threads that make the calls."""
        torch.set_num_threads(1)
        self._threads = ThreadPoolExecutor(4)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request separately."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.handles(request)
        wanted = json.loads(pb.text(inputs["WANTED"]))
        maps = [torch.zeros(wanted["rows"], *shape) for shape in wanted["shapes"]]
        began = time.perf_counter()
        asked = [self._threads.submit(_ask, f"sender{i}") for i in range(wanted["calls"])]
        answers = [job.result() for job in asked]
        between = time.perf_counter()
        for answer in answers:
            for target, part in zip(maps, answer.split([m.numel() for m in maps]), strict=True):
                target.add_(part.view(target.shape), alpha=0.5)
        ended = time.perf_counter()
        times = {"call_ms": 1e3 * (between - began), "add_ms": 1e3 * (ended - between)}
        return [pb.tensor("TIMES", json.dumps(times).encode())]


def _ask(name: str) -> torch.Tensor:
    keys = pb.tensor_of("KEYS", torch.zeros(1, dtype=torch.int64))
    return pb.to_torch(pb.call(name, [keys], ["RESIDUALS"])["RESIDUALS"])
