"""`edit`: one process for each edit under way; does what the ensemble `generate` does, by calls.

Imports neither torch nor engines.
"""

from __future__ import annotations

from typing import Any

from tessera.errors import InvalidInput
from tessera.plan import Plan
from tessera.requests.parameters import lora_policy_of
from tessera.shared.board import Board, Phase
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

_ENCODED = ("PLAN", "TEXT", "POOLED", "CLEAN", "ACTIVE", "CONTROL")


class TritonPythonModel:
    """Inputs of the contract -> IMAGE, INFO."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board."""
        self._board = Board(ServerSettings.from_environment().board)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._edit)

    def _edit(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.handles(request)
        if "MASK" not in inputs:  # Triton only counts inputs; encode would take it for a generation
            raise InvalidInput.described("MASK", "is missing", "an array (h, w) of UINT8")
        policy = {"lora_policy": lora_policy_of(pb.parameters(request))}
        encoded = pb.call(
            "encode",
            list(inputs.values()),
            [*_ENCODED, "PIXELS"],
            policy,
            pb.timeout(request),  # from then on the job is on the board and can be cancelled
        )
        try:
            rendered = pb.call("render", [encoded[name] for name in _ENCODED], ["LATENTS", "STATS"])
            parts = [encoded["PLAN"], *rendered.values(), encoded["PIXELS"], inputs["MASK"]]
            return list(pb.call("decode", parts, ["IMAGE", "INFO"]).values())
        except Exception:
            plan = Plan.from_json(pb.text(encoded["PLAN"]))
            self._board.close(plan.slot, plan.ticket, Phase.FAILED)  # unless a member has
            raise
