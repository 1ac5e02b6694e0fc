"""`jobs`: reads the board for clients, and cancels."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tessera.contract import JOB_ACTIONS
from tessera.errors import InvalidInput
from tessera.requests.request import read_action, read_job_id
from tessera.shared.board import Board
from tessera.shared.settings import ServerSettings
from tessera.triton import pb


class TritonPythonModel:
    """ACTION, JOB_ID -> RESULT (JSON of the job's status)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board."""
        self._board = Board(ServerSettings.from_environment().board)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._answer)

    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.arrays(request)
        action = read_action(inputs, JOB_ACTIONS)
        job_id = read_job_id(inputs)
        if not job_id:
            raise InvalidInput.described(
                "JOB_ID", "is missing", "the id of a running or recent job"
            )
        status = self._board.cancel(job_id) if action == "cancel" else self._board.status(job_id)
        return [pb.tensor("RESULT", json.dumps(dataclasses.asdict(status)).encode())]
