"""Ends requests: on the board, which counts them, and in the log, if there is to be one."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from tessera.contract import Info
from tessera.errors import InvalidInput
from tessera.plan import Plan
from tessera.shared import request_log
from tessera.shared.board import Board
from tessera.shared.metrics import Kind, Outcome
from tessera.shared.processes import WARM_UP
from tessera.shared.request_log import LogFormat
from tessera.shared.rows import Phase
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

_ID = re.compile(r"internal error (\w+);")
_TIMES = ("encode_ms", "queue_ms", "denoise_ms", "decode_ms", "engine_ms", "total_ms")


class Endings:
    """Of one process.

    Args:
        settings: the server's.
        board: its jobs; whichever job this process finds lost is written to the log, too.
    """

    def __init__(self, settings: ServerSettings, board: Board) -> None:
        self._board = board
        self._on = settings.log_format is LogFormat.JSON
        self._prompts = settings.log_prompts
        if self._on:
            board.on_lost = _write_lost

    def done(self, plan: Plan, info: Info) -> None:
        """A request whose picture is there."""
        if self._board.close(plan.slot, plan.ticket, Phase.DONE) and self._on:
            times = {name: getattr(info, name) for name in _TIMES}
            _write(plan, Outcome.DONE, mode=info.mode, lora_path=info.lora_path, **times)

    def failed(self, plan: Plan, error: Exception) -> None:
        """A job that an error has ended; does nothing if it had ended before."""
        known = pb.known(error)
        outcome = self._board.fail(plan.slot, plan.ticket, known)
        if outcome and self._on:
            spent_ms = 1e3 * (time.monotonic() - plan.started)
            _write(plan, outcome, total_ms=spent_ms, **self._described(known))

    def refused(self, kind: Kind, error: Exception, job_id: str = "") -> None:
        """A request that an error has kept from becoming a job."""
        known = pb.known(error)
        if job_id.startswith(WARM_UP) and not isinstance(known, InvalidInput):
            return  # a warm-up that there is no room for; others may not have such an id
        self._board.count_refused(kind, known)
        if self._on:
            described = self._described(known)
            request_log.write(
                kind=kind, job_id=job_id or None, outcome=Outcome.of(known), **described
            )

    def _described(self, error: Exception) -> dict[str, Any]:
        """An error without what may be a part of a prompt."""
        found = _ID.search(str(error))
        return {
            "error": type(error).__name__,
            "error_id": found[1] if found else None,
            "field": error.field if isinstance(error, InvalidInput) else None,
            "sentence": str(error) if self._prompts else None,
        }


def _write(plan: Plan, outcome: Outcome, **more: Any) -> None:
    if plan.job_id.startswith(WARM_UP):
        return
    request_log.write(
        kind=Kind.EDIT if plan.template else Kind.GENERATE,
        job_id=plan.job_id,
        outcome=outcome,
        width=plan.width,
        height=plan.height,
        steps=plan.steps,
        scheduler=plan.scheduler,
        priority=plan.priority,
        loras=[lora["name"] for lora in plan.loras],
        controls=[use.name for use in plan.controls],
        mask_ratio=plan.mask_ratio,
        **dict(zip(("prompt", "negative_prompt"), plan.prompts, strict=False)),
        **more,
    )


def _write_lost(row: np.void, outcome: Outcome) -> None:
    request_log.write(
        kind=tuple(Kind)[int(row["kind"])],
        job_id=bytes(row["job_id"]).decode(),
        outcome=outcome,
        error="lost",
        total_ms=1e3 * (time.monotonic() - float(row["opened"])),
    )
