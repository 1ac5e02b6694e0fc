"""`encode`: checks a request, puts its job on the board, turns its prompts into embeddings."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from tessera.board import Board, Phase, board_path, sweep_boards
from tessera.bundle import Bundle
from tessera.engines.timed import TimedEngine
from tessera.plan import Plan
from tessera.request import Request, read_request
from tessera.text import TextEncoder
from tessera.triton import pb


class TritonPythonModel:
    """First member of the ensemble: inputs of the contract -> PLAN, TEXT."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle and the board."""
        torch.set_num_threads(1)
        sweep_boards()
        bundle = Bundle.from_environment()
        self._manifest = bundle.manifest
        self._board = Board(board_path())
        self._engine = TimedEngine(bundle.engine("text_encoder"))
        self._text = TextEncoder(bundle.tokenizer, self._engine)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        return pb.answer_each(requests, self._encode)

    def _encode(self, request: pb.Request) -> list[pb.TensorHandle]:
        started = time.time()
        wanted = read_request(pb.arrays(request), self._manifest)
        slot, ticket = self._board.open(wanted.job_id, wanted.steps)
        try:
            return self._embed(wanted, slot, ticket, started)
        except Exception:
            self._board.close(slot, ticket, Phase.FAILED)
            raise

    def _embed(
        self, wanted: Request, slot: int, ticket: int, started: float
    ) -> list[pb.TensorHandle]:
        plan = Plan(
            slot=slot,
            ticket=ticket,
            job_id=wanted.job_id,
            seed=wanted.seed,
            steps=wanted.steps,
            guidance=wanted.guidance,
            width=wanted.width,
            height=wanted.height,
            scheduler=wanted.scheduler,
            started=started,
            prompt_tokens_dropped=self._text.dropped_tokens(wanted.prompt),
        )
        prompts = [wanted.negative_prompt, wanted.prompt] if plan.guided else [wanted.prompt]
        before = self._engine.spent_ms
        embeddings = self._text.encode(prompts)
        plan = dataclasses.replace(
            plan,
            encode_ms=1e3 * (time.time() - started),
            engine_ms=self._engine.spent_ms - before,
        )
        return [pb.tensor("PLAN", plan.to_json()), pb.tensor("TEXT", embeddings.numpy())]
