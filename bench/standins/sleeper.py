"""A stand-in for a ControlNet: sleeps for the milliseconds in its name and answers zeros."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from tessera import trace
from tessera.shared.settings import ServerSettings
from tessera.triton import pb


class TritonPythonModel:
    """Like the model of `tessera.triton.controlnet`. `controlnet_sleep40` takes 40 ms per step."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Read the duration from the name, and the number of residuals per row."""
        torch.set_num_threads(1)
        trace.write_to(ServerSettings.from_environment().trace)
        config = json.loads(args["model_config"])
        self._seconds = int(config["name"].removeprefix("controlnet_sleep")) / 1e3
        self._numbers = int(config["parameters"]["numbers"]["string_value"])
        self._branches: dict[int, int] = {}

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request separately."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = {name: pb.to_torch(handle) for name, handle in pb.handles(request).items()}
        keys = [int(key) for key in inputs["KEYS"]]
        if "SAMPLE" not in inputs:
            self._branches[keys[0]] = len(inputs["TEXT"])
            return [pb.tensor_of("RESIDUALS", torch.zeros(1))]
        with trace.span("asleep"):
            time.sleep(self._seconds)
        rows = sum(self._branches[key] for key in keys)
        return [pb.tensor_of("RESIDUALS", torch.zeros(rows * self._numbers))]
