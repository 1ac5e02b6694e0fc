"""Tessera's Triton models in this process, on a real bundle, with the small fake of Triton's
backend module: what the ensemble and Triton's iterative scheduler do, without a server.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import config_of_denoise
from tests.samples.requests import inputs

NAMES = ("encode", "denoise", "decode")
SLOTS = 8


class Refused(Exception):
    """A request that was answered with an error."""

    def __init__(self, error: pb_utils.TritonError) -> None:
        super().__init__(error.message())
        self.code = error.code()


@dataclass
class Picture:
    """What a caller gets."""

    image: Any
    info: dict[str, Any]


class Models:
    """encode, denoise and decode."""

    def __init__(self, loaded: dict[str, Any]) -> None:
        self._models = loaded
        self._identity = 0

    @property
    def unet(self) -> Any:
        """The `UNetAdapters` of denoise."""
        return self._models["denoise"]._adapters

    def generate(self, **values: Any) -> Picture:
        """One request on its own."""
        (picture,) = self.together([values])
        return picture

    def together(self, requests: Sequence[dict[str, Any]]) -> list[Picture]:
        """Requests that are denoised in one batch."""
        plans, sequences = [], []
        for values in requests:
            parameters = values.pop("parameters", {})
            encoded = self._answer(
                "encode", pb_utils.Request(parameters=parameters, **inputs(**values))
            )
            self._identity += 1
            queued = np.array([[0]])
            sequences.append(pb_utils.Request(self._identity, True, **encoded, QUEUED_TICK=queued))
            plans.append(encoded["PLAN"])
        denoised = self._denoise(sequences)
        return [self._decode(plan, arrays) for plan, arrays in zip(plans, denoised, strict=True)]

    def _denoise(self, sequences: Sequence[pb_utils.Request]) -> list[dict[str, Any]]:
        left, done = dict(enumerate(sequences)), dict[int, Any]()
        while left:
            answers = self._models["denoise"].execute(list(left.values()))
            done |= {i: a for i, a in zip(left, answers, strict=True) if a is not None}
            left = {i: r for i, r in left.items() if i not in done}
        return [_arrays(done[i]) for i in range(len(sequences))]

    def _decode(self, plan: Any, arrays: dict[str, Any]) -> Picture:
        decoded = self._answer("decode", pb_utils.Request(PLAN=plan, **arrays))
        return Picture(decoded["IMAGE"][0], json.loads(decoded["INFO"][0, 0]))

    def _answer(self, name: str, request: pb_utils.Request) -> dict[str, Any]:
        return _arrays(self._models[name].execute([request])[0])


def _arrays(response: pb_utils.InferenceResponse) -> dict[str, Any]:
    if response.error is not None:
        raise Refused(response.error)
    return response.arrays()


@contextmanager
def models_of(bundle: Path, board: Path, **environment: str) -> Iterator[Models]:
    """Models that serve a bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
        patch.setenv("TESSERA_BUNDLE", str(bundle))
        patch.setenv("TESSERA_BOARD", str(board))
        patch.setenv("TESSERA_ENGINE", "onnxruntime")
        patch.setenv("TESSERA_TEMPLATES", str(board.parent / "templates"))
        for variable, value in environment.items():
            patch.setenv(variable, value)
        for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
            patch.delitem(sys.modules, name)
        loaded = {}
        for name in NAMES:
            module = importlib.import_module(f"tessera.triton.{name}")
            loaded[name] = module.TritonPythonModel()
            loaded[name].initialize({"model_config": json.dumps(config_of_denoise(SLOTS))})
        yield Models(loaded)
        for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
            del sys.modules[name]
