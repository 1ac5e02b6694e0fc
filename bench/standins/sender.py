"""Answers any call with prepared RESIDUALS of a given size, so that only Triton's transfer takes
time.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from tessera.triton import pb


class TritonPythonModel:
    """KEYS -> RESIDUALS."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Make the residuals."""
        torch.set_num_threads(1)
        config = json.loads(args["model_config"])
        self._residuals = torch.randn(int(config["parameters"]["numbers"]["string_value"]))

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request."""
        return [pb.respond([pb.tensor_of("RESIDUALS", self._residuals)]) for _ in requests]
