"""`serving`: is there as long as the server takes requests. Readiness probes ask for it."""

from __future__ import annotations

import numpy as np

from tessera.triton import pb


class TritonPythonModel:
    """ASK -> SERVING: true."""

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, lambda request: [pb.tensor("SERVING", np.array([True]))])
